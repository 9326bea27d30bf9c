"""One lookup for every kind of plugin: a built-in name, a name that an installed package adds, or a dotted path.

    estimator: approx                     # built in
    estimator: my_estimators.Triangle     # a class of the user's own, from the working directory or installed
    estimator: triangle                   # an entry point `sign_estimator.triangle` in the group `bnfree.plugins`

The same everywhere: in YAML, on the command line and in Python, where the class or function itself will do, too.
"""

from __future__ import annotations

import importlib
import inspect
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from bnfree.errors import InputError
from bnfree.import_names import search_working_directory
from bnfree.names import did_you_mean
from bnfree.users_words import is_dotted

ENTRY_POINTS = "bnfree.plugins"
"""Group of entry points; the name of one is `<kind>.<name>`."""

# A built-in plugin is one line here: what it is called, and where it is. Nothing is imported before it is wanted.
BUILT_IN: dict[str, dict[str, str]] = {
    "control": {
        "random_layerwise": "bnfree.tickets.controls.RandomLayerwise",
        "random_global": "bnfree.tickets.controls.RandomGlobal",
        "reinit": "bnfree.tickets.controls.Reinit",
        "shuffle_signs": "bnfree.tickets.controls.ShuffleSigns",
    },
    "export_format": {
        "packed": "bnfree.packing.formats.PackedFormat",
        "openvino": "bnfree.packing.formats.OpenVINOFormat",
        "torch_export": "bnfree.packing.formats.TorchExportFormat",
        "onnx": "bnfree.packing.formats.ONNXFormat",
        "qonnx": "bnfree.packing.formats.QONNXFormat",
        "qonnx_channels_last": "bnfree.packing.formats.QONNXChannelsLastFormat",
        "c": "bnfree.packing.c_source.c_format.CFormat",
    },
    "sign_estimator": {
        "approx": "bnfree.binarize.PiecewiseQuadratic",
        "ste": "bnfree.binarize.ClippedIdentity",
        "sigmoid": "bnfree.binarize.SigmoidDerivative",
        "wide_ste": "bnfree.estimators.wide_ste.WideSTE",
        "exponential": "bnfree.estimators.exponential.Exponential",
        "reste": "bnfree.estimators.reste.ReSTE",
        "ede": "bnfree.estimators.ede.EDE",
        "swish_sign": "bnfree.estimators.swish_sign.SwishSign",
        "wide_ste_equal_area": "bnfree.estimators.equal_area.WideSTEEqualArea",
        "exponential_equal_area": "bnfree.estimators.equal_area.ExponentialEqualArea",
        "reste_equal_area": "bnfree.estimators.equal_area.ReSTEEqualArea",
        "ede_equal_area": "bnfree.estimators.equal_area.EDEEqualArea",
    },
    "weight_transform": {
        "biper": "bnfree.weight_transforms.biper.biper",
        "recu": "bnfree.weight_transforms.recu.ReCU",
        "compander": "bnfree.weight_transforms.compander.Compander",
    },
    "normalizer": {
        "bn_free": "bnfree.normalizers.bn_free.bn_free",
        "batch_norm": "bnfree.normalizers.batch_norm.batch_norm",
        "none": "bnfree.normalizers.none.none",
        "group_norm": "bnfree.normalizers.group_norm.GroupNorm",
        "layer_norm": "bnfree.normalizers.layer_norm.LayerNorm",
        "instance_norm": "bnfree.normalizers.instance_norm.InstanceNorm",
        "rms_norm": "bnfree.normalizers.rms_norm.RMSNorm",
        "ibn": "bnfree.normalizers.ibn.IBN",
        "evonorm_s0": "bnfree.normalizers.evonorm_s0.EvoNormS0",
        "evonorm_b0": "bnfree.normalizers.evonorm_b0.EvoNormB0",
        "sandwich": "bnfree.normalizers.sandwich.SandwichBatchNorm",
        "sandwich_affine": "bnfree.normalizers.sandwich.SandwichAffine",
        "bcn": "bnfree.normalizers.bcn.BatchChannelNorm",
        "ws_group_norm": "bnfree.normalizers.bcn.WSGroupNorm",
    },
    "loss": {
        "cross_entropy": "bnfree.losses.cross_entropy",
        "comp_sum": "bnfree.losses.comp_sum.CompSum",
    },
    "score": {
        "standardized": "bnfree.tickets.scores.Standardized",
        "effective": "bnfree.tickets.scores.Effective",
        "latent": "bnfree.tickets.scores.Latent",
        "magnitude": "bnfree.tickets.scores.Magnitude",
        "flip": "bnfree.tickets.scores.Flip",
        "snip": "bnfree.tickets.scores.Snip",
        "random": "bnfree.tickets.scores.Random",
    },
    "scope": {
        "global": "bnfree.tickets.scopes.GLOBAL",
        "layer": "bnfree.tickets.scopes.LAYER",
        "filter": "bnfree.tickets.scopes.FILTER",
        "block32": "bnfree.tickets.scopes.BLOCK32",
        "block64": "bnfree.tickets.scopes.BLOCK64",
    },
    "engine": {
        "numba": "bnfree.packing.engines.Numba",
        "torch": "bnfree.packing.engines.Torch",
        "openvino": "bnfree.packing.engines.OpenVINO",
    },
    "head": {
        "linear": "bnfree.heads.linear",
        "cosine": "bnfree.heads.Cosine",
        "equiangular": "bnfree.heads.equiangular.Equiangular",
        "grassmann": "bnfree.heads.grassmann.Grassmann",
    },
    # Those of the kinds below are classes with arguments, which configs name by their class or its path.
    "optimizer": {
        "adamp": "bnfree.optimizers.adamp.AdamP",
        "sgdp": "bnfree.optimizers.sgdp.SGDP",
        "muon": "bnfree.optimizers.muon.Muon",
        "schedule_free": "bnfree.optimizers.schedule_free.AdamWScheduleFree",
    },
    "callback": {
        "attacked_accuracy": "bnfree.callbacks.robustness.AttackedAccuracy",
        "corrupted_accuracy": "bnfree.callbacks.robustness.CorruptedAccuracy",
        "weight_shape": "bnfree.callbacks.weight_shape.WeightShape",
        "forgetting_scores": "bnfree.callbacks.forgetting_scores.ForgettingScores",
        "estimator_schedule": "bnfree.callbacks.estimator_schedule.EstimatorSchedule",
        "latent_sphere": "bnfree.callbacks.latent_sphere.LatentSphere",
        "bop": "bnfree.callbacks.bop.Bop",
        "freeze_signs": "bnfree.callbacks.freeze_signs.FreezeSigns",
        "ownership_triggers": "bnfree.callbacks.ownership_triggers.OwnershipTriggers",
        "flip_schedule": "bnfree.callbacks.flip_schedule.FlipSchedule",
        "silent_weight_decay": "bnfree.callbacks.silent_weight_decay.SilentWeightDecay",
        "affine_only": "bnfree.callbacks.affine_only.AffineOnly",
        "schedule_free_weights": "bnfree.callbacks.schedule_free.ScheduleFree",
        "periodic_regularizer": "bnfree.callbacks.periodic_regularizer.PeriodicRegularizer",
        "alpha_batch_norm": "bnfree.callbacks.alpha_batch_norm.AlphaBatchNorm",
        "estimator_indicators": "bnfree.callbacks.estimator_indicators.EstimatorIndicators",
        "mask_sparsity": "bnfree.callbacks.mask_sparsity.MaskSparsity",
        "layer_thresholds": "bnfree.callbacks.layer_thresholds.LayerThresholds",
    },
    "model": {
        "adversarial_training": "bnfree.lightning_modules.modules.robust_classifiers.AdversarialClassifier",
        "feature_attack": "bnfree.lightning_modules.modules.robust_classifiers.FeatureAttackClassifier",
        "channel_gating": "bnfree.lightning_modules.modules.gated_classifier.GatedClassifier",
        "adversarial_style": "bnfree.lightning_modules.modules.robust_classifiers.StyleClassifier",
        "zeroth_order": "bnfree.lightning_modules.modules.zeroth_order_classifier.ZerothOrderClassifier",
    },
    "data": {},
    # What `bnfree analyse` and `bnfree score-data` compute.
    "analysis": {
        "sensitivity": "bnfree.hessian.layer_sensitivities",
        "trainability": "bnfree.trainability.gradient_condition",
        "complexity": "bnfree.feature_complexity.feature_complexity",
        "el2n": "bnfree.data_scores.el2n",
        "grand": "bnfree.data_scores.grand",
    },
    # What `bnfree compress` does to a trained network.
    "compression": {
        "merge": "bnfree.compression.merging.Merge",
        "datafree": "bnfree.compression.data_free.DataFree",
    },
    # Switched on by an option of something else; the path leads to what computes them.
    "option": {
        "discriminator": "bnfree.discriminator.discriminator_loss",
        "correct_teacher": "bnfree.distillation.corrected_distillation_loss",
        "reflect_padding": "bnfree.datamodules.augmentation.crop_and_flip",
        "alternating_flip": "bnfree.datamodules.extra_augmentation.ExtraAugmentation",
        "cutout": "bnfree.datamodules.extra_augmentation.cutout",
        "rand_augment": "bnfree.datamodules.rand_augment.rand_augment",
        "mixup": "bnfree.datamodules.extra_augmentation.ExtraAugmentation",
        "cutmix": "bnfree.datamodules.extra_augmentation.ExtraAugmentation",
        "random_subsets": "bnfree.datamodules.randomness.subset_order",
        "group_size": "bnfree.backbones.residual.Variant",
        "feature_normalization": "bnfree.adversarial_style.with_statistics_of",
        "local_attention": "bnfree.local_attention.LocalAttention",
        "data_diet": "bnfree.datamodules.score_subsets.choose_by_score",
    },
}

_registered: dict[str, dict[str, Any]] = {}


def register(kind: str, name: str, plugin: Any) -> None:
    """Adds a name for this process; a package that is installed adds its names by entry points instead.

    Args:
        kind: such as `sign_estimator`.
        name: what `resolve` finds it by; it wins over a built-in one.
        plugin: the class or function.
    """
    _registered.setdefault(kind, {})[name] = plugin


def names(kind: str) -> list[str]:
    """All names of a kind: the built-in ones as they are listed, then those that were registered or installed."""
    return list(dict.fromkeys([*BUILT_IN.get(kind, {}), *sorted({*_registered.get(kind, {}), *_installed(kind)})]))


def resolve(kind: str, plugin: Any, argument: str | None = None) -> Any:
    """The class or function that a name stands for.

    Args:
        kind: such as `sign_estimator`.
        plugin: a name, a dotted path `package.module.Class`, or the class or function itself, which is returned.
        argument: what the user calls it, for messages; None: the kind.

    Raises:
        InputError: no plugin of that name, or a path that leads nowhere; it names the nearest one that does.

    Example:
        >>> from bnfree.plugins import resolve
        >>> resolve("sign_estimator", "ste").__name__
        'ClippedIdentity'
    """
    if not isinstance(plugin, str):
        return plugin
    argument = argument or kind
    if plugin in _registered.get(kind, {}):
        return _registered[kind][plugin]
    if plugin in BUILT_IN.get(kind, {}):
        return imported(BUILT_IN[kind][plugin], argument)
    if plugin in _installed(kind):
        try:
            return _installed(kind)[plugin].load()
        except (Exception, SystemExit) as error:
            raise InputError(f"{argument}={plugin!r} of an installed package cannot be imported ({error}).") from error
    if "." in plugin:
        return imported(plugin, argument)
    known = names(kind)
    remedy = did_you_mean(plugin, known) or f"choose from {', '.join(known)}, or give a dotted path to a class."
    raise InputError(f"{argument}={plugin!r} is not known; {remedy}")


def imported(path: str, argument: str) -> Any:
    """What a dotted path leads to; the working directory is looked at, too.

    Args:
        path: `package.module.Class`.
        argument: what the user calls it, for messages.

    Raises:
        InputError: a module that cannot be imported, or one without such a name.
    """
    if not is_dotted(path):
        raise InputError(f"{argument}={path!r} is no dotted path; give one such as my_package.module.Class.")
    search_working_directory()
    module_name, _, name = path.rpartition(".")
    module = _import(module_name, f"{argument}={path!r}")
    if not hasattr(module, name):
        remedy = did_you_mean(name, [n for n in dir(module) if not n.startswith("_")])
        raise InputError(f"{argument}={path!r} is not there: {module_name!r} has no {name!r}" + _end(remedy))
    return getattr(module, name)


def check_call(plugin: Any, given: str, form: str, *arguments: Any, **keywords: Any) -> None:
    """Refuses what cannot be called with the arguments that plugins of its kind are given; nothing is called.

    Args:
        plugin: the class or function.
        given: how the user gave it, the subject of the message.
        form: the call, such as `head(features, num_classes)`.
        arguments: of the call, as many as there are; their values have no part.
        keywords: likewise.

    Raises:
        InputError: it takes other arguments.
    """
    try:
        signature = inspect.signature(plugin)
    except (TypeError, ValueError):
        # Functions that are written in C may not say what they take.
        return
    try:
        signature.bind(*arguments, **keywords)
    except TypeError as error:
        raise InputError(f"{given} cannot be called as {form} ({error}); give one that can.") from None


def name_of(kind: str, plugin: Any) -> str:
    """What to write into a config or a file so that `resolve` finds a plugin again: its name, or its dotted path.

    Args:
        kind: such as `sign_estimator`.
        plugin: a class or function.
    """
    path = f"{plugin.__module__}.{plugin.__qualname__}"
    known = {**BUILT_IN.get(kind, {}), **{n: p.value.replace(":", ".") for n, p in _installed(kind).items()}}
    registered = (name for name, known_plugin in _registered.get(kind, {}).items() if known_plugin is plugin)
    return next((name for name, other in known.items() if other == path), None) or next(registered, path)


def _import(name: str, given: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise InputError(f"{given} cannot be imported: {name!r} needs {error.name!r}, which is missing.") from error
        raise InputError(f"{given} cannot be imported: there is no module {error.name!r}.") from error
    # A module that is a script leaves Python when it is imported.
    except (Exception, SystemExit) as error:
        what = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())[:300]
        where = _line_of(error, name)
        raise InputError(f"{given} cannot be imported: {type(error).__name__} in {where}: {what}") from error


def _line_of(error: BaseException, name: str) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = inspect.getinnerframes(error.__traceback__) if error.__traceback__ else []
    own = [frame for frame in frames if not frame.filename.startswith("<frozen importlib")]
    return f"{own[-1].filename}, line {own[-1].lineno}" if own else name


def _end(remedy: str) -> str:
    return f"; {remedy}" if remedy else "."


@cache
def _installed(kind: str) -> dict[str, Any]:
    found = entry_points(group=ENTRY_POINTS)
    return {point.name.removeprefix(f"{kind}."): point for point in found if point.name.startswith(f"{kind}.")}

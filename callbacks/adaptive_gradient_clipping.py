"""Adaptive gradient clipping as a callback; the arithmetic is `bnfree.clipping`."""

from __future__ import annotations

import fnmatch
from difflib import get_close_matches
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from bnfree.callbacks.strategies import refuse_sharded_parameters
from bnfree.classifiers import LastLinear, named_classifier
from bnfree.clipping import clip_units_, clipped_fraction
from bnfree.errors import InputError
from bnfree.state_dicts import backbone_of, plain_name


class AdaptiveGradientClipping(Callback):
    """Changes training: clips each unit's gradient to a share of its weight's norm, just before the optimizer steps.

    Acts on the parameters of the optimizer that steps, after AMP has unscaled and DDP has averaged the gradients, once
    per step also with gradient accumulation. Logs `agc/clipped_fraction`, the share of units that were clipped (0 to
    1), every `trainer.log_every_n_steps` steps.

    A parameter group of the optimizer may carry its own `clip_factor`, which wins over the callback's; None or 0 leaves
    the group alone. In manual optimisation, optimizers fetched with `use_pl_optimizer=False` are not seen.

    Source: Brock et al., ICML 2021 (arXiv 2102.06171), which clips everything but the classifier.

    Args:
        clip_factor: greatest allowed ratio of gradient norm to weight norm in a unit; larger batches want less.
        eps: floor of the weight norm, so that a weight of zero can still move.
        exclude: names of modules or parameters of the LightningModule that are not clipped, such as
            `backbone.classifier`, or patterns of them, such as `*.skip_gain`; None: the classifier: of
            `get_classifier()` (timm), or the attribute `classifier`, `fc`, `head` or `heads`, of the network or of the
            LightningModule, or else the last `nn.Linear` that the first step uses; an empty list: nothing.
        log_fraction: log `agc/clipped_fraction`.

    Raises:
        InputError: a value out of range; at the start of a run also an unknown name in `exclude`, a gradient that this
            callback cannot see whole and unscaled (FSDP, model parallelism, DeepSpeed, a fused optimizer with
            16-mixed), or `trainer.gradient_clip_val` beside it.

    Example:
        >>> trainer = Trainer(callbacks=[AdaptiveGradientClipping(clip_factor=0.02)], logger=False)
    """

    def __init__(
        self,
        clip_factor: float = 0.01,
        eps: float = 1e-3,
        exclude: list[str] | None = None,
        log_fraction: bool = True,
    ) -> None:
        # Checks both numbers.
        clip_units_([], clip_factor, eps)
        if isinstance(exclude, str):
            raise InputError(f"exclude={exclude!r} must be a list of names, such as [{exclude!r}].")
        self.clip_factor, self.eps, self.exclude, self.log_fraction = clip_factor, eps, exclude, log_fraction
        self._excluded: list[tuple[nn.Module, str | None]] | None = None
        self._last: LastLinear | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses what is wrong whatever the optimizer."""
        if stage != "fit":
            return
        self._excluded = None
        refuse_sharded_parameters(trainer, "AdaptiveGradientClipping")
        if trainer.gradient_clip_val:
            raise InputError(
                f"trainer.gradient_clip_val={trainer.gradient_clip_val} would clip again after "
                "AdaptiveGradientClipping; remove one of the two."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses scaled gradients and unknown names, before the first batch."""
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        for optimizer in trainer.optimizers:
            if scaled and getattr(optimizer, "_step_supports_amp_scaling", False):
                raise InputError(
                    f"trainer.precision={trainer.precision!r} leaves unscaling to the fused "
                    f"{type(optimizer).__name__}, so AdaptiveGradientClipping would clip scaled gradients; set "
                    "fused=false or trainer.precision to 'bf16-mixed'."
                )
        self._find(pl_module)

    def _find(self, pl_module: LightningModule) -> None:
        if self.exclude is not None or find_classifier(pl_module) is not None:
            self._excluded = find_excluded(pl_module, self.exclude)
        elif self._last is None:
            self._last = _last_linear(pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Clips, and logs when Lightning does."""
        if self._excluded is None:
            self._find(pl_module)
        if self._last is not None:
            self._take_last(self._last)
        # Looked up anew: a module may have been given another parameter since the start.
        excluded = {id(parameter) for owner, leaf in self._excluded or () for parameter in _parameters(owner, leaf)}
        logs = self.log_fraction and trainer._logger_connector.should_update_logs
        counts: list[tuple[Tensor, Tensor]] = []
        for group in optimizer.param_groups:
            clip_factor = group.get("clip_factor", self.clip_factor)
            if clip_factor:
                parameters = [p for p in group["params"] if id(p) not in excluded]
                counts += clip_units_(parameters, clip_factor, self.eps, count=logs)
        if logs:
            fraction = clipped_fraction(counts).to(pl_module.device)
            pl_module.log("agc/clipped_fraction", fraction, on_step=True, on_epoch=False)

    def _take_last(self, last: LastLinear) -> None:
        if last.layer is None:
            raise InputError("exclude=None finds no nn.Linear in use; name the modules that are not to be clipped.")
        last.release()
        self._excluded, self._last = [(last.layer, None)], None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets go of the module."""
        if self._last is not None:
            self._last.release()
        self._excluded, self._last = None, None


def find_classifier(pl_module: nn.Module) -> nn.Module | None:
    """The classifier of a LightningModule's network, or of the LightningModule, by its name; None without one."""
    found = (named_classifier(holder) for holder in (backbone_of(pl_module), pl_module))
    return next((classifier for classifier in found if classifier is not None), None)


def _last_linear(pl_module: nn.Module) -> LastLinear:
    try:
        return LastLinear(pl_module)
    except InputError as error:
        raise InputError(
            f"exclude=None finds no classifier: {error} Name the modules that are not to be clipped, or give an empty "
            "list."
        ) from None


def find_excluded(pl_module: nn.Module, names: list[str] | None) -> list[tuple[nn.Module, str | None]]:
    """Modules whose parameters are not clipped: pairs (module, None), or (owner, name) for one parameter.

    Args:
        pl_module: the LightningModule.
        names: as the argument `exclude` of the callback; the `_orig_mod.` that torch.compile adds is left out.

    Raises:
        InputError: no classifier to exclude by default, an unknown name, or a pattern that no name matches.
    """
    if names is None:
        classifier = find_classifier(pl_module)
        if classifier is None:
            raise InputError(
                f"exclude=None finds no classifier by its name in {type(pl_module).__name__}; name the modules that "
                "are not to be clipped, or give an empty list."
            )
        return [(classifier, None)]
    known: dict[str, tuple[nn.Module, str | None]] = {}
    for path, module in pl_module.named_modules(remove_duplicate=False):
        known.setdefault(plain_name(path), (module, None))
        for leaf, _ in module.named_parameters(recurse=False, remove_duplicate=False):
            known.setdefault(plain_name(f"{path}.{leaf}"), (module, leaf))
    known.pop("", None)
    found = []
    for name in names:
        matching = fnmatch.filter(known, plain_name(name)) if "*" in name else [plain_name(name)]
        if not matching or matching[0] not in known:
            inside = [path for path in known if path.endswith(f".{name}")]
            nearest = (inside or get_close_matches(name, known, n=1, cutoff=0) or ["an empty list"])[0]
            raise InputError(
                f"exclude={name!r} names no module or parameter of {type(pl_module).__name__}; the nearest is "
                f"{nearest!r}."
            )
        found += [known[path] for path in matching]
    return found


def _parameters(owner: nn.Module, leaf: str | None) -> list[Any]:
    return list(owner.parameters()) if leaf is None else [getattr(owner, leaf)]

"""Starting a network from the weights of a checkpoint, and from nothing else in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from bnfree.backbones import ReActNet18
from bnfree.backbones.residual import Variant
from bnfree.errors import InputError
from bnfree.lightning_modules.modules.hand_over import Inputs, Origin, remembered_binary_weights, remembered_inputs
from bnfree.lightning_modules.modules.torchvision_network import TorchvisionNetwork
from bnfree.packing import is_packed, pretrained_names, pretrained_path
from bnfree.packing.file_format import read as read_packed
from bnfree.packing.hub import is_hub, pull
from bnfree.packing.trainable import trainable_state_dict
from bnfree.reference import is_public_checkpoint, load_checkpoint
from bnfree.state_dicts import (
    OPTIONAL,
    contradicting_rows,
    read_checkpoint_file,
    read_state_dict,
    reshaped_names,
    uncompiled,
)
from bnfree.tickets import is_ticket, read_ticket


def load_initial_weights(
    backbone: nn.Module,
    path: str | Path,
    argument: str = "init_from",
    trained_ticket: bool = False,
    replace_head: bool = False,
) -> Origin:
    """Loads the weights of a checkpoint into `backbone`, strictly.

    Reads checkpoints written by this project's modules (the weights under `backbone.`), a plain state dict of the
    backbone (of a `TorchvisionNetwork`: also one of torchvision's model), ticket files (`bnfree.tickets`), packed
    BN-free networks and the names of pretrained ones, and checkpoints of the public BNN_NoBN and ReActNet code. Beta
    and masks come along, since they are part of the state dict; optimizer, epoch and learning rate do not.

    Args:
        backbone: the network to fill; it keeps its weights when anything fails.
        path: checkpoint file, opened with `weights_only=True`; `hf://user/repo/file`: one on the Hugging Face hub.
        argument: what the messages call the file.
        trained_ticket: of a ticket take the weights that it was found with, and not those that its training starts
            from again.
        replace_head: leave the backbone's `classifier` as it is, and the file's where it is; all else is strict.

    Returns:
        What the file says of its weights.

    Raises:
        InputError: no such file, not a checkpoint, a damaged ticket, or weights of another architecture; or a backbone
            without a `classifier` to keep.
    """
    given = f"{argument}={str(path)!r}"
    head = _head_of(backbone) if replace_head else None
    place = pull(str(path)) if is_hub(str(path)) else Path(path)
    weights, origin = _read_weights(place, backbone, given, trained_ticket)
    current = backbone.state_dict()
    if head is not None:
        theirs = {key: value for key, value in weights.items() if key.startswith(head)}
        ours = {key: value for key, value in current.items() if key.startswith(head)}
        weights = {key: value for key, value in weights.items() if key not in theirs} | ours
        origin = replace(origin, new_head=_new_head(theirs, ours))
    weights = {**_fresh_parts(backbone, weights), **weights}
    optional = {key for key in set(weights) - set(current) if key.endswith(OPTIONAL)}
    missing, unexpected = sorted(set(current) - set(weights)), sorted(set(weights) - set(current) - optional)
    reshaped = reshaped_names(current, weights)
    for problem, keys in (("lacks", missing), ("has in addition", unexpected), ("has in another shape", reshaped)):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise InputError(
                f"{given} does not fit {type(backbone).__name__}: it {problem} {keys[0]!r}{more}; "
                f"give a checkpoint of the same architecture, normalisation, width{_also_the_same(keys, replace_head)}."
            )
    if rows := contradicting_rows(current, weights):
        raise InputError(
            f"{given} holds {rows[0]!r}, which are not ascending output channels, one for each row of the layer; give "
            "a checkpoint that bnfree has written."
        )
    backbone.load_state_dict(weights, strict=True)
    return origin


def _fresh_parts(backbone: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What modules that work without weights from a file, such as gates, have themselves where the file knows none."""
    found: dict[str, Tensor] = {}
    for name, module in backbone.named_modules():
        if getattr(module, "fresh_without_weights", False):
            own = {f"{name}.{key}": value for key, value in module.state_dict().items()}
            found |= {} if own.keys() & weights.keys() else own
    return found


def find_packed(path: Path) -> Path | None:
    """The packed file that a path or the name of a pretrained network leads to; None for another file or none."""
    if path.is_file():
        return path if is_packed(path) else None
    names = [name for name in pretrained_names() if str(path) and name.startswith(str(path))]
    return pretrained_path(names[0]) if len(names) == 1 else None


def _head_of(backbone: nn.Module) -> str:
    """What the names of the head's weights begin with."""
    head = getattr(backbone, "classifier", None)
    name = next((name for name, module in backbone.named_modules() if module is head and name), None)
    if name is None:
        raise InputError(
            f"replace_head=True finds no module classifier in {type(backbone).__name__}; give it one, or leave "
            "replace_head out."
        )
    return f"{name}."


def _new_head(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> str:
    before, now = (
        max((value.shape[0] for value in head.values() if value.dim()), default=0) for head in (theirs, ours)
    )
    return f"{now} classes" + (f", where init_from has {before}" if before else "")


def _also_the_same(keys: list[str], replace_head: bool) -> str:
    if replace_head:
        return " and stem"
    if all(key.startswith(("classifier.", "network.fc.")) for key in keys):
        return ", stem and number of classes, or add --model.replace_head=true for a head of your own classes"
    return ", stem and number of classes"


def _read_weights(
    path: Path, backbone: nn.Module, given: str, trained_ticket: bool
) -> tuple[dict[str, Tensor], Origin]:
    normalised = Inputs.normalised(getattr(backbone, "in_channels", 3))
    packed = find_packed(path)
    if packed is not None:
        return trainable_state_dict(read_packed(packed)[0], uncompiled(backbone)), Origin(True, normalised)
    content = read_checkpoint_file(path, given)
    if is_ticket(content):
        ticket = read_ticket(content, given)
        return ticket.state_dict if trained_ticket else ticket.start(), Origin(ticket=True)
    content = content if isinstance(content, Mapping) else {}
    weights = read_state_dict(content, given)
    if is_public_checkpoint(weights):
        return _public_weights(weights, given, backbone), Origin(inputs=normalised)
    inputs = remembered_inputs(content)
    if inputs is None and "datamodule_hyper_parameters" in content:
        # From before checkpoints said it, with a data module that normalises.
        inputs = normalised
    origin = Origin(remembered_binary_weights(content), inputs)
    weights = {key.replace("_orig_mod.", ""): value for key, value in weights.items()}
    if any(key.startswith("backbone.") for key in weights):
        weights = {key.removeprefix("backbone."): v for key, v in weights.items() if key.startswith("backbone.")}
    elif isinstance(backbone, TorchvisionNetwork) and not any(key.startswith("network.") for key in weights):
        weights = {f"network.{key}": value for key, value in weights.items()}
    return weights, origin


def _public_weights(weights: dict[str, Tensor], given: str, backbone: nn.Module) -> dict[str, Tensor]:
    variant = getattr(backbone, "variant", None)
    public = load_checkpoint(weights, binary_weights=variant is None or variant.binary_weights)
    if isinstance(variant, Variant) and variant.norm == public.variant.norm:
        # Neither is in the weights, which would load without a word and compute something else.
        options = ["alpha"] if variant.scaled else []
        options += ["binary_shortcut"] if variant.binary_weights and isinstance(public, ReActNet18) else []
        for option in options:
            ours, theirs = getattr(variant, option), getattr(public.variant, option)
            if ours != theirs:
                raise InputError(
                    f"backbone.{option}={ours} does not fit {given}, a network of the public code with "
                    f"{option}={theirs}: set model.init_args.backbone.init_args.{option} to {str(theirs).lower()}."
                )
    return dict(public.state_dict())

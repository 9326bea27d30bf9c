"""Starting a network from the weights of a checkpoint, and from nothing else in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from bnfree.backbones import ReActNet18
from bnfree.backbones.residual import Variant
from bnfree.errors import InputError
from bnfree.lightning_modules.modules.torchvision_network import TorchvisionNetwork
from bnfree.reference import is_public_checkpoint, load_checkpoint
from bnfree.state_dicts import read_checkpoint_file, read_state_dict
from bnfree.tickets import is_ticket, read_ticket


def load_initial_weights(
    backbone: nn.Module, path: str | Path, argument: str = "init_from", trained_ticket: bool = False
) -> None:
    """Loads the weights of a checkpoint into `backbone`, strictly.

    Reads checkpoints written by this project's modules (the weights under `backbone.`), a plain state dict of the
    backbone (of a `TorchvisionNetwork`: also one of torchvision's model), ticket files (`bnfree.tickets`), and
    checkpoints of the public BNN_NoBN and ReActNet code. Beta and masks come along, since they are part of the state
    dict; optimizer, epoch and learning rate do not.

    Args:
        backbone: the network to fill; it keeps its weights when anything fails.
        path: checkpoint file, opened with `weights_only=True`.
        argument: what the messages call the file.
        trained_ticket: of a ticket take the weights that it was found with, and not those that its training starts
            from again.

    Raises:
        InputError: no such file, not a checkpoint, a damaged ticket, or weights of another architecture.
    """
    given = f"{argument}={str(path)!r}"
    weights = _read_weights(Path(path), backbone, given, trained_ticket)
    current = backbone.state_dict()
    optional = {key for key in set(weights) - set(current) if key.endswith(".mask")}
    missing, unexpected = sorted(set(current) - set(weights)), sorted(set(weights) - set(current) - optional)
    reshaped = sorted(k for k in set(current) & set(weights) if current[k].shape != weights[k].shape)
    for problem, keys in (("lacks", missing), ("has in addition", unexpected), ("has in another shape", reshaped)):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise InputError(
                f"{given} does not fit {type(backbone).__name__}: it {problem} {keys[0]!r}{more}; "
                "give a checkpoint of the same architecture, normalisation, width, stem and number of classes."
            )
    backbone.load_state_dict(weights, strict=True)


def _read_weights(path: Path, backbone: nn.Module, given: str, trained_ticket: bool) -> dict[str, Tensor]:
    content = read_checkpoint_file(path, given)
    if is_ticket(content):
        ticket = read_ticket(content, given)
        return ticket.state_dict if trained_ticket else ticket.start()
    weights = read_state_dict(content if isinstance(content, Mapping) else {}, given)
    if is_public_checkpoint(weights):
        return _public_weights(weights, given, backbone)
    weights = {key.replace("_orig_mod.", ""): value for key, value in weights.items()}
    if any(key.startswith("backbone.") for key in weights):
        return {key.removeprefix("backbone."): v for key, v in weights.items() if key.startswith("backbone.")}
    if isinstance(backbone, TorchvisionNetwork) and not any(key.startswith("network.") for key in weights):
        return {f"network.{key}": value for key, value in weights.items()}
    return weights


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

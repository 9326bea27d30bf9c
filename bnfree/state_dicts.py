"""Reading weights from files without running anything in them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bnfree import checksums, file_bounds
from bnfree.errors import InputError

OPTIONAL = (".mask", ".kept_rows")
"""Endings of names that a layer has if it has lost weights or rows; one that has not takes them when it loads."""


def plain_name(name: str) -> str:
    """The name of a parameter or module without the `_orig_mod.` that `torch.compile` puts into it.

    Example:
        >>> plain_name("backbone._orig_mod.stem.convolution.weight")
        'backbone.stem.convolution.weight'
    """
    return ".".join(part for part in name.split(".") if part not in ("", "_orig_mod"))


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the names that it has without `torch.compile`."""
    return {plain_name(name): value for name, value in state.items()}


def uncompiled(module: nn.Module) -> nn.Module:
    """The module itself where `torch.compile` has wrapped it."""
    inner: nn.Module = getattr(module, "_orig_mod", module)
    return inner


def network_name(module: nn.Module) -> str:
    """The attribute of a LightningModule that holds the network which it trains.

    That is `backbone`, or else the only attribute with parameters that are trained: a frozen teacher beside it is none.
    Empty where the module is the network itself.
    """
    if isinstance(getattr(module, "backbone", None), nn.Module):
        return "backbone"
    if any(p.requires_grad for p in module.parameters(recurse=False)):
        return ""
    held = [(name, list(child.parameters())) for name, child in module.named_children()]
    trained = [name for name, parameters in held if any(p.requires_grad for p in parameters)]
    names = trained or [name for name, parameters in held if parameters]
    return names[0] if len(names) == 1 else ""


def backbone_of(module: nn.Module) -> nn.Module:
    """The network that a LightningModule trains, see `network_name`; without one, the module itself.

    A network that `torch.compile` has wrapped comes out of its wrapping.
    """
    name = network_name(module)
    return uncompiled(getattr(module, name) if name else module)


def reshaped_names(current: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """Names under which two state dicts hold tensors of different shapes.

    The number of rows of a layer that has lost some, in either of the two, is no difference: it becomes that of what is
    loaded.

    Args:
        current: of the network.
        weights: what is to be loaded.
    """
    found = []
    # What a module says of itself beside its tensors has no shape.
    tensors = {name for name, value in current.items() if isinstance(value, Tensor)}
    for name in sorted(tensors & set(weights)):
        rows = f"{name.rpartition('.')[0]}.kept_rows"
        first = 1 if rows in current or rows in weights else 0
        if current[name].shape[first:] != weights[name].shape[first:]:
            found.append(name)
    return found


def contradicting_rows(current: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """Names of `kept_rows` that are no ascending output channels, one for each row that their layers have.

    Args:
        current: of the network.
        weights: what is to be loaded, tensors alone.
    """
    found = []
    for name in sorted(name for name in weights if name.rpartition(".")[2] == "kept_rows"):
        head, rows = name.removesuffix("kept_rows"), weights[name]
        layer = current.get(f"{head}weight")
        of_rows = [weights[head + part] for part in ("weight", "gain", "mask") if head + part in weights]
        sound = (
            layer is not None
            and layer.dim() > 0
            and f"{head}weight" in weights
            and rows.dtype == torch.int64
            and rows.dim() == 1
            and bool((rows >= 0).all() and (rows.diff() > 0).all())
            and all(tensor.dim() > 0 and len(tensor) == len(rows) for tensor in of_rows)
            # A network that has lost rows itself does not say here how many there were.
            and (name in current or bool((rows < len(layer)).all()))
        )
        if not sound:
            found.append(name)
    return found


def weights_of(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights and masks of a network out of a state dict of a module that holds it, under the network's own names.

    Args:
        network: the network, dense or pruned.
        state: state dict of the module, of the network alone, or of another network, which is given back.
    """
    state = plain_names(state)
    own = [plain_name(name) for name in network.state_dict() if not name.endswith(OPTIONAL)]
    first = own[0] if own else ""
    prefixes = {name.removesuffix(first) for name in state if name == first or name.endswith(f".{first}")}
    for prefix in sorted(prefixes, key=len):
        if all(prefix + name in state for name in own):
            return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return state


def is_safetensors(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins like one of safetensors, as packed networks are; torch takes those for damaged."""
    try:
        with Path(path).open("rb") as file:
            start, size = file.read(9), file.seek(0, os.SEEK_END)
    except OSError:
        return False
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") + 8 <= size


def read_checkpoint_file(path: str | os.PathLike[str], given: str) -> Any:
    """What a checkpoint file holds, tensors on the CPU.

    Args:
        path: checkpoint file, opened with `weights_only=True`.
        given: how the user gave it, e.g. "init_from='a.ckpt'": the subject of the messages.

    Raises:
        InputError: no such file, damaged, or more than tensors and plain values in it.
    """
    if not Path(path).is_file():
        raise InputError(f"{given} is not a file; give a checkpoint.")
    if is_safetensors(path):
        raise InputError(
            f"{given} is a file of safetensors, such as the packed networks of bnfree export, and no checkpoint; give "
            "the checkpoint that it was made of."
        )
    try:
        checksums.check(path, given)
        file_bounds.check_archive(path, given)
        content = torch.load(path, map_location="cpu", weights_only=True)
        file_bounds.check_tensors(content, given)
        return content
    except InputError:
        raise
    except Exception as error:
        # Damaged archives end in many exception types, all of which mean the same to the user.
        raise InputError(
            f"{given} cannot be read as a checkpoint: it is damaged or holds more than tensors and numbers "
            f"({type(error).__name__}); give a complete file from a source you know."
        ) from error


def read_state_dict(source: str | os.PathLike[str] | Mapping[str, Any], given: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint, by name.

    Args:
        source: checkpoint file, opened with `weights_only=True`, or what was read from one: a state dict, or a dict
            with one under `state_dict`.
        given: how the user gave it, e.g. "init_from='a.ckpt'": the subject of the messages.

    Raises:
        InputError: no such file, damaged, more than tensors and plain values in it, or no state dict.
    """
    content: Any = source if isinstance(source, Mapping) else read_checkpoint_file(source, given)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state:
        raise InputError(f"{given} holds no state dict; give a checkpoint or a network's state dict.")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise InputError(f"{given} holds no state dict, since {key!r} is not a tensor; give a checkpoint.")
    return dict(state)

"""A checkpoint becomes one of a network with fewer channels, without data and without training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bnfree.compression.inner_channels import InnerChannels, read_inner_channels, with_inner_channels
from bnfree.costs import count_ops
from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.tickets.pruned_network import check_output
from bnfree.lightning_modules.modules.hand_over import KEY as MEANING
from bnfree.lightning_modules.training.checkpoints import VERSION_KEY, AtomicCheckpointIO, read_checkpoint
from bnfree.lightning_modules.training.class_names import KEY as NAMES
from bnfree.lightning_modules.training.class_names import remembered_names
from bnfree.lightning_modules.training.network import build_network, image_shape, load_weights, read_description
from bnfree.lightning_modules.training.run_directory import run_directory_of
from bnfree.tickets import is_ticket
from bnfree.tickets.ticket_file import CONFIG_KEYS

ALL = "all"
# Of a checkpoint: what its weights are, and nothing of the training that they come from.
KEPT = (VERSION_KEY, "epoch", "global_step", "hparams_name", "datamodule_hparams_name", MEANING, *CONFIG_KEYS)


@dataclass(frozen=True)
class CompressSettings:
    """What is compressed, how, and where the result goes."""

    source: str | Path
    """A checkpoint, or a run directory, of which it is the last one."""
    method: Callable[[InnerChannels], InnerChannels]
    """From the channels inside a branch to fewer of them, such as `bnfree.compression.merging.Merge()`."""
    output: str | Path
    """The checkpoint to write."""
    overwrite: bool = False
    """Replace a file that is there."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Plain values by dotted name that beat what the checkpoint remembers, such as `{"image_shape": "3,32,32"}`."""


@dataclass(frozen=True)
class PartCost:
    """Channels inside the branches, parameters and operations of one block, or of all the network."""

    channels: int
    parameters: int
    ops: float
    """For one image, see `bnfree.costs`."""


@dataclass(frozen=True)
class CompressResult:
    """What a network was and is."""

    path: Path
    """The checkpoint that has been written."""
    image_shape: tuple[int, ...]
    """(C, H, W) of the image that operations are counted for."""
    parts: dict[str, tuple[PartCost, PartCost]]
    """By the block's name, before and after; under `all` the whole network, stem, shortcuts and classifier included."""

    @property
    def inner_channels(self) -> list[int]:
        """What the new network has for its argument of this name."""
        return [after.channels for name, (_, after) in self.parts.items() if name != ALL]


def compress(settings: CompressSettings) -> CompressResult:
    """Writes a checkpoint of a network with fewer channels inside its branches.

    The checkpoint is read like any other, to evaluate it, to start a training from it or as a teacher; it holds no
    state of an optimizer to resume from.

    Args:
        settings: what is compressed, how, and where the result goes.

    Raises:
        InputError: a network without such channels, a file that cannot be read or written, an unknown shape of
            images, or a method of your own that gives something else.

    Example:
        >>> from bnfree.compression.merging import Merge
        >>> found = compress(CompressSettings("runs/teacher", Merge(0.1), "small.ckpt"))  # doctest: +SKIP
        >>> found.inner_channels  # doctest: +SKIP
        [16, 15, 31, 30, 64, 60, 128, 97]
    """
    output = _check_place(settings)
    config = read_description(settings.source, settings.options)
    if config.ckpt_path is None:
        raise InputError(
            f"source={str(settings.source)!r} is a config, and compressing starts from a trained network; give a "
            "checkpoint or a run directory."
        )
    network, prefix = build_network(config)
    # Another network is refused before its weights are looked at.
    read_inner_channels(network)
    weights_only = config.weights_only is not False
    content = read_checkpoint(config.ckpt_path, weights_only)
    if is_ticket(content):
        raise InputError(f"source={str(settings.source)!r} is a ticket; give a checkpoint of a run that began with it.")
    load_weights(network, prefix, config.ckpt_path, weights_only)
    channels = read_inner_channels(network)
    fewer = {name: _checked(settings.method(found), found, name) for name, found in channels.items()}
    small = with_inner_channels(network, fewer)
    shape = image_shape(config, network)
    before, after = _costs(network, channels, shape), _costs(small, fewer, shape)
    result = CompressResult(output, shape, {name: (before[name], after[name]) for name in before})
    state = {key: value for key, value in content["state_dict"].items() if not key.startswith(prefix)}
    state |= {f"{prefix}{name}": tensor for name, tensor in small.state_dict().items()}
    AtomicCheckpointIO().save_checkpoint(_checkpoint(content, state, result.inner_channels, settings), output)
    return result


def _checked(found: object, before: InnerChannels, name: str) -> InnerChannels:
    """What a method has given for a block, if it is channels that fit into it.

    Raises:
        InputError: it is something else.
    """
    if isinstance(found, InnerChannels):
        count = len(found.shift) if found.shift.dim() else 0
        shapes = (
            (count, *before.incoming.shape[1:]),
            (count,),
            (len(before.outgoing), count, *before.outgoing.shape[2:]),
        )
        if count and (found.incoming.shape, found.shift.shape, found.outgoing.shape) == shapes:
            return found
    raise InputError(
        f"method gives for {name!r} no InnerChannels of at least one channel that fit into the block, of shapes "
        f"such as {tuple(before.incoming.shape)}, {tuple(before.shift.shape)} and "
        f"{tuple(before.outgoing.shape)}; see bnfree.compression.inner_channels."
    )


def _check_place(settings: CompressSettings) -> Path:
    output = check_output(settings.output, settings.overwrite, settings.source)
    run = run_directory_of(output)
    if run is not None:
        raise InputError(
            f"output={str(settings.output)!r} lies in the run directory {str(run)!r}, whose config describes the "
            "network as it was; give a file elsewhere."
        )
    return output


def _costs(network: nn.Module, channels: Mapping[str, InnerChannels], shape: Sequence[int]) -> dict[str, PartCost]:
    """Those of each block by its name, and of the whole network under `ALL`."""
    cost = count_ops(network, shape)
    rows = {name: [row for row in cost.rows if row.name.startswith(f"{name}.")] for name in channels}
    parameters = {name: sum(p.numel() for p in network.get_submodule(name).parameters()) for name in ("", *channels)}
    found = {
        name: PartCost(len(channels[name].shift), parameters[name], sum(row.ops for row in rows[name]))
        for name in channels
    }
    total = sum(part.channels for part in found.values())
    return {**found, ALL: PartCost(total, parameters[""], cost.ops)}


def _checkpoint(
    content: Mapping[str, Any], state: dict[str, Tensor], inner_channels: list[int], settings: CompressSettings
) -> dict[str, Any]:
    """What the new file holds; its network is described with the channels that are left."""
    described = copy.deepcopy(content.get("hyper_parameters"))
    backbone = described.get("backbone") if isinstance(described, dict) else None
    if not isinstance(backbone, dict) or not isinstance(backbone.get("init_args", {}), dict):
        raise InputError(
            f"source={str(settings.source)!r} does not say which network its weights belong to, as checkpoints of a "
            "bnfree run do, so that the compressed one could not say it either; give one of a run."
        )
    backbone["init_args"] = {**backbone.get("init_args", {}), "inner_channels": inner_channels}
    kept = {key: content[key] for key in KEPT if key in content}
    return {**kept, "hyper_parameters": described, "state_dict": state, NAMES: remembered_names(content)}

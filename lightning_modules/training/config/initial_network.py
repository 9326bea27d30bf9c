"""Which network initial weights are of: its class and arguments, for a config that leaves them to the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.errors import InputError
from bnfree.lightning_modules.modules.initial_weights import find_packed
from bnfree.lightning_modules.training.checkpoints import remembered_config
from bnfree.packing.bits import TernaryWeight
from bnfree.packing.file_format import read
from bnfree.packing.hub import is_hub, pull
from bnfree.packing.layers import PackedLayers
from bnfree.reference import is_public_checkpoint, load_checkpoint
from bnfree.state_dicts import read_checkpoint_file


def network_behind(source: str) -> dict[str, Any] | None:
    """Class path and arguments of the network that a file is of; None where it does not say, or cannot be read.

    Args:
        source: a checkpoint of a `bnfree` run, a ticket, a packed file, the name of a pretrained network, or a
            checkpoint of the public code, taken for one of training step 2.

    Raises:
        InputError: a packed file or a public checkpoint whose network cannot be told from its weights; a checkpoint
            that holds no plain values.
    """
    source = str(pull(source)) if is_hub(source) else source
    packed = find_packed(Path(source))
    if packed is not None:
        return _of_packed(read(packed)[0], source)
    try:
        content: Any = read_checkpoint_file(source, f"init_from={source!r}")
    except InputError:
        # What is wrong with the file is said when its weights are wanted.
        return None
    if not isinstance(content, Mapping):
        return None
    # Checked by whoever builds something of it.
    remembered = remembered_config(content).get("model", {}).get("init_args", {}).get("backbone")
    if isinstance(remembered, Mapping) and isinstance(remembered.get("init_args", {}), Mapping):
        return dict(remembered)
    return _of_public(content) if is_public_checkpoint(content) else None


def _of_public(content: Mapping[str, Any]) -> dict[str, Any]:
    network = load_checkpoint(content)
    variant = network.variant
    arguments: dict[str, Any] = {"norm": variant.norm, "alpha": variant.alpha}
    if isinstance(network, ReActNet18):
        arguments["binary_shortcut"] = variant.binary_shortcut
    width, stem = network.stem.convolution.out_channels, "cifar" if network.stem.convolution.stride == 1 else "imagenet"
    return _described(type(network), network.num_classes, network.in_channels, width, stem, arguments)


def _of_packed(layers: PackedLayers, source: str) -> dict[str, Any]:
    kinds = {kind.__name__: kind for kind in (ReActNet18, ReActNetA)}
    if layers.architecture not in kinds:
        raise InputError(
            f"init_from={source!r} is packed from {layers.architecture}, whose arguments are not in the file; give "
            "model.backbone."
        )
    kind, arguments = kinds[layers.architecture], {}
    if kind is ReActNet18:
        arguments["binary_shortcut"] = any(isinstance(unit.projection, TernaryWeight) for unit in layers.units)
    stem = "imagenet" if layers.stem.stride == 2 else "cifar"
    width = layers.stem.weight.values.shape[0]
    return _described(kind, layers.num_classes, layers.in_channels, width, stem, arguments)


def _described(
    kind: type, num_classes: int, in_channels: int, width: int, stem: str, arguments: dict[str, Any]
) -> dict[str, Any]:
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "width": width, "stem": stem}
    return {"class_path": f"bnfree.backbones.{kind.__name__}", "init_args": {**sizes, **arguments}}

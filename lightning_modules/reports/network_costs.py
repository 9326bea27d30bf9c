"""What a network costs: operations and stored bits, and the memory that a training step keeps of each image."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from torch import nn

from bnfree.costs import NetworkCost, count_ops
from bnfree.errors import InputError
from bnfree.lightning_modules.training.network import build_network, image_shape, load_weights, read_description
from bnfree.packing import pack
from bnfree.saved_memory import measure_saved_memory


@dataclass(frozen=True)
class SummarySettings:
    """Which network is counted, and on which images."""

    source: str | Path | Namespace
    """A YAML config, its name, a run directory or a checkpoint; or what a parser has read."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Plain values by dotted name that beat it, such as `{"model.backbone.width": 16}`."""
    image_shape: Sequence[int] | None = None
    """(C, H, W); None: that of the data section, which is not looked for."""


@dataclass(frozen=True)
class KeptMemory:
    """Bytes that the forward pass keeps for the backward pass."""

    per_image: dict[str, float]
    """By layer, for each image of the batch."""
    fixed: dict[str, float]
    """By layer, whatever the batch."""


@dataclass(frozen=True)
class SummaryResult:
    """What a network costs."""

    name: str
    """Name of its class."""
    checkpoint: str | None
    """Where its weights come from; None: it is freshly built."""
    image_shape: tuple[int, ...]
    """(C, H, W)."""
    network: nn.Module
    """The network, whose masks and weights count."""

    @cached_property
    def cost(self) -> NetworkCost:
        """Operations, parameters and stored bits, layer by layer.

        Raises:
            InputError: the network cannot process such images.
        """
        return count_ops(self.network, self.image_shape)

    @cached_property
    def file_size(self) -> int | None:
        """Bytes of the file that `export` writes of it, but for what that says of the data; None: it writes none."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "network.safetensors"
            try:
                pack(self.network, engine="torch").save(file)
            except InputError:
                return None
            return file.stat().st_size

    @cached_property
    def memory(self) -> KeptMemory:
        """What a training step keeps, layer by layer.

        Raises:
            InputError: the network cannot process such images.
        """
        return kept_memory(self.network, self.image_shape, self.name)


def summary(settings: SummarySettings) -> SummaryResult:
    """Builds the network of a config, of a run or of a checkpoint, and nothing else, to count in it.

    Args:
        settings: which network, and on which images.

    Raises:
        InputError: nothing that describes a network, a checkpoint that does not fit, or an unknown shape of images.

    Example:
        >>> from bnfree.lightning_modules import SummarySettings, summary
        >>> found = summary(SummarySettings("quickstart", {"model.backbone.width": 8}))  # doctest: +SKIP
        >>> found.cost.ops  # doctest: +SKIP
        231680.0
    """
    config = settings.source
    if not isinstance(config, Namespace):
        config = read_description(config, settings.options)
    network, prefix = build_network(config)
    if config.ckpt_path is not None:
        load_weights(network, prefix, config.ckpt_path, config.weights_only is not False)
    given = settings.image_shape
    shape = image_shape(config, network) if given is None else tuple(given)
    return SummaryResult(type(network).__name__, config.ckpt_path, shape, network)


def kept_memory(network: nn.Module, image_shape: Sequence[int], name: str = "the network") -> KeptMemory:
    """Bytes that the forward pass keeps for the backward pass, for one image and for the weights.

    Both come from a batch of two and one of four images, on the network in training mode: what grows with the batch,
    and what does not.

    Args:
        network: from images to logits.
        image_shape: (C, H, W).
        name: what messages call the network.

    Raises:
        InputError: the network cannot process such images.
    """
    network.train()
    images = torch.randn(4, *image_shape, generator=torch.Generator().manual_seed(0))
    try:
        # The first batch is the larger one, since batch norm refuses a single value in a channel.
        four, two = (measure_saved_memory(network, images[:count].clone()).layers for count in (4, 2))
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(f"image_shape={tuple(image_shape)} does not go through {name} ({reason}).") from error
    return KeptMemory(
        {layer: (size - two.get(layer, 0)) / 2 for layer, size in four.items()},
        {layer: 2.0 * two.get(layer, 0) - size for layer, size in four.items()},
    )

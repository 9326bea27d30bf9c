"""What a packed network consists of: constants and bits, nothing that is trained.

A residual unit is RPReLU(shortcut + scale * sum of signs), where the signs of its input come from comparisons: bit 1
where input >= threshold. Standardisation, the sign of the gain, the magnitude of the weights, alpha and batch norm are
in the bits, the scale and the first shift of the RPReLU; beta is in the thresholds and in the shortcut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from torch import Tensor

from bnfree.packing.bits import TernaryWeight
from bnfree.packing.real_weights import RealWeight


@dataclass(frozen=True)
class PackedStem:
    """The real first convolution, zero-padded by (k - 1) / 2."""

    weight: RealWeight
    """(O, I, k, k)."""
    bias: Tensor
    """float32 (O,)."""
    stride: int
    pool: bool
    """Whether max pooling (3x3, stride 2, padding 1) follows."""


@dataclass(frozen=True)
class PackedUnit:
    """A residual unit around a binary convolution, zero-padded by (k - 1) / 2.

    With stride 2 the shortcut is the 2x2 average of the input, incomplete windows at odd edges included. It is then
    multiplied by `shortcut_scale` or convolved with `projection`, and repeated until it has O channels.
    """

    thresholds: Tensor
    """float32 (I,): an input is +1 from its channel's threshold on, else -1."""
    weight: TernaryWeight
    """(O, I, k, k)."""
    rprelu: Tensor
    """float32 (3, O): shift in front of the PReLU, slope, shift behind it."""
    stride: int
    projection: TernaryWeight | RealWeight | None
    """1x1 convolution of the shortcut, (O, I, 1, 1), or None."""
    shortcut_scale: float
    """Factor of the shortcut, representable in float32; 1 where there is a projection."""


@dataclass(frozen=True)
class PackedClassifier:
    """The linear layer behind global average pooling."""

    weight: RealWeight
    """(classes, C)."""
    bias: Tensor
    """float32 (classes,)."""


@dataclass(frozen=True)
class PackedLayers:
    """A whole network."""

    architecture: str
    """Name of the class that was packed, for the reader."""
    stem: PackedStem
    units: tuple[PackedUnit, ...]
    classifier: PackedClassifier

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return self.stem.weight.values.shape[1]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.classifier.weight.values.shape[0]


def tensors_of(layer: object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a layer, a tuple of layers or a whole network, with its path of attributes."""
    if isinstance(layer, Tensor):
        yield prefix, layer
    elif isinstance(layer, tuple) and not all(isinstance(entry, int) for entry in layer):
        for index, entry in enumerate(layer):
            yield from tensors_of(entry, f"{prefix}.{index}")
    elif hasattr(layer, "__dataclass_fields__"):
        for field in fields(layer):  # type: ignore[arg-type]
            yield from tensors_of(getattr(layer, field.name), f"{prefix}.{field.name}".lstrip("."))

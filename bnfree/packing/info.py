"""What a packed network's file says about its images, its classes and where it comes from."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from bnfree.errors import InputError
from bnfree.packing.pixels import Normalization


@dataclass(frozen=True)
class NetworkInfo:
    """What someone needs to use a network; every field may be None: not known."""

    mean: tuple[float, ...] | None = None
    """Mean per channel that is subtracted from images scaled to [0, 1]."""
    std: tuple[float, ...] | None = None
    """Standard deviation per channel that they are divided by afterwards."""
    image_shape: tuple[int, int, int] | None = None
    """(C, H, W) of the images that the network was trained on; it takes other sizes too."""
    class_names: tuple[str, ...] | None = None
    """A name per class."""
    source_run: str | None = None
    """The run or checkpoint that was packed."""
    accuracy: float | None = None
    """Accuracy of the network that was packed, between 0 and 1."""
    resize: int | None = None
    """Pixels that the shorter side of an image file is resized to before the centre is cropped to `image_shape`."""
    exif_orientation: bool | None = None
    """False: image files are taken as their pixels lie, and not turned as their EXIF data ask for, as in training."""

    def __post_init__(self) -> None:
        for name in ("mean", "std", "image_shape", "class_names"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))

    @property
    def normalization(self) -> Normalization | None:
        """How 8-bit images become the network's input, if that is known."""
        return None if self.mean is None or self.std is None else Normalization(self.mean, self.std)

    def check(self, in_channels: int, num_classes: int) -> None:
        """Compares with a network.

        Raises:
            InputError: a value of another kind, or one that does not fit the network.
        """
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is None:
                continue
            numbers = isinstance(values, tuple) and len(values) == in_channels and all(map(_is_number, values))
            if not numbers or (name == "std" and min(values) <= 0):
                kind = "positive numbers" if name == "std" else "numbers"
                raise InputError(f"{name}={values!r} must be {in_channels} {kind}, one per channel of the images.")
        shape = self.image_shape
        if shape is not None:
            sizes = isinstance(shape, tuple) and len(shape) == 3 and all(_is_size(size) for size in shape)
            if not sizes or shape[0] != in_channels:
                raise InputError(f"image_shape={shape!r} must be (C, H, W), positive integers with C={in_channels}.")
        if self.resize is not None and not (_is_size(self.resize) and self.resize >= max((shape or (1,))[-2:])):
            raise InputError(
                f"resize={self.resize!r} must be an integer and at least the sizes of image_shape={shape!r}."
            )
        if self.exif_orientation is not None and not isinstance(self.exif_orientation, bool):
            raise InputError(f"exif_orientation={self.exif_orientation!r} must be true or false.")
        names = self.class_names
        if names is not None:
            if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
                raise InputError("class_names must be a list of strings.")
            if len(names) != num_classes:
                raise InputError(f"class_names has {len(names)} names, the network {num_classes} classes.")
        if self.source_run is not None and not isinstance(self.source_run, str):
            raise InputError(f"source_run={self.source_run!r} must be a string.")
        if self.accuracy is not None and not (_is_number(self.accuracy) and 0 <= self.accuracy <= 1):
            raise InputError(f"accuracy={self.accuracy!r} must be a fraction between 0 and 1.")

    def to_dict(self) -> dict[str, Any]:
        """As plain values, unknown ones left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: Any) -> NetworkInfo:
        """From what `to_dict` has given.

        Raises:
            InputError: no dictionary of these fields.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or not set(values) <= names:
            raise InputError(f"its info is not a table of {', '.join(sorted(names))}.")
        return cls(**values)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    # Integers of any length come out of a file; the comparison with a float is exact.
    return -1e30 < value < 1e30 and not math.isnan(value)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 1 << 20

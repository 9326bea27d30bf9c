"""Stride, padding and groups of a convolution."""

from __future__ import annotations

from typing import NamedTuple


class Geometry(NamedTuple):
    """How the filters of a `BinaryConv2d` move."""

    stride: int
    padding: int
    groups: int

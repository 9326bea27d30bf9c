"""Nothing behind the convolutions and nothing in its place: what remains of a network without its batch norm."""

from __future__ import annotations


def none(channels: int) -> None:
    """Nothing; plain weights, no alpha, no beta."""

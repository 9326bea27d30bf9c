"""Structured compression: networks with fewer channels, or with fewer rows in their convolutions."""

from bnfree.compression.rows import count_rows, remove_rows, row_layers, zero_rows

__all__ = ["count_rows", "remove_rows", "row_layers", "zero_rows"]

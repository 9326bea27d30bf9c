"""Seeded randomness that is the same in every process and does not touch the global random state."""

from __future__ import annotations

import hashlib

import torch


def layer_generator(seed: int, name: str) -> torch.Generator:
    """A generator on the CPU that depends on a seed and the name of a layer alone."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

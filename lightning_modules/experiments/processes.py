"""Processes of one experiment wait for each other."""

import torch


def barrier() -> None:
    """Waits until all processes are here; returns at once before any of them has met the others."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()

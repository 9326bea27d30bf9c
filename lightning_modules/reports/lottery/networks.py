"""The trained networks of a run's levels, for counting in them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from bnfree.costs import count_ops
from bnfree.errors import InputError
from bnfree.lightning_modules.training.network import load_weights, network_of
from bnfree.lightning_modules.training.run_directory import CHECKPOINTS, CONFIG, latest_config
from bnfree.tickets import effective_zeros


class Networks:
    """Builds each architecture once, however many levels have trained it.

    A report does not fail because a class of the user's has moved, or a checkpoint was removed to make room: what
    cannot be counted is left out.

    Attributes:
        notes: why something has been left out, each reason once.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._built: dict[str, _Built | None] = {}

    def effective_zeros(self, directory: Path) -> dict[str, int]:
        """Zeros among the effective weights of each convolution, in the last checkpoint; empty if it is not to be had.

        Args:
            directory: the level's folder, a run directory.
        """
        built = self._of(directory)
        if built is None:
            return {}
        network = copy.deepcopy(built.network)
        try:
            load_weights(network, built.prefix, str(directory / CHECKPOINTS / "last.ckpt"), weights_only=True)
        except InputError as error:
            self._note(f"Zeros are not counted where a checkpoint is missing or does not fit: {error}")
            return {}
        return effective_zeros(network)

    def bops(self, directory: Path) -> dict[str, int]:
        """Binary operations per image of each layer, pruned weights included; empty if the network is not to be had.

        Args:
            directory: the level's folder, a run directory.
        """
        built = self._of(directory)
        return {} if built is None else built.bops

    def _of(self, directory: Path) -> _Built | None:
        if not (directory / CONFIG).is_file():
            self._note(f"Zeros and operations are not counted where a level has no {CONFIG}, as in {directory}.")
            return None
        config = latest_config(directory)
        key = _architecture(config)
        if key not in self._built:
            try:
                # Building draws weights, which are of no use here.
                with torch.random.fork_rng():
                    self._built[key] = _Built(*network_of(config))
            except Exception as error:
                # The network is the user's own code, and anything may be wrong with it by now.
                self._note(f"Zeros and operations are not counted, for the network cannot be built: {error}")
                self._built[key] = None
        return self._built[key]

    def _note(self, line: str) -> None:
        if line.partition(":")[0] not in {note.partition(":")[0] for note in self.notes}:
            self.notes.append(" ".join(line.split()))


class _Built:
    def __init__(self, network: nn.Module, prefix: str, image_shape: tuple[int, ...]) -> None:
        self.network, self.prefix = network, prefix
        self.bops = {row.name: row.bops for row in count_ops(network, image_shape).rows}


def _architecture(config: Path) -> str:
    """What decides the network and its images: equal for all levels of a run, whatever they start from."""
    content: dict[str, Any] = yaml.safe_load(config.read_text(encoding="utf-8"))
    model = content.get("model") or {}
    backbone = (model.get("init_args") or {}).get("backbone")
    return json.dumps([model if backbone is None else backbone, content.get("data")], sort_keys=True, default=str)

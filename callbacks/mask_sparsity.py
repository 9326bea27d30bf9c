"""MaskSparsity as a callback; marking, penalty and cutting are `bnfree.compression`."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from bnfree.callbacks.row_cutting import cut_rows, layers_to_cut, say_nothing_was_cut, stand_behind_clipping
from bnfree.compression.mask_sparsity import Phases, add_sparsity_gradient_, mark_rows, rows_to_cut
from bnfree.compression.rows import count_rows
from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError
from bnfree.state_dicts import backbone_of


class MaskSparsity(Callback):
    """Changes training: marks rows of the binary convolutions, pulls their gains to 0, and cuts them for good.

    Phases, by epochs: `dense` (nothing), `mask` (a penalty on all gains, only without a `ratio`), then rows are marked,
    `regularise` (the penalty on the gains of marked rows alone), then those that have come below `threshold` are cut,
    and the rest of the run fine-tunes what is left. The subgradient strength * sign(gain) is added once in each
    optimizer step, behind `AdaptiveGradientClipping`, which does not clip it. A cut shrinks parameters, gradients and
    the optimizer's state in place, see `bnfree.compression.remove_rows`; checkpoints load without this callback, and a
    run goes on exactly in every phase. `best.ckpt` is chosen anew after the cut.

    Logs `mask_sparsity/rows`, the share of rows that are left, and `mask_sparsity/marked_gain`, the mean |gain| of
    marked rows, at the end of each epoch.

    Source: see `bnfree.compression.mask_sparsity`.

    Args:
        ratio: share of the rows of each layer that is marked; null: those below `threshold` after the mask phase.
        strength: of the penalty; with Adam, which divides gradients by their size, larger than that of the source.
        threshold: |gain| below which a marked row is cut; `.inf` cuts all that are marked.
        dense_epochs: length of the phase; null: 40 % of the run.
        mask_epochs: null: 10 % of the run, or 0 with a `ratio`.
        regularise_epochs: null: 30 % of the run, at least one.

    Raises:
        InputError: a value out of range; at the start of a run also phases that leave nothing to fine-tune in, a
            network without rows that can go or without gains, or what does not go with a cut.
    """

    def __init__(
        self,
        ratio: float | None = 0.3,
        strength: float = 5e-4,
        threshold: float = 0.01,
        dense_epochs: int | None = None,
        mask_epochs: int | None = None,
        regularise_epochs: int | None = None,
    ) -> None:
        if ratio is not None and not 0 < ratio < 1:
            raise InputError(f"ratio={ratio} must be greater than 0 and less than 1.")
        if not 0 < strength < float("inf") or not threshold > 0:
            raise InputError(f"strength={strength} and threshold={threshold} must be greater than 0.")
        for name, value, least in (
            ("dense_epochs", dense_epochs, 0),
            ("mask_epochs", mask_epochs, 0),
            ("regularise_epochs", regularise_epochs, 1),
        ):
            if value is not None and value < least:
                raise InputError(f"{name}={value} must be at least {least}.")
        if ratio is not None and mask_epochs:
            raise InputError(f"mask_epochs={mask_epochs} is for ratio=null; with ratio={ratio} leave it out.")
        self.ratio, self.strength, self.threshold = ratio, strength, threshold
        self.dense_epochs, self.mask_epochs, self.regularise_epochs = dense_epochs, mask_epochs, regularise_epochs
        self._forget()
        self._marked: dict[str, Tensor] | None = None
        self._cut = False

    def _forget(self) -> None:
        self._layers: dict[str, BinaryConv2d] = {}
        self._phases: Phases | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses what has no rows to cut."""
        if stage != "fit":
            return
        self._marked, self._cut = None, False
        self._layers = layers_to_cut(trainer, pl_module, "MaskSparsity")
        self._phases = Phases.of_run(
            trainer.max_epochs, self.dense_epochs, self.mask_epochs, self.regularise_epochs, self.ratio
        )
        stand_behind_clipping(trainer, self)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Marks, and cuts."""
        if self._phases is None or self._cut:
            return
        if self._marked is None and trainer.current_epoch >= self._phases.mark_at:
            self._marked = mark_rows(self._layers, self.ratio, self.threshold)
        if trainer.current_epoch >= self._phases.cut_at:
            gone = rows_to_cut(self._layers, self._marked or {}, self.threshold)
            cut_rows(trainer, pl_module, gone, "MaskSparsity")
            self._cut = True

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Adds the penalty's subgradient."""
        phase = "finetune" if self._phases is None or self._cut else self._phases.of(trainer.current_epoch)
        if phase == "mask":
            for layer in self._layers.values():
                add_sparsity_gradient_(layer, self.strength)
        elif phase == "regularise" and self._marked is not None:
            for name, rows in self._marked.items():
                add_sparsity_gradient_(self._layers[name], self.strength, rows)

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs how far it has come."""
        left, whole = count_rows(backbone_of(pl_module))
        pl_module.log("mask_sparsity/rows", left / whole, on_step=False, on_epoch=True, sync_dist=True)
        if self._marked is not None and not self._cut:
            gains = [_gains_of(self._layers[name], rows) for name, rows in self._marked.items()]
            mean = torch.cat([*gains, torch.zeros(0, device=pl_module.device)]).abs().mean().nan_to_num()
            pl_module.log("mask_sparsity/marked_gain", mean, on_step=False, on_epoch=True, sync_dist=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says so where the end came before the cut."""
        if self._phases is not None and not self._cut:
            say_nothing_was_cut(trainer, self._phases.cut_at, "MaskSparsity")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets go of the network."""
        self._forget()

    def state_dict(self) -> dict[str, Any]:
        """Which rows are marked, and whether they are cut."""
        marked = None if self._marked is None else {name: rows.tolist() for name, rows in self._marked.items()}
        return {"marked": marked, "cut": self._cut}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a training that has been interrupted."""
        self._cut, marked = bool(state_dict["cut"]), state_dict["marked"]
        self._marked = None if marked is None else {n: torch.tensor(r, dtype=torch.int64) for n, r in marked.items()}


def _gains_of(layer: BinaryConv2d, rows: Tensor) -> Tensor:
    gains = torch.zeros(layer.out_channels, device=layer.weight.device)
    places = torch.arange(layer.out_channels, device=gains.device)
    if layer.gain is not None:
        gains[layer.of_rows(places)] = layer.gain.flatten().float()
    return gains[rows.to(gains.device)]

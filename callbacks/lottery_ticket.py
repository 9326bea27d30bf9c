"""A lottery ticket as a callback; the masks themselves and all that is computed with them are `bnfree.tickets`."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn

from bnfree import checksums
from bnfree.callbacks.networks import network_to_call
from bnfree.callbacks.rewind_checkpoint import write_rewind_point
from bnfree.callbacks.run_files import run_directory
from bnfree.callbacks.strategies import refuse_sharded_parameters
from bnfree.callbacks.ticket_evidence import loss_gradients
from bnfree.compression.rows import keep_rows_of
from bnfree.convolution import BinaryConv2d
from bnfree.diagnostics.signs import convolutions
from bnfree.errors import InputError
from bnfree.files import whole_file
from bnfree.state_dicts import backbone_of
from bnfree.tickets import (
    FlipCounts,
    RewindPoint,
    Ticket,
    apply,
    effective_density,
    load_ticket,
    prunable_layers,
    rewind,
    zero_pruned,
)
from bnfree.tickets.scores import get_score

REWIND, GRADIENTS = "rewind.pt", "gradients.pt"


class LotteryTicket(Callback):
    """Changes training: trains a ticket, whose pruned weights are and stay 0; or prepares the dense run before it.

    A fresh fit starts from the weights of the ticket under its masks, and is not calibrated again; a resumed one goes
    on. The masks lie in the layers and in every checkpoint, which loads into any network without this callback. The
    latent weights of pruned weights, the optimizer's state of them and their place in averages
    (`WeightAveraging`) are 0 from the first step on, so that adaptive gradient clipping sees the norm of the survivors
    and nothing decays or drifts.

    Logs `ticket/density` at the end of each training epoch: the share of weights that are not 0 in the effective weight
    of the layers, 1 without a ticket. `bnfree lottery run` uses one such callback in each of its levels.

    Args:
        ticket: the ticket file; null: a dense network, for what follows.
        start: `weights`: a fresh fit starts from the weights that the ticket was rewound to (or, if it was not, from
            those it was found with); `mask`: it keeps those of the model, only masked.
        rewind_point: writes `rewind.pt` into the run directory, the state before an optimizer step: `init`, `500it`
            (before optimizer step 500; accumulated batches are one step), `2ep` (after two epochs) or `3%` (of all
            optimizer steps). The file's weights are a start for `model.init_from`.
        score: gathers what this score of `bnfree.tickets` needs for the next pruning: for `flip` how often each sign
            changes in the second half of the steps, which checkpoints hold; for `snip` gradients over 1,024 training
            images at the end, in `gradients.pt` of the run directory.
        include: layers that this is about, if there is no ticket, see `bnfree.tickets.prunable_layers`.
        exclude: likewise, layers that it is not about.

    Raises:
        InputError: a value out of range; at the start of a run also a file that is no ticket of this network, another
            `init_from` beside `start: weights`, a checkpoint of another ticket, a rewind point behind the end, or
            parameters split among processes (FSDP, model parallelism, DeepSpeed).

    Example:
        >>> from bnfree.backbones import ReActNet18
        >>> from bnfree.tickets import Ticket, apply, prune, save_ticket
        >>> network = ReActNet18(num_classes=10, width=8)
        >>> apply(network, prune(network, density=0.2))
        >>> save_ticket(Ticket.of(network, score="standardized", scope="global", density=0.2), "ticket.pt")
        >>> trainer = Trainer(callbacks=[LotteryTicket("ticket.pt")], logger=False)
    """

    def __init__(
        self,
        ticket: str | None = None,
        start: Literal["weights", "mask"] = "weights",
        rewind_point: str | None = None,
        score: str | None = None,
        include: list[str] | None = None,
        exclude: list[str] | None = None,
    ) -> None:
        if start not in ("weights", "mask"):
            raise InputError(f"start={start!r} is not known; choose 'weights' or 'mask'.")
        self.ticket, self.start, self.include, self.exclude = ticket, start, include, exclude or []
        self.rewind_point = None if rewind_point is None else RewindPoint.parse(rewind_point)
        needs = () if score is None else get_score(score).needs
        self._counts_flips, self._wants_gradients = "flip_rate" in needs, "gradient" in needs
        self._mask_checksum = ""
        self._seconds = 0.0
        self._restored_flips: dict[str, Any] | None = None
        self._forget()

    def _forget(self) -> None:
        self._layers: dict[str, BinaryConv2d] = {}
        self._flips: FlipCounts | None = None
        self._rewind_step = self._flips_from = -1
        self._step = -1
        self._since: float | None = None
        self._directory = Path()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Masks the network: before its weights are restored, and before a strategy wraps it."""
        if stage != "fit":
            return
        refuse_sharded_parameters(trainer, "LotteryTicket")
        self._forget()
        network = backbone_of(pl_module)
        if self._wants_gradients:
            network_to_call(pl_module, "LotteryTicket with such a score", itself=True)
        if self.ticket is None:
            self._layers = prunable_layers(network, self.include, self.exclude)
            return
        ticket = load_ticket(self.ticket)
        self._mask_checksum = ticket.checksum
        if trainer.strategy.broadcast(self._mask_checksum) != self._mask_checksum:
            raise InputError(f"ticket={self.ticket!r} is another file in another process; give one that all can read.")
        keep_rows_of(network, ticket.state_dict)
        if trainer.ckpt_path is None and self.start == "weights":
            self._start_from(ticket, network, pl_module)
        apply(network, ticket.masks)
        self._layers = {name: convolutions(network)[name] for name in ticket.masks}
        for callback in _averages(trainer):
            if callback._use_buffers and not {"avg_fn", "multi_avg_fn"} & set(callback._kwargs):
                raise InputError(
                    "WeightAveraging(use_buffers=True) takes differences of all buffers, which masks do not have; set "
                    "its use_buffers to false, or use EMAWeightAveraging."
                )
            if callback._average_model is not None:
                # A copy of the dense network, whose list of buffers must be that of the masked one.
                keep_rows_of(backbone_of(callback._average_model.module), ticket.state_dict)
                apply(backbone_of(callback._average_model.module), ticket.masks)

    def _start_from(self, ticket: Ticket, network: nn.Module, pl_module: LightningModule) -> None:
        module: Any = pl_module
        given = getattr(module, "init_from", None)
        if given not in (None, self.ticket):
            raise InputError(
                f"model.init_from={given!r} and LotteryTicket(ticket={self.ticket!r}) both say what training starts "
                "from; leave out model.init_from, or set the callback's start to 'mask'."
            )
        weights = {name: value for name, value in ticket.start().items() if not name.endswith(".mask")}
        rewind(network, weights, ticket.masks)
        if hasattr(module, "init_from"):
            # What starts from given weights is not calibrated.
            module.init_from = self.ticket

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Asks for the run directory, which all processes must do together."""
        self._directory = run_directory(trainer)
        if self._counts_flips:
            self._flips = FlipCounts(self._layers)
            if self._restored_flips is not None:
                self._flips.load_state_dict(self._restored_flips)
        self._restored_flips = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clears pruned weights out of the states that have been restored."""
        self._since = time.monotonic()
        if self.rewind_point is not None:
            per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
            self._rewind_step = self.rewind_point.step(per_epoch, trainer.estimated_stepping_batches)
        if self._counts_flips:
            total = trainer.estimated_stepping_batches
            self._flips_from = 0 if total == float("inf") else int(total) // 2
        if self.ticket is not None:
            zero_pruned(backbone_of(pl_module))
            for optimizer in trainer.optimizers:
                zero_pruned(backbone_of(pl_module), optimizer)
            for callback in _averages(trainer):
                if callback._average_model is not None:
                    zero_pruned(backbone_of(callback._average_model.module))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Writes the rewind point before its step, and begins to count flips in the middle of training."""
        first_batch, self._step = trainer.global_step != self._step, trainer.global_step
        if first_batch and self._step == self._rewind_step:
            write_rewind_point(trainer, pl_module, backbone_of(pl_module), self._directory / REWIND)
        if first_batch and self._step == self._flips_from and self._flips is not None:
            self._flips.reset()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keeps what is pruned at 0, also under optimizers that move weights without a gradient; counts flips."""
        if trainer.global_step == self._step:
            return
        if self.ticket is not None:
            for optimizer in trainer.optimizers:
                zero_pruned(backbone_of(pl_module), optimizer)
        if self._flips is not None and self._step >= self._flips_from:
            self._flips.observe()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the density that the convolutions see."""
        density = effective_density(backbone_of(pl_module), self._layers)
        pl_module.log("ticket/density", density, on_step=False, on_epoch=True, sync_dist=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gathers the gradients of a training that has ended, also if it had ended before it was resumed."""
        if not self._wants_gradients or not self._layers:
            return
        if self._since is None:
            for callback in _averages(trainer):
                callback.on_train_end(trainer, pl_module)
        gradients = loss_gradients(trainer, pl_module, backbone_of(pl_module), self._layers)
        if trainer.is_global_zero:
            with whole_file(self._directory / GRADIENTS) as unfinished:
                checksums.save(gradients, unfinished)
        trainer.strategy.barrier("gradients.pt")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets go of the network."""
        self._forget()

    def state_dict(self) -> dict[str, Any]:
        """Which masks these are, how long training has taken in all, and the flip counts."""
        now = 0.0 if self._since is None else time.monotonic() - self._since
        state: dict[str, Any] = {"mask_checksum": self._mask_checksum, "seconds": self._seconds + now}
        return state if self._flips is None else {**state, "flips": self._flips.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a training that has been interrupted.

        Raises:
            InputError: it was that of another ticket.
        """
        if self._layers and state_dict["mask_checksum"] != self._mask_checksum:
            raise InputError(
                f"ticket={self.ticket!r} has other masks than the checkpoint that this run goes on from; give the "
                "ticket that it was started with."
            )
        self._seconds = state_dict["seconds"]
        self._restored_flips = state_dict.get("flips")


def _averages(trainer: Trainer) -> list[Any]:
    return [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]

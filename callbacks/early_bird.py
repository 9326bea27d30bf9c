"""Early-bird tickets as a callback; when a mask has settled is `bnfree.tickets.mask_history`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from bnfree.callbacks.run_files import run_directory
from bnfree.callbacks.strategies import refuse_sharded_parameters
from bnfree.callbacks.ticket_config import remembered_config
from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError
from bnfree.state_dicts import backbone_of
from bnfree.tickets import (
    Masks,
    RewindPoint,
    Snapshot,
    Ticket,
    checksum,
    least_density,
    pack_masks,
    prunable_layers,
    prune,
    save_ticket,
    take_snapshot,
    unpack_masks,
)
from bnfree.tickets.mask_history import MaskHistory, check_tolerance
from bnfree.tickets.schedule import check_density
from bnfree.tickets.scopes import get_scope
from bnfree.tickets.scores import get_score

# What a resumed run may not change.
SETTINGS = ("density", "score", "scope", "include", "exclude", "min_per_filter", "min_layer_density", "rewind_point")


class EarlyBird(Callback):
    """Changes training: stops it as soon as the mask that pruning would give has settled, and writes the ticket.

    At the end of each epoch it works out the mask that pruning to `density` would give at this moment, without applying
    it, and logs `ticket/mask_distance`: the largest share of the weights in which one of the last `window` epochs'
    masks differs from the newest. Once there are `window` masks and that is below `tolerance`, training stops and the
    ticket file is written into the run directory: the mask, the weights of the moment, and the weights that its
    training is to start from. `bnfree lottery early-bird` trains from there.

    The first process works the mask out, the others take it over. A resumed run goes on with the masks and the start
    weights of its checkpoint. A run that ends before the mask has settled writes no ticket, and says so.

    Source: You et al., "Drawing early-bird tickets" (ICLR 2020, arXiv 1909.11957), whose mask is one of channels by
    batch norm's scale; here it is one of single weights, by any score of `bnfree.tickets`.

    Args:
        density: share of the weights of the prunable layers that survive in the ticket, above 0 and below 1.
        score: what is kept, see `bnfree.tickets.scores`; not `snip` or `flip`, which need more than the weights.
        scope: among which weights the ranking is made, see `bnfree.tickets.scopes`.
        window: number of epochs whose masks are compared.
        tolerance: distance below which masks count as equal; two unrelated masks of density d differ in 2d(1 - d).
        rewind_point: the moment whose weights the ticket starts from: `init`, `500it` (before optimizer step 500),
            `2ep` (after two epochs), `3%` (of all steps); null: from the weights at which training stopped. They are
            in the checkpoints from that moment on.
        include: names of layers to prune in place of the convolutions of the residual units, with `*` and `?`.
        exclude: names of layers to leave dense, likewise.
        min_per_filter: weights that each filter keeps.
        min_layer_density: share of its weights that each layer keeps.
        filename: name of the ticket file.

    Raises:
        InputError: a value out of range; at the start of a run also a pattern that fits no layer, a density that the
            guards do not allow, a rewind point behind the end, settings other than those of the checkpoint that is
            resumed, or parameters split among processes (FSDP, model parallelism, DeepSpeed).
    """

    def __init__(
        self,
        density: float,
        score: str = "standardized",
        scope: str = "global",
        window: int = 5,
        tolerance: float = 0.1,
        rewind_point: str | None = "init",
        include: list[str] | None = None,
        exclude: list[str] | None = None,
        min_per_filter: int = 1,
        min_layer_density: float = 0.0,
        filename: str = "ticket.pt",
    ) -> None:
        check_density(density)
        self.history = MaskHistory(window, tolerance)
        check_tolerance(tolerance, density)
        if get_score(score).needs:
            raise InputError(
                f"score={score!r} needs more than the weights of the moment; EarlyBird takes one that does not, such "
                "as 'standardized'."
            )
        get_scope(scope)
        if not Path(filename).name:
            raise InputError(f"filename={filename!r} must name a file, such as 'ticket.pt'.")
        self.density, self.score, self.scope, self.rewind_point = density, score, scope, rewind_point
        self.include, self.exclude, self.filename = include, exclude or [], filename
        self.min_per_filter, self.min_layer_density = min_per_filter, min_layer_density
        self._point = None if rewind_point is None else RewindPoint.parse(rewind_point)
        self._start: Snapshot | None = None
        self._start_step = -1
        self._epochs = 0
        self._layers: dict[str, BinaryConv2d] = {}
        self._directory: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses what is known to fail, before anything is trained."""
        if stage != "fit":
            return
        refuse_sharded_parameters(trainer, "EarlyBird")
        self.history = MaskHistory(self.history.window, self.history.tolerance)
        self._start, self._epochs = None, 0
        self._layers = prunable_layers(backbone_of(pl_module), self.include, self.exclude)
        least = least_density(self._layers, self.scope, self.min_per_filter, self.min_layer_density)
        if self.density < least:
            raise InputError(
                f"density={self.density} is below {least:.4g}, what min_per_filter={self.min_per_filter} and "
                f"min_layer_density={self.min_layer_density} keep; prune less, or lower these two."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Asks for the run directory, which all processes must do together."""
        self._directory = run_directory(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the step of the rewind point; stops at once where the mask had settled before."""
        if self._point is not None:
            per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
            self._start_step = self._point.step(per_epoch, trainer.estimated_stepping_batches)
        if self.history.last_epoch < trainer.current_epoch - 1 and not self._epochs:
            # A checkpoint that was written after an epoch's last step is resumed without the end of that epoch.
            self._take_in(trainer, pl_module, trainer.current_epoch - 1)
        trainer.should_stop = trainer.should_stop or self._epochs > 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keeps the weights of the rewind point."""
        if self._point is not None and self._start is None and trainer.global_step == self._start_step:
            self._start = take_snapshot(backbone_of(pl_module))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes in the mask of the epoch; stops and writes the ticket once it has settled."""
        if self._epochs:
            # A Trainer with min_epochs goes on.
            return
        self._take_in(trainer, pl_module, trainer.current_epoch)
        distance = max(self.history.distances, default=None)
        if distance is not None:
            pl_module.log("ticket/mask_distance", distance, on_step=False, on_epoch=True, sync_dist=True)
        trainer.should_stop = trainer.should_stop or self._epochs > 0

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says how it went."""
        distances, mask = self.history.distances, f"the mask of density {self.density:g} has"
        found = f"distance {max(distances, default=math.nan):.3f} among {len(distances) + 1} masks"
        if self._epochs:
            rank_zero_info(f"Early bird: {mask} settled after {self._epochs} epochs ({found}): {self.filename}.")
        else:
            rank_zero_info(
                f"Early bird: {mask} not settled ({found}, wanted: below {self.history.tolerance:g} among "
                f"{self.history.window}), so there is no ticket."
            )

    def state_dict(self) -> dict[str, Any]:
        """The masks of the last epochs, the weights of the rewind point, when the mask had settled, the settings."""
        return {
            "history": self.history.state_dict(),
            "start": self._start,
            "epochs": self._epochs,
            "settings": {name: getattr(self, name) for name in SETTINGS},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint; evaluating needs nothing of it."""
        if not self._layers:
            return
        for name, earlier in state_dict["settings"].items():
            if getattr(self, name) != earlier:
                raise InputError(
                    f"{name}={getattr(self, name)} of EarlyBird was {earlier} when the checkpoint was written; set it "
                    "back, or start a fresh run."
                )
        self.history.load_state_dict(state_dict["history"])
        self._start, self._epochs = state_dict["start"], state_dict["epochs"]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets go of the network."""
        self._layers = {}

    def _take_in(self, trainer: Trainer, pl_module: LightningModule, epoch: int) -> None:
        self.history.observe(epoch, self._masks(trainer, pl_module))
        if self.history.settled and (self._point is None or self._start is not None):
            self._epochs = epoch + 1
            if trainer.is_global_zero:
                self._write(trainer, pl_module)

    def _masks(self, trainer: Trainer, pl_module: LightningModule) -> Masks:
        packed: dict[str, dict[str, Any]] = {}
        if trainer.is_global_zero:
            masks = prune(
                backbone_of(pl_module), self.density, score=self.score, scope=self.scope, layers=self._layers,
                min_per_filter=self.min_per_filter, min_layer_density=self.min_layer_density,
            )  # fmt: skip
            packed = pack_masks(masks)
        return unpack_masks(trainer.strategy.broadcast(packed, src=0))

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        directory, masks = self._directory or Path(trainer.default_root_dir), self.history.newest
        state = take_snapshot(backbone_of(pl_module))
        ticket = Ticket(
            state_dict={**state, **{f"{name}.mask": mask for name, mask in masks.items()}},
            rewind=self._start,
            score=self.score,
            scope=self.scope,
            density=self.density,
            level=1,
            source=str(directory),
            details={
                "kind": "early_bird",
                "epochs": self._epochs,
                "distances": self.history.distances,
                "rewind_point": self.rewind_point,
                "mask_checksum": checksum(masks),
            },
            config=remembered_config(trainer, pl_module),
        )
        save_ticket(ticket, directory / self.filename)

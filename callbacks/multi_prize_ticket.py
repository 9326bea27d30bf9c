"""Multi-prize tickets as a callback; the layers and their masks are `bnfree.tickets.multi_prize`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from bnfree.callbacks.run_files import run_directory
from bnfree.callbacks.strategies import refuse_sharded_parameters
from bnfree.callbacks.ticket_config import remembered_config
from bnfree.errors import InputError
from bnfree.state_dicts import backbone_of
from bnfree.tickets import Ticket, effective_zeros, prunable_layers, ramped_density, save_ticket
from bnfree.tickets.learned_masks import MultiPrizeScope, check_learned_density
from bnfree.tickets.multi_prize import LEARNED, Learned, MultiPrize

# What a resumed run may not change.
SETTINGS = ("density", "scope", "initial_density", "ramp", "learned", "weights", "train_scores", "include", "exclude")


class MultiPrizeTicket(Callback):
    """Changes training: the masks of the binary layers are trained through scores, and their latent weights never.

    Each weight of a prunable layer gets a score; a forward pass uses the weights of the largest |score|, a backward
    pass moves the scores of all (multi-prize tickets, see `bnfree.tickets.scored_convolution` for the rule). The latent
    weights stay as they are at the start: as drawn, or as `model.init_from` gives them. The scores are in the
    optimizer's group without weight decay and are treated like any parameter, so that adaptive gradient clipping
    bounds how fast they change in relation to their size.

    Logs `ticket/density` at the end of each training epoch: 1 minus the share of zeros in the weights that the
    convolutions use. At the end of training the ticket file is written into the run directory; it loads wherever a
    pruned network does (`model.init_from`, `bnfree summary`, `bnfree test`) and gives the same outputs. Checkpoints are
    those of a plain pruned network; the scores are in the callback's part of them, from which a run resumes exactly.

    Args:
        density: share of the weights of the prunable layers that survive in the end, above 0 and at most 1.
        scope: `layer`: this share of each layer; `global`: of all layers together, under one threshold.
        initial_density: density at the start, from which it falls on a cubic curve; ignored where it is below
            `density`.
        ramp: share of the run's steps in which the density falls, from 0 (it is `density` from the start) to 1.
        learned: what is trained beside the scores: `everything` else; `gains_and_shifts`: gains, shifts and slopes, but
            neither the first convolution, shortcuts nor the classifier; `scores`: nothing.
        weights: `drawn`: latent weights as they are; `signed_constant`: their signs times one number for each layer.
        train_scores: false for a control: the scores stay as drawn, so that the masks are random ones of the same
            density, and everything else is trained likewise.
        include: names of layers to prune in place of the convolutions of the residual units, with `*` and `?`.
        exclude: names of layers to leave dense, likewise.
        seed: of the scores' initial values; None: that of the run.
        filename: name of the ticket file.

    Raises:
        InputError: a value out of range; at the start of a run also a pattern that fits no layer, a density that leaves
            less than one weight for each filter, a network that is pruned already, settings other than those of the
            checkpoint that is resumed, weight averaging beside it, or parameters split among processes (FSDP, model
            parallelism, DeepSpeed).
    """

    def __init__(
        self,
        density: float,
        scope: MultiPrizeScope = "layer",
        initial_density: float = 0.5,
        ramp: float = 0.25,
        learned: Learned = "everything",
        weights: Literal["drawn", "signed_constant"] = "drawn",
        train_scores: bool = True,
        include: list[str] | None = None,
        exclude: list[str] | None = None,
        seed: int | None = None,
        filename: str = "ticket.pt",
    ) -> None:
        check_learned_density({}, density, scope)
        check_learned_density({}, initial_density, scope)
        if not 0 <= ramp <= 1:
            raise InputError(f"ramp={ramp} must be between 0 and 1: the share of the steps in which the density falls.")
        if learned not in LEARNED:
            raise InputError(f"learned={learned!r} is not known; choose {' or '.join(map(repr, LEARNED))}.")
        if weights not in ("drawn", "signed_constant"):
            raise InputError(f"weights={weights!r} is not known; choose 'drawn' or 'signed_constant'.")
        if not Path(filename).name:
            raise InputError(f"filename={filename!r} must name a file, such as 'ticket.pt'.")
        self.density, self.scope, self.initial_density, self.ramp = density, scope, initial_density, ramp
        self.learned, self.weights, self.train_scores = learned, weights, train_scores
        self.include, self.exclude, self.seed, self.filename = include, exclude or [], seed, filename
        self._prize: MultiPrize | None = None
        self._step = -1
        self._steps = 0
        self._resumed = False
        self._directory: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the layers their scores, before the optimizer is built and weights are restored."""
        if stage != "fit":
            return
        refuse_sharded_parameters(trainer, "MultiPrizeTicket")
        averages = [type(c).__name__ for c in trainer.callbacks if isinstance(c, WeightAveraging)]  # type: ignore[attr-defined]
        if averages:
            raise InputError(
                f"{averages[0]} averages weights over steps, and those of a MultiPrizeTicket never change while its "
                "masks cannot be averaged; remove one of the two callbacks."
            )
        network = backbone_of(pl_module)
        layers = prunable_layers(network, self.include, self.exclude)
        check_learned_density({n: layer.weight.shape for n, layer in layers.items()}, self.density, self.scope)
        seed = torch.initial_seed() if self.seed is None else self.seed
        self._step, self._steps, self._resumed = -1, 0, False
        self._prize = MultiPrize(network, layers, learned=self.learned, seed=seed)
        for layer in self._prize.layers.values():
            layer.score.requires_grad_(self.train_scores)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives a fresh run its first masks; one that goes on has those of its checkpoint."""
        self._directory = run_directory(trainer)
        prize = self._scores()
        if self._resumed:
            return
        pruned = [name for name, layer in prize.layers.items() if layer.mask is not None]
        if pruned:
            raise InputError(
                f"{pruned[0]!r} is pruned already by what the run starts from; give MultiPrizeTicket a dense network."
            )
        if self.weights == "signed_constant":
            prize.make_signed_constant()
        self._update(trainer)
        weights = sum(layer.weight.numel() for layer in prize.layers.values())
        rank_zero_info(
            f"Multi-prize ticket: scores for {weights:,} frozen weights in {len(prize.layers)} layers, of which "
            f"{100 * self.density:g} % survive."
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Gives the layers the masks that the scores ask for now, where the optimizer has stepped."""
        if trainer.global_step != self._step:
            self._update(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the density of the weights that the convolutions use."""
        layers, zeros = self._scores().layers, effective_zeros(backbone_of(pl_module))
        weights = sum(layer.weight.numel() for layer in layers.values())
        density = 1 - sum(zeros[name] for name in layers) / weights
        pl_module.log("ticket/density", density, on_step=False, on_epoch=True, sync_dist=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the ticket file, also of a training that had ended before it was resumed and had not written it."""
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        directory = self._directory or Path(trainer.default_root_dir)
        ticket = Ticket.of(
            backbone_of(pl_module),
            score="multi_prize",
            scope=self.scope,
            density=self.density,
            level=1,
            source=str(directory),
            details={"kind": "multi_prize", "steps": trainer.global_step, **self._settings()},
            config=remembered_config(trainer, pl_module),
        )
        save_ticket(ticket, directory / self.filename)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leaves a plain network with its last masks."""
        if stage == "fit" and self._prize is not None:
            self._prize.close()
            self._prize = None

    def state_dict(self) -> dict[str, Any]:
        """The scores and the settings."""
        return {} if self._prize is None else {"scores": self._prize.scores, "settings": self._settings()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from the scores of a checkpoint; evaluating needs none."""
        if self._prize is None:
            return
        for name, value in self._settings().items():
            if state_dict["settings"][name] != value:
                raise InputError(
                    f"{name}={value} of MultiPrizeTicket was {state_dict['settings'][name]} when the checkpoint was "
                    "written; set it back, or start a fresh run."
                )
        self._prize.load_scores(state_dict["scores"])
        self._resumed = True

    def _update(self, trainer: Trainer) -> None:
        self._step = trainer.global_step
        self._steps = self._steps or int(trainer.estimated_stepping_batches)
        density = self.density
        if self.ramp > 0 and self._steps > 0:
            progress = self._step / (self.ramp * self._steps)
            density = ramped_density(progress, max(self.initial_density, density), density)
        self._scores().update(density, self.scope)

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in SETTINGS}

    def _scores(self) -> MultiPrize:
        if self._prize is None:
            raise RuntimeError("MultiPrizeTicket has not been set up for a fit.")
        return self._prize

"""A watch over the standardised weights as a callback; what is measured is `bnfree.diagnostics`."""

from __future__ import annotations

from typing import Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from bnfree.callbacks.strategies import refuse_sharded_parameters
from bnfree.convolution import BinaryConv2d
from bnfree.diagnostics.weights import WeightStatistics, standardized_layers, weight_statistics
from bnfree.errors import InputError
from bnfree.state_dicts import backbone_of


class WeightStandardizationCheck(Callback):
    """Only observes: checks that every standardised convolution uses the weight that the method prescribes.

    Before the first step, every `every_n_steps` optimizer steps and at the end it looks, in each layer, for weights
    that are not finite, a pruning mask applied outside the layer, a forward pass or `effective_weight()` that has been
    replaced, rows whose mean is not 0 or whose sum of squares is not gain^2, dead filters, and an effective density
    other than the mask's. Filters that the layer's own mask removes whole are counted, not reported.

    The worst figures over all layers are logged as `ws/row_mean`, `ws/row_energy_error`, `ws/formula_error`,
    `ws/forward_error` (relative, 0 is sound), `ws/density_error` (difference of shares) and, summed over all layers,
    `ws/non_finite`, `ws/dead_filters`, `ws/pruned_filters`. In networks without standardised layers it does nothing.

    Args:
        every_n_steps: optimizer steps between two checks.
        tolerance: greatest relative error, row mean (in standard deviations) or density difference that passes.
        action: `warn`: one warning for each layer and kind of problem; `raise`: stop the run; `log`: only the figures.

    Raises:
        InputError: an argument out of range, parameters split among processes (FSDP, model parallelism, DeepSpeed), or,
            with `raise`, a layer that fails.

    Example:
        >>> trainer = Trainer(callbacks=[WeightStandardizationCheck(every_n_steps=50, action="raise")], logger=False)
    """

    def __init__(
        self,
        every_n_steps: int = 100,
        tolerance: float = 1e-3,
        action: Literal["warn", "raise", "log"] = "warn",
    ) -> None:
        if every_n_steps < 1:
            raise InputError(f"every_n_steps={every_n_steps} must be at least 1.")
        if not tolerance > 0:
            raise InputError(f"tolerance={tolerance} must be greater than 0.")
        if action not in ("warn", "raise", "log"):
            raise InputError(f"action={action!r} is not known; choose 'warn', 'raise' or 'log'.")
        self.every_n_steps, self.tolerance, self.action = every_n_steps, tolerance, action
        self._layers: dict[str, BinaryConv2d] = {}
        self._warned: set[tuple[str, str]] = set()
        self._last_step = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses strategies that leave no process with a whole weight."""
        if stage == "fit":
            refuse_sharded_parameters(trainer, "WeightStandardizationCheck")
            self._warned.clear()
            self._last_step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the weights that training starts from."""
        # Remembered, so that a layer whose standardisation is switched off later is still looked at.
        self._layers = standardized_layers(backbone_of(pl_module))
        if not self._layers:
            rank_zero_info("WeightStandardizationCheck has nothing to check: the network has no standardised layer.")
        self._check(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Checks every `every_n_steps` optimizer steps."""
        if trainer.global_step % self.every_n_steps == 0:
            self._check(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the weights that training leaves."""
        self._check(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets go of the layers."""
        self._layers = {}

    def _check(self, trainer: Trainer) -> None:
        # With accumulated gradients several batches end at the same step.
        if not self._layers or trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        # In all processes, which hold the same weights: if one stops all must, or they would wait for it, and other
        # callbacks may follow the figures.
        statistics = [weight_statistics(layer, name) for name, layer in self._layers.items()]
        self._log(trainer, statistics)
        if self.action == "log":
            return
        problems = {(s.name, kind): text for s in statistics for kind, text in s.problems(self.tolerance).items()}
        if problems and self.action == "raise":
            raise InputError(_one_sentence(problems))
        fresh = {key: text for key, text in problems.items() if key not in self._warned}
        if fresh:
            rank_zero_warn(_one_sentence(fresh))
            self._warned |= set(fresh)

    def _log(self, trainer: Trainer, statistics: list[WeightStatistics]) -> None:
        figures = summarize(statistics)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in figures.items()})
        for logger in trainer.loggers if trainer.is_global_zero else ():
            logger.log_metrics(figures, step=trainer.global_step)


def summarize(statistics: list[WeightStatistics]) -> dict[str, float]:
    """The figures that are logged: the worst error and the sum of each count over all layers."""
    figures = {
        f"ws/{name}": max(getattr(s, name) for s in statistics)
        for name in ("row_mean", "row_energy_error", "formula_error", "forward_error")
    }
    figures["ws/density_error"] = max(abs(s.density - s.mask_density) for s in statistics)
    for name in ("non_finite", "dead_filters", "pruned_filters"):
        figures[f"ws/{name}"] = float(sum(getattr(s, name) for s in statistics))
    return figures


def _one_sentence(problems: dict[tuple[str, str], str]) -> str:
    """The first problem, with the number of other layers that have one."""
    (layer, _), text = next(iter(problems.items()))
    others = len({name for name, _ in problems} - {layer})
    return text if not others else f"{text[:-1]} (and {others} more layer{'s' * (others > 1)} failed the check)."

"""A network that has stopped learning, found within an epoch and explained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from bnfree.backbones.residual import ResidualUnit
from bnfree.callbacks.strategies import shards_parameters
from bnfree.convolution import BinaryConv2d
from bnfree.diagnostics.signals import measure_signals
from bnfree.diagnostics.signs import binary_layers, count_flips, weight_signs
from bnfree.state_dicts import backbone_of, uncompiled

MOST_IMAGES = 64
ONE_SIDED = 0.98
"""Mean |E sign| of a layer's channels from which on next to nothing passes its sign."""
WORSE_THAN_GUESSING = 3.0
"""Times the loss of guessing: ln(classes) for the cross-entropy, `loss_of_guessing` of the module in training."""
WIDE = 0.16
"""Learning rate of Adam times width up to which BN-free networks were seen to train without a detour."""
STILL_LEARNING = 0.1
"""Share of the greatest learning rate so far; below, signs may come to rest."""


class CollapseCheck(Callback):
    """Only observes: says once what keeps a network from learning, and what may help.

    After each epoch's validation it looks for layers whose signs are the same for all images of a batch (up to 64 of
    the first one), filters that are 0 without being pruned, layers of which no binary weight has changed its sign in an
    epoch while the learning rate was still high, and a loss three times that of guessing. Each kind is one warning,
    which names the first layer. Before the first step it says where Adam's learning rate is high for the width of a
    BN-free network: updates of a fixed size sum up over more inputs (Yang et al., Tensor Programs V, arXiv 2203.03466),
    and the loss of the first epoch is a multiple of that of guessing. The price is one forward pass of 64 images an
    epoch. On by default in runs of the `bnfree` command; nothing is looked for where parameters are split among
    processes.

    Example:
        >>> trainer = Trainer(callbacks=[CollapseCheck()], logger=False)
    """

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._signs: dict[str, Tensor] = {}
        self._rates: list[float] = []
        self._images: Tensor | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares learning rate and width."""
        width = _stem_width(uncompiled(backbone_of(pl_module)))
        rates = [
            float(group.get("initial_lr", group["lr"]))
            for optimizer in trainer.optimizers if isinstance(optimizer, torch.optim.Adam)
            for group in optimizer.param_groups
        ]  # fmt: skip
        rate = max(rates, default=0.0)
        if width is not None and not trainer.global_step and rate * width > WIDE:
            rank_zero_warn(
                f"a learning rate of {rate:g} is high for a BN-free network of width {width}, whose first steps may "
                f"raise the loss far above that of guessing; {WIDE / 2 / width:.1g} suits this width as 5e-3 suits 16."
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Starts to follow the signs of weights, once all that changes a network between two epochs is done."""
        if batch_idx == 0 and trainer.is_global_zero and not shards_parameters(trainer):
            layers = binary_layers(backbone_of(pl_module))
            self._signs = {name: weight_signs(layer) for name, layer in layers.items() if layer.weight.requires_grad}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Follows the learning rate."""
        rates = [float(group["lr"]) for optimizer in trainer.optimizers for group in optimizer.param_groups]
        self._rates.append(max(rates, default=0.0))
        self._rates = [max(self._rates), self._rates[-1]]

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps a few images."""
        first = batch[0] if isinstance(batch, list | tuple) and batch else batch
        if batch_idx == 0 and isinstance(first, Tensor) and first.dim() == 4 and first.is_floating_point():
            self._images = first[:MOST_IMAGES]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at signals, filters and loss."""
        images, self._images = self._images, None
        wanted = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and trainer.is_global_zero
        if wanted and not shards_parameters(trainer):
            network = uncompiled(backbone_of(pl_module))
            self._say(trainer, [*_one_sided(network, images), *_dead(network)])
            self._say(trainer, list(_guessing(trainer.callback_metrics, network, "val/loss")))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the epoch's loss, and whether weights have moved."""
        # In all processes: whoever asks first adds up what all have logged, and waits for the others.
        metrics = trainer.callback_metrics
        if trainer.is_global_zero and not shards_parameters(trainer):
            network = uncompiled(backbone_of(pl_module))
            own = getattr(pl_module, "loss_of_guessing", None)
            self._say(trainer, list(_guessing(metrics, network, "train/loss", own)))
        signs, self._signs = self._signs, {}
        # Below, rates of a schedule's end let signs come to rest; so may one batch.
        if not signs or not self._rates or self._rates[-1] < STILL_LEARNING * max(self._rates):
            return
        layers = binary_layers(backbone_of(pl_module))
        moved = [
            (name, *count_flips(signs[name], weight_signs(layer))) for name, layer in layers.items() if name in signs
        ]
        # Few weights, or few steps, may stay where they are by chance.
        still = [name for name, flipped, compared in moved if not flipped and compared >= 1000]
        if still and trainer.fit_loop.epoch_loop.batch_progress.current.completed >= 20:
            text = "has not changed the sign of a single weight in an epoch: raise the learning rate, or clip less"
            self._say(trainer, [("frozen", still, text)])

    def _say(self, trainer: Trainer, findings: list[tuple[str, list[str], str]]) -> None:
        for kind, names, text in findings:
            if kind not in self._said:
                self._said.add(kind)
                more = f" (and {len(names) - 1} more layers)" if len(names) > 1 else ""
                rank_zero_warn(f"epoch {trainer.current_epoch}: {names[0]}{more} {text}.")


def _one_sided(network: nn.Module, images: Tensor | None) -> Iterator[tuple[str, list[str], str]]:
    if images is None or not any(isinstance(module, ResidualUnit) for module in network.modules()):
        return
    names = [signal.name for signal in measure_signals(network, images) if signal.imbalance > ONE_SIDED]
    if names:
        yield (
            "one-sided", names,
            f"gives the same signs for all of {len(images)} images, so that nothing passes: calibrate "
            "(model.calibration=full), or lower the learning rate",
        )  # fmt: skip


@torch.no_grad()
def _dead(network: nn.Module) -> Iterator[tuple[str, list[str], str]]:
    names = []
    for name, layer in network.named_modules():
        if isinstance(layer, BinaryConv2d):
            dead = (layer.effective_weight() == 0).flatten(1).all(1)
            pruned = torch.zeros_like(dead) if layer.mask is None else (layer.mask == 0).flatten(1).all(1)
            if layer.rows_off is not None:
                pruned |= layer.rows_off
            if bool((dead & ~pruned).any()):
                names.append(name)
    if names:
        yield "dead", names, "has filters that are 0 without being pruned: lower the learning rate, or clip with AGC"


def _guessing(
    metrics: Mapping[str, Tensor], network: nn.Module, name: str, own: Callable[[], float | None] | None = None
) -> Iterator[tuple[str, list[str], str]]:
    classes, loss = getattr(network, "num_classes", None), metrics.get(name)
    if loss is None or not isinstance(classes, int) or classes < 2:
        return
    chance = math.log(classes)
    if float(loss) <= WORSE_THAN_GUESSING * chance:
        return
    # Asked for only now: the loss may be anybody's, and calling it is more than to observe.
    guessing = chance if own is None else own()
    if guessing is not None and float(loss) > WORSE_THAN_GUESSING * guessing:
        after = metrics.get("val/loss")
        # Validation comes last in an epoch.
        what = "training diverges"
        if name == "train/loss" and after is not None and float(after) < chance:
            what = f"steps are too large, though val/loss has come back to {float(after):.3g}"
        text = (
            f"is {float(loss):.3g}, where guessing among {classes} classes gives {guessing:.2f}: {what}; lower the "
            "learning rate (a wider network needs a lower one), or clip with AdaptiveGradientClipping"
        )
        yield "guessing", [name], text


def _stem_width(network: nn.Module) -> int | None:
    """Channels of the first layer of a BN-free network; None of any other."""
    layer = getattr(getattr(network, "stem", None), "convolution", None)
    if not getattr(network, "wants_calibration", False) or not isinstance(layer, BinaryConv2d):
        return None
    return layer.out_channels

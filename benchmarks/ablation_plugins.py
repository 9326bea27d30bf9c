"""Alternatives to the defaults, as callbacks: what `ablations.py` needs beyond the options of `bnfree`."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from bnfree.backbones.residual import ResidualUnit
from bnfree.backbones.variance import public_betas_reactnet18
from bnfree.calibration import calibrate
from bnfree.convolution import BinaryConv2d


class LatentWeights(Callback):
    """Changes training: other initial latent weights of all standardised convolutions.

    Args:
        factor: of the default initialisation.
        public_code: uniform on [0, 1e-3) in the binary convolutions, in place of the default.
    """

    def __init__(self, factor: float = 1.0, public_code: bool = False) -> None:
        self.factor, self.public_code = factor, public_code

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets them, before the module calibrates."""
        for layer in pl_module.modules():
            if isinstance(layer, BinaryConv2d) and self.public_code and layer.binary_weights:
                nn.init.uniform_(layer.weight, 0, 1e-3)
            elif isinstance(layer, BinaryConv2d):
                layer.weight.data.mul_(self.factor)


class Calibration(Callback):
    """Changes training: calibrates in another way than the module, whose `calibration` is to be `none`.

    Args:
        beta: measured per layer (`layer`), or the one the network was built with (`analytic`), or that of the public
            code (`public`).
        shift: of RSign, measured per `channel`, one for the `layer`, or left at 0 (`none`).
    """

    def __init__(
        self,
        beta: Literal["layer", "analytic", "public"] = "analytic",
        shift: Literal["channel", "layer", "none"] = "none",
    ) -> None:
        self.beta, self.shift = beta, shift

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures unit by unit, in one forward pass."""
        units = _units(pl_module)
        if self.beta == "public":
            for unit, beta in zip(units, public_betas_reactnet18([4, 4, 4, 4], units[0].alpha), strict=True):
                unit.beta.fill_(beta)

        def measure(unit: ResidualUnit, inputs: tuple[Any, ...]) -> None:
            std, mean = torch.std_mean(inputs[0], dim=(0, 2, 3), correction=0)
            if self.beta == "layer":
                unit.beta.copy_(1 / std.mean())
            if self.shift == "layer":
                mean = mean.mean().expand_as(mean)
            if self.shift != "none":
                unit.rsign.shift.data.copy_(-mean * unit.beta)

        _forward_with(measure, units, trainer, pl_module)


class RepeatedCalibration(Callback):
    """Changes training: measures beta again at the start of every epoch but the first; thresholds stay."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures, in a forward pass over training images."""
        if trainer.current_epoch == 0:
            return
        units = _units(pl_module)
        before = [unit.rsign.shift.detach().clone() for unit in units]
        ratio = [unit.beta.clone() for unit in units]
        calibrate(pl_module.backbone, _images(trainer))
        for unit, shift, old in zip(units, before, ratio, strict=True):
            # The threshold -shift / beta stays where training has put it.
            unit.rsign.shift.data.copy_(shift * unit.beta / old)


class ExactVarianceGain(Callback):
    """Changes training: gains start at sqrt(pi / 2), where a binary convolution of Gaussian latents keeps variance."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets them."""
        for unit in _units(pl_module):
            unit.convolution.gain.data.fill_((torch.pi / 2) ** 0.5)


class ClipOnlyConvolutions(Callback):
    """Changes training: gradient clipping leaves everything but the latent weights of convolutions alone."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Switches it off in the other parameter group."""
        for group in trainer.optimizers[0].param_groups:
            if group["name"] == "undecayed":
                group["clip_factor"] = 0.0


class PlainBinaryWeights(Callback):
    """Changes training: binary weights are gain * mean|w| * sign(w), without standardisation."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Switches it off, before anything is calibrated."""
        for unit in _units(pl_module):
            unit.convolution.standardize = False


def _units(pl_module: LightningModule) -> list[ResidualUnit]:
    return [module for module in pl_module.modules() if isinstance(module, ResidualUnit)]


def _images(trainer: Trainer) -> Tensor:
    images: Tensor = trainer.datamodule.calibration_images(256)
    return images


def _forward_with(hook: Any, units: list[ResidualUnit], trainer: Trainer, pl_module: LightningModule) -> None:
    handles = [unit.register_forward_pre_hook(hook) for unit in units]
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        pl_module.backbone(_images(trainer))
    for handle in handles:
        handle.remove()

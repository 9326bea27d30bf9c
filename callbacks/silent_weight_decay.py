"""A pull on weights whose signs do not flip; what is computed is `bnfree.silent_weights`."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from bnfree.callbacks.strategies import refuse_sharded_parameters
from bnfree.convolution import BinaryConv2d
from bnfree.diagnostics.signs import convolutions, pack_signs, unpack_signs
from bnfree.errors import InputError
from bnfree.silent_weights import centred_weight, silence_gradient, update_flip_rates
from bnfree.state_dicts import backbone_of


class SilentWeightDecay(Callback):
    """Changes training: latent weights whose signs have not flipped for long are pulled to where they would.

    Adds strength * `silence_gradient` to the gradients of binary weights. A weight is silent while the moving average
    of its flips is below `threshold`: with the published constants one flip keeps it from silence for 2,300 steps, so
    that in a shorter training the silent ones are those that have never flipped. Masked weights are not touched. Behind
    `AdaptiveGradientClipping` in the list of callbacks the pull is not clipped; the clip factor is then what to compare
    the strength with. Logs `signs/silent`, the share of silent weights, at the end of each epoch.

    Source: OvSW, ECCV 2024, arXiv 2407.05257, whose CIFAR strength is 9e-4 and ImageNet strength 2e-5. Deviation: see
    `bnfree.silent_weights.silence_gradient`; signs are those of the latent weights, without the gain's.

    Args:
        strength: greater than 0.
        momentum: of the moving average, from 0 to 1.
        threshold: greater than 0.

    Raises:
        InputError: a value out of range; at the start of a training also parameters split among processes (FSDP, model
            parallelism, DeepSpeed), or a network without binary weights that are trained and not transformed.
    """

    def __init__(self, strength: float = 9e-4, momentum: float = 0.999, threshold: float = 1e-4) -> None:
        if not 0 < strength < float("inf"):
            raise InputError(f"strength={strength} must be a finite number greater than 0.")
        if not 0 <= momentum < 1:
            raise InputError(f"momentum={momentum} must be at least 0 and less than 1.")
        if not 0 < threshold < float("inf"):
            raise InputError(f"threshold={threshold} must be a finite number greater than 0.")
        self.strength, self.momentum, self.threshold = strength, momentum, threshold
        self._layers: dict[str, BinaryConv2d] = {}
        self._signs: dict[str, Tensor] = {}
        self._rates: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a network without signs to flip."""
        if stage != "fit":
            return
        refuse_sharded_parameters(trainer, "SilentWeightDecay")
        network = backbone_of(pl_module)
        self._layers = {name: layer for name, layer in convolutions(network).items() if _flips(layer)}
        if not self._layers:
            raise InputError(
                f"backbone={type(network).__name__} has no binary weights that are trained and not transformed, so "
                "SilentWeightDecay has nothing to wake; remove the callback."
            )

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Counts the flips of the step before, and adds the pull."""
        for name, layer in self._layers.items():
            if layer.weight.grad is None:
                continue
            signs = _signs(layer)
            if name in self._signs:
                # What a checkpoint holds comes before the network is on its device.
                self._rates[name] = self._rates[name].to(signs.device)
                update_flip_rates(self._rates[name], self._signs[name].to(signs.device), signs, self.momentum)
            else:
                self._rates[name] = torch.zeros_like(layer.weight)
            self._signs[name] = signs
            pull = silence_gradient(layer, self._rates[name] < self.threshold)
            layer.weight.grad.add_(pull.to(layer.weight.grad.dtype), alpha=self.strength)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs how many are silent."""
        if not self._rates:
            return
        silent = sum(((self._rates[name] < self.threshold) & (s != 0)).sum() for name, s in self._signs.items())
        surviving = sum((signs != 0).sum() for signs in self._signs.values())
        pl_module.log("signs/silent", silent / surviving, on_step=False, on_epoch=True, sync_dist=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets go of the network."""
        if stage == "fit":
            self._layers, self._signs, self._rates = {}, {}, {}

    def state_dict(self) -> dict[str, Any]:
        """Moving averages, and the signs before the last step in a quarter of a byte each."""
        return {
            "rates": {name: rates.cpu() for name, rates in self._rates.items()},
            "signs": {name: pack_signs(signs).cpu() for name, signs in self._signs.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes them."""
        rates: dict[str, Tensor] = state_dict["rates"]
        known = {n: layer for n, layer in self._layers.items() if n in rates and rates[n].shape == layer.weight.shape}
        self._rates = {name: rates[name].to(layer.weight.dtype) for name, layer in known.items()}
        self._signs = {
            name: unpack_signs(state_dict["signs"][name], layer.weight.shape) for name, layer in known.items()
        }


def _flips(layer: BinaryConv2d) -> bool:
    return layer.binary_weights and layer.weight.requires_grad and layer.weight_transform is None


def _signs(layer: BinaryConv2d) -> Tensor:
    signs = torch.where(centred_weight(layer) >= 0, 1, -1).to(torch.int8)
    return signs if layer.mask is None else signs * layer.mask

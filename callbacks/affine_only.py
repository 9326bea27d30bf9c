"""Training of scales and shifts alone, around weights that stay random."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from bnfree.affine import affine_parameters, is_normalizer
from bnfree.callbacks.adaptive_gradient_clipping import find_classifier
from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError
from bnfree.state_dicts import backbone_of

OFF = 0.01


class AffineOnly(Callback):
    """Changes training: gains, thresholds, slopes, shifts and the scales of normalisers are trained, nothing else.

    With binary weights the signs then are those that were drawn. Logs `gains/off` at the end of each epoch: the share
    of gains and of normalisers' scales below 0.01 in size.

    Source: Frankle et al., "Training BatchNorm and Only BatchNorm" (ICLR 2021, arXiv 2003.00152); the BN-free reading,
    and calibrated gains in place of uniform ones, are ours.

    Args:
        classifier: train the classifier, too.

    Raises:
        InputError: at the start of a training, a network without anything of the kind.
    """

    def __init__(self, classifier: bool = True) -> None:
        self.classifier = classifier

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freezes, before the optimizer is built."""
        if stage != "fit":
            return
        network = backbone_of(pl_module)
        trained = {id(parameter) for parameter in affine_parameters(network)}
        if not trained:
            raise InputError(
                f"backbone={type(network).__name__} has no gains, shifts or normalisers, which AffineOnly would train; "
                "remove the callback."
            )
        if self.classifier and (head := find_classifier(pl_module)) is not None:
            trained |= {id(parameter) for parameter in head.parameters()}
        for parameter in network.parameters():
            if id(parameter) not in trained:
                parameter.requires_grad_(False)

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs how much has switched itself off."""
        scales = torch.cat([scale.flatten() for scale in _scales(backbone_of(pl_module))] or [torch.ones(1)])
        share = (scales.abs() < OFF).float().mean()
        pl_module.log("gains/off", share, on_step=False, on_epoch=True, sync_dist=True)


def _scales(network: nn.Module) -> list[Tensor]:
    found: list[Tensor] = []
    for module in network.modules():
        scale = module.gain if isinstance(module, BinaryConv2d) else None
        if is_normalizer(module):
            scale = getattr(module, "weight", None)
        found += [scale.detach()] if isinstance(scale, Tensor) else []
    return found

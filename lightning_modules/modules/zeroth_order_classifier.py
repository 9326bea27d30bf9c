"""A LightningModule that trains scales and shifts without backpropagation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bnfree.affine import affine_parameters
from bnfree.autocast import without_autocast
from bnfree.errors import InputError
from bnfree.lightning_modules.modules.image_classifier import ImageClassifier
from bnfree.state_dicts import uncompiled
from bnfree.tickets.generators import layer_generator
from bnfree.zeroth_order import coordinate_gradients, draw_active


class ZerothOrderClassifier(ImageClassifier):
    """Trains gains, thresholds, slopes, shifts and the head by differences of the loss (DeepZero), for toy networks.

    A step costs a forward pass, or the part of it behind the parameter, for each active coordinate. There is no
    backward pass through the network, so that no estimator stands for the derivative of a sign: thresholds and gains
    get the slope of the loss itself over a step of `step`. Latent weights stay as they are: a step so small changes the
    size of a filter's weights and almost never a sign, so that its difference says nothing about the sign. The
    gradients are given to the optimizer as any others are, to clipping and accumulation and several processes, too:
    what is returned as the loss has them for its gradient. Computed in the parameters' precision, without autocast.

    Source: see `bnfree.zeroth_order`, with its step, sparsity and redrawing.

    Args:
        backbone: a network of residual units without running statistics, such as `ReActNet18` with `norm: bn_free`.
        step: how far a coordinate is moved, greater than 0.
        sparsity: share of the coordinates of each parameter that are left out, from 0 to less than 1.
        redraw_every: epochs after which other coordinates are drawn, a function of (seed of the data, epoch).
        options: what `ImageClassifier` takes.

    Raises:
        InputError: a value out of range, or a network that is no chain of units or keeps running statistics.
    """

    def __init__(
        self, backbone: nn.Module, step: float = 5e-3, sparsity: float = 0.9, redraw_every: int = 5, **options: Any
    ) -> None:
        super().__init__(backbone, **options)
        if not 0 < step < float("inf"):
            raise InputError(f"step={step} must be a finite number greater than 0.")
        if not 0 <= sparsity < 1 or redraw_every < 1:
            raise InputError(
                f"sparsity={sparsity} must be at least 0 and less than 1, and redraw_every={redraw_every} at least 1."
            )
        if not hasattr(backbone, "from_stage") or getattr(backbone, "classifier", None) is None:
            raise InputError(f"backbone={type(backbone).__name__} is no chain of units with a head; take ReActNet18.")
        if any("running" in name for name, _ in backbone.named_buffers()):
            raise InputError(
                f"backbone.norm={getattr(backbone, 'norm', '')!r} keeps running statistics, which every pass of an "
                "estimate would move; take norm='bn_free'."
            )
        self.step, self.sparsity, self.redraw_every = step, sparsity, redraw_every
        head: Any = backbone.classifier
        estimated = {id(p) for p in [*affine_parameters(backbone), *head.parameters()] if p.requires_grad}
        for parameter in backbone.parameters():
            parameter.requires_grad_(id(parameter) in estimated)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, C, H, W)."""
        if not self.training:
            return self.backbone(images)
        with torch.no_grad(), without_autocast(images.device):
            return uncompiled(self.backbone)(images)

    def training_loss(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss, of shape (), whose gradient is the estimated one."""
        network = uncompiled(self.backbone)
        estimated = [parameter for parameter in network.parameters() if parameter.requires_grad]
        active = draw_active(estimated, 1 - self.sparsity, self._generator())
        with without_autocast(images.device):
            value, gradients = coordinate_gradients(
                list(chain_of(network)), images, lambda found: self.loss(found, labels),
                list(zip(estimated, active, strict=True)), self.step,
            )  # fmt: skip
        linear = torch.stack([(g * (p - p.detach())).sum() for g, p in zip(gradients, estimated, strict=True)])
        return value + linear.sum()

    def _generator(self) -> torch.Generator:
        """The same in every step of an epoch and in every process."""
        seed = getattr(getattr(self.trainer, "datamodule", None), "seed", 0)
        return layer_generator(seed, f"zeroth order:{self.trainer.current_epoch // self.redraw_every}")


class Pooled(nn.Module):
    """The last piece: means over all positions, then the head."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, num_classes) of feature maps (N, C, H, W)."""
        return self.head(features.mean((2, 3)))


def chain_of(network: Any) -> Iterator[nn.Module]:
    """The stem, every unit and the head of a network, of which one follows the other."""
    yield network.stem
    yield from _flat(network.body)
    yield Pooled(network.classifier)


def _flat(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, nn.Sequential):
        for child in module:
            yield from _flat(child)
    else:
        yield module

"""What the next pruning step wants to know about a training: gradients of the loss, gathered over all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from bnfree.convolution import BinaryConv2d
from bnfree.tickets import effective_gradients

IMAGES = 1024


def loss_gradients(
    trainer: Trainer, pl_module: LightningModule, network: nn.Module, layers: Mapping[str, BinaryConv2d]
) -> dict[str, Tensor]:
    """Gradients of the mean cross-entropy over about 1,024 training images with respect to effective weights.

    The images are the first of epoch 0, spread over the processes as in training; one epoch at most. To be called in
    all processes, at the end of a fit.

    Args:
        trainer: the trainer.
        pl_module: its module.
        network: from images (N, C, H, W) to logits.
        layers: the layers in question, by name.

    Returns:
        For each layer a tensor of its weight's shape, float32 on the CPU, the same in every process.
    """
    loader = cast(Any, trainer.train_dataloader)
    set_epoch = getattr(getattr(loader, "sampler", None), "set_epoch", None)
    if set_epoch is not None:
        set_epoch(0)
    seen = torch.zeros((), device=pl_module.device)

    def losses() -> Iterator[Callable[[], Tensor]]:
        batches, size = iter(loader), 0
        for batch in batches:
            images, labels = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
            size = size or len(labels) * trainer.world_size
            seen.add_(len(labels))

            def loss(images: Tensor = images, labels: Tensor = labels) -> Tensor:
                with trainer.precision_plugin.forward_context():
                    return F.cross_entropy(network(images).float(), labels, reduction="sum")

            yield loss
            if float(seen) * trainer.world_size >= IMAGES - size / 2:
                break

    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        sums = effective_gradients(network, losses(), layers)
    finally:
        for module, mode in modes.items():
            module.training = mode
    total = trainer.strategy.reduce(seen, reduce_op="sum")
    return {
        name: (trainer.strategy.reduce(gradient, reduce_op="sum") / total).float().cpu()
        for name, gradient in sums.items()
    }

"""Latent weights on a sphere: their norms stay, so that the learning rate alone says how fast they turn."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from bnfree.callbacks.strategies import refuse_sharded_parameters
from bnfree.convolution import BinaryConv2d
from bnfree.diagnostics.signs import convolutions
from bnfree.errors import InputError
from bnfree.state_dicts import backbone_of


class LatentSphere(Callback):
    """Changes training: after every optimizer step each filter's latent weights get back their norm.

    w <- w * radius / ||w|| over the surviving weights of a filter, in standardised layers, whose output does not depend
    on the norm. Without, the norm grows with every step, and the angle of a step shrinks. It takes the place of weight
    decay on these weights.

    Source: Normalize-and-Project (Lyle et al., NeurIPS 2024, arXiv 2407.01800); the normalisation that it wants in
    front of nonlinearities is the standardisation here.

    Args:
        radius: `initial`: the norm before the first step; or a number, for all filters.
        centre: take the mean of a filter away as well, which standardisation does not see either.

    Raises:
        InputError: a radius out of range; at the start of a training also parameters split among processes (FSDP, model
            parallelism, DeepSpeed), a network without standardised convolutions, or weight decay on their weights.
    """

    def __init__(self, radius: Literal["initial"] | float = "initial", centre: bool = False) -> None:
        if isinstance(radius, str) and radius != "initial":
            raise InputError(f"radius={radius!r} is not known; choose 'initial' or give a number greater than 0.")
        if not isinstance(radius, str) and not 0 < radius < float("inf"):
            raise InputError(f"radius={radius} must be 'initial' or a number greater than 0.")
        self.radius, self.centre = radius, centre
        self._layers: dict[str, BinaryConv2d] = {}
        self._radii: dict[str, Tensor] = {}
        self._step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses what has no sphere."""
        if stage != "fit":
            return
        refuse_sharded_parameters(trainer, "LatentSphere")
        network = backbone_of(pl_module)
        self._layers = {name: layer for name, layer in convolutions(network).items() if _free(layer)}
        if not self._layers:
            raise InputError(
                f"backbone={type(network).__name__} has no standardised convolution that is trained, whose output is "
                "independent of the norm of its weights; remove LatentSphere."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the norms of a fresh run."""
        held = {id(layer.weight) for layer in self._layers.values()}
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                if group.get("weight_decay") and held & {id(p) for p in group["params"]}:
                    raise InputError(
                        f"weight_decay={group['weight_decay']} shrinks weights whose norm LatentSphere keeps; set "
                        "it to 0 or remove the callback."
                    )
        self._step = trainer.global_step
        for name, layer in self._layers.items():
            if name not in self._radii or self._radii[name].shape != layer.weight.shape[:1]:
                norm = _norms(layer).flatten()
                self._radii[name] = norm if isinstance(self.radius, str) else torch.full_like(norm, self.radius)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Projects after a step."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        for name, layer in self._layers.items():
            project_to_sphere(layer, self._radii[name], self.centre)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets go of the network."""
        if stage == "fit":
            self._layers, self._radii = {}, {}

    def state_dict(self) -> dict[str, Any]:
        """The radii (filters,) of every layer."""
        return {"radii": {name: radii.cpu() for name, radii in self._radii.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes them."""
        self._radii = {
            name: radii.to(self._layers[name].weight)
            for name, radii in state_dict["radii"].items()
            if name in self._layers
        }


@torch.no_grad()
def project_to_sphere(layer: BinaryConv2d, radii: Tensor, centre: bool = False) -> None:
    """Brings the surviving latent weights of every filter to a norm.

    Args:
        layer: a standardised convolution.
        radii: (O,).
        centre: subtract their mean first.
    """
    mask = torch.ones_like(layer.weight, dtype=torch.bool) if layer.mask is None else layer.mask
    if centre:
        dims = (1, 2, 3)
        count = mask.sum(dims, keepdim=True).clamp(min=1)
        layer.weight.sub_((layer.weight * mask).sum(dims, keepdim=True) / count * mask)
    norms = _norms(layer)
    factor = torch.where(norms > 0, radii.to(norms).view_as(norms) / norms, 1.0)
    layer.weight.mul_(torch.where(mask, factor, 1.0))


@torch.no_grad()
def _norms(layer: BinaryConv2d) -> Tensor:
    """(O, 1, 1, 1), over survivors."""
    weight = layer.weight if layer.mask is None else layer.weight * layer.mask
    return torch.linalg.vector_norm(weight, dim=(1, 2, 3), keepdim=True)


def _free(layer: BinaryConv2d) -> bool:
    return layer.standardize and layer.weight_transform is None and layer.weight.requires_grad

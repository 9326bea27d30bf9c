"""A packed network against the one that it was made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnfree.autocast import without_autocast
from bnfree.binarize import RSign
from bnfree.errors import InputError
from bnfree.packing.packed_network import PackedNetwork
from bnfree.state_dicts import uncompiled

# Largest difference of logits, relative to the largest logit of an image, that is rounding.
ROUNDING = 1e-3


@dataclass(frozen=True)
class Comparison:
    """How far two networks agree on some images."""

    images: int
    """Number of images."""
    same_class: int
    """Images for which both name the same class."""
    largest_difference: float
    """Largest difference of two logits."""
    largest_relative_difference: float
    """Largest difference of two logits, relative to the largest magnitude among the logits of its image."""
    near_threshold: int
    """Activations so near their threshold that rounding decides their sign."""
    unexplained: int
    """Images without such an activation that get another class or logits that differ by more than 1e-3 of the largest.
    Must be 0 if the real layers have been packed in float32, as classifiers need not be."""

    @property
    def agreement(self) -> float:
        """Share of the images for which both name the same class."""
        return self.same_class / self.images


@dataclass(frozen=True)
class Observation:
    """What a trained network computes on N images."""

    logits: Tensor
    """float64 (N, num_classes), on the CPU."""
    near: Tensor
    """int64 (N,): activations of each image near their threshold."""

    def differences(self, logits: Tensor) -> Tensor:
        """How far other logits (N, num_classes) are from these, relative to each image's largest, float64 (N,)."""
        return (logits.double() - self.logits).abs().amax(1) / self.logits.abs().amax(1).clamp(min=1e-30)

    def agrees(self, logits: Tensor) -> Tensor:
        """Whether other logits (N, num_classes) name the same class and differ by rounding at most, bool (N,)."""
        return (logits.argmax(1) == self.logits.argmax(1)) & (self.differences(logits) <= ROUNDING)


@torch.no_grad()
def observe(network: nn.Module, images: Tensor, tolerance: float = 1e-6) -> Observation:
    """Runs a trained network and counts the activations near their threshold.

    Args:
        network: evaluated in evaluation mode and full precision, and left as it was.
        images: (N, C, H, W), normalised.
        tolerance: see `compare`.
    """
    # A compiled network may have been traced without the hooks that follow.
    network = uncompiled(network)
    near = torch.zeros(images.shape[0], dtype=torch.int64)

    def count(layer: RSign, inputs: tuple[Any, ...]) -> None:
        x, scale = (*inputs, None)[:2]
        wide = x.double() if scale is None else x.double() * scale.double()
        distance = wide + layer.shift.double().view(1, -1, 1, 1)
        unit = distance.square().mean().sqrt().clamp(min=1)
        near.add_((distance.abs() <= tolerance * unit).sum((1, 2, 3)).cpu())

    hooks = [m.register_forward_pre_hook(count) for m in network.modules() if isinstance(m, RSign)]
    modes = [(module, module.training) for module in network.modules()]
    like = next(network.parameters())
    try:
        network.eval()
        with without_autocast(like.device):
            logits = network(images.to(like.device, like.dtype)).double().cpu()
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    return Observation(logits, near)


def compare(network: nn.Module, packed: PackedNetwork, images: Tensor, tolerance: float = 1e-6) -> Comparison:
    """Runs both on the same images.

    The sign of an activation is +-1 however near its threshold it is, so rounding, which differs between the two,
    turns a few over; from there on an image has another signal. These activations are counted in the trained network.

    Args:
        network: the network that was packed; evaluated in evaluation mode, and left as it was.
        packed: the result.
        images: (N, C, H, W), normalised, N > 0.
        tolerance: an activation is near its threshold when |beta * x + shift| is at most this, in units of the layer's
            root mean square where that is above 1.

    Raises:
        InputError: no images.
    """
    if images.shape[0] == 0:
        raise InputError("images holds no image; give at least one.")
    observed = observe(network, images, tolerance)
    logits = packed(images.cpu()).double()
    explained = observed.agrees(logits) | (observed.near > 0)
    return Comparison(
        images=len(images),
        same_class=int((logits.argmax(1) == observed.logits.argmax(1)).sum()),
        largest_difference=(logits - observed.logits).abs().max().item(),
        largest_relative_difference=observed.differences(logits).max().item(),
        near_threshold=int(observed.near.sum()),
        unexplained=int((~explained).sum()),
    )

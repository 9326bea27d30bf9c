"""Fire together wire together: channels of a binary convolution that are on or off, image by image.

Source: Elkerdawy et al., "Fire together wire together: a dynamic pruning approach with self-supervised mask prediction"
(CVPR 2022, arXiv 2110.08232). A predictor says from the pooled input of a layer which of its channels fire; it learns
that from what they then do. Deviations: the response of a channel is the largest absolute value of the real output of
the binary convolution, in front of the RPReLU, since behind a sign all channels respond alike; and what is off is the
branch, so that shortcut and RPReLU work as ever. All channels are on at the start, where the network is what it is
without gates.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnfree.backbones.residual import ResidualUnit

# sigmoid(2) = 0.88: on, and not so sure that the predictor could not learn otherwise.
ON_AT_THE_START = 2.0


class ChannelGate(nn.Module):
    """Predicts for each image which channels are on, and learns it from their responses.

    Args:
        in_channels: channels I of the layer's input.
        out_channels: channels C that are on or off.

    Shape: input (N, I, H, W) and branch (N, C, H', W') to a branch of which some channels are 0. In training with a
    `mass`, `loss` is the binary cross-entropy to `mass_label` afterwards, until it is taken.
    """

    fresh_without_weights = True

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.predictor = nn.Linear(in_channels, out_channels)
        nn.init.zeros_(self.predictor.weight)
        nn.init.constant_(self.predictor.bias, ON_AT_THE_START)
        self.mass: float | None = None
        self.decoupled = True
        self.loss: Tensor | None = None
        self.share = torch.ones(())

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """`branch` with the channels that are off for an image at 0."""
        # Neither loss reaches what lies in front through the predictor.
        logits = self.predictor(x.detach().mean((2, 3)))
        on = (logits > 0).to(branch.dtype)
        self.share = on.detach().float().mean()
        if self.training and self.mass is not None and torch.is_grad_enabled():
            label = mass_label(branch.detach().abs().amax((2, 3)).float(), self.mass)
            self.loss = F.binary_cross_entropy_with_logits(logits.float(), label.float())
        if self.training and not self.decoupled:
            soft = logits.sigmoid().to(branch.dtype)
            on = on + soft - soft.detach()
        return branch * on[:, :, None, None]

    def __getstate__(self) -> dict[str, Any]:
        # A tensor with a graph cannot be copied.
        return {**self.__dict__, "loss": None}


class GatedUnit(ResidualUnit):
    """A residual unit with a gate: RPReLU(shortcut + alpha * gate(conv(RSign(beta * x)))).

    Args:
        in_channels: input channels.
        out_channels: output channels.
        arguments: as of `ResidualUnit`.
    """

    def __init__(self, in_channels: int, out_channels: int, *arguments: Any) -> None:
        super().__init__(in_channels, out_channels, *arguments)
        self.gate = ChannelGate(in_channels, out_channels)
        self.macs = 0

    def forward(self, x: Tensor) -> Tensor:
        """The unit's output for trunk `x` (N, in_channels, H, W)."""
        branch = self.convolution(self.rsign(x, self.beta))
        self.macs = branch.shape[2] * branch.shape[3] * self.convolution.weight.numel()
        if self.after_convolution is not None:
            branch = self.after_convolution(branch)
        branch = self.gate(x, branch)
        return self.rprelu(torch.add(self.shortcut(x), branch, alpha=self.alpha))

    @property
    def ops(self) -> tuple[float, float]:
        """OPs of the convolution in the last forward pass, of an image: of all channels, and of those that were on.

        What is on includes the predictor, whose multiply-accumulates are real.
        """
        every = self.macs / (64 if self.convolution.binary_weights else 1)
        return every, every * float(self.gate.share) + self.gate.predictor.weight.numel()


def mass_label(responses: Tensor, mass: float) -> Tensor:
    """The fewest channels whose responses add up to a share of the sum.

    Args:
        responses: (N, C), at least 0.
        mass: the share; at least 1: all channels that respond.

    Returns:
        (N, C), bool.
    """
    if mass >= 1:
        return responses > 0
    ranked, order = responses.sort(dim=1, descending=True, stable=True)
    before = ranked.cumsum(1) - ranked
    chosen = (before < mass * ranked.sum(1, keepdim=True)) & (ranked > 0)
    return torch.zeros_like(chosen).scatter(1, order, chosen)

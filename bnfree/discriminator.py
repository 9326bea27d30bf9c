"""A discriminator that tells a student's logits from a teacher's, as a second loss of distillation."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FLOOR = 8


class LogitDiscriminator(nn.Module):
    """Three linear layers K -> K/8 -> K/64 -> 2 with ReLU between them, on logits of K classes.

    Source: MEAL V2 (Shen and Savvides, arXiv 2009.08453) and its public code. Deviations: no hidden layer is narrower
    than eight, since theirs are made for 1,000 classes; and nothing stands behind the last layer, where theirs has a
    ReLU, which gives answers below 0 no gradient.

    Args:
        num_classes: K.

    Shape: (N, K) to (N, 2).
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        widths = [num_classes, max(FLOOR, num_classes // 8), max(FLOOR, num_classes // 64), 2]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, logits: Tensor) -> Tensor:
        """What speaks for teacher and student, (N, 2), of logits (N, K)."""
        return self.layers(logits)


def discriminator_loss(discriminator: nn.Module, student: Tensor, teacher: Tensor, adversarial: bool = False) -> Tensor:
    """Binary cross-entropy of a discriminator that says 1 to a teacher's logits and 0 to a student's.

    Args:
        discriminator: from logits (N, K) to two numbers (N, 2), teacher and student.
        student: its logits (N, K), which get a gradient.
        teacher: its logits (N, K).
        adversarial: the student's gradient is reversed, so that it learns to be taken for the teacher. Without, both
            minimise the same loss, as in the public code of MEAL V2.

    Returns:
        Shape ().
    """
    both = torch.cat([teacher.detach().to(student.dtype), _Reversed.apply(student) if adversarial else student])
    answers = discriminator(both)
    truth = torch.zeros_like(answers)
    truth[: len(teacher), 0] = 1
    truth[len(teacher) :, 1] = 1
    return F.binary_cross_entropy_with_logits(answers, truth)


class _Reversed(torch.autograd.Function):
    """The identity, whose gradient is multiplied by -1."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        """`x`."""
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor], output: Tensor) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        """-gradient."""
        return -gradient

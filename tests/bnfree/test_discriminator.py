"""The discriminator between logits, and which way it pulls the student."""

import pytest
import torch
from torch.nn import functional as F

from bnfree.discriminator import LogitDiscriminator, discriminator_loss


def test_its_widths_are_those_of_the_publication():
    widths = [tuple(layer.weight.shape) for layer in LogitDiscriminator(1000).layers if hasattr(layer, "weight")]
    assert widths == [(125, 1000), (15, 125), (2, 15)]
    assert LogitDiscriminator(4)(torch.randn(3, 4)).shape == (3, 2)


@pytest.mark.parametrize("adversarial", [False, True])
def test_the_student_is_pulled_apart_from_the_teacher_or_reversed(adversarial):
    torch.manual_seed(0)
    discriminator = LogitDiscriminator(64).double()
    student = torch.randn(5, 64, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, 64, dtype=torch.float64, requires_grad=True)
    loss = discriminator_loss(discriminator, student, teacher, adversarial)
    answers = discriminator(torch.cat([teacher, student]))
    truth = torch.tensor([[1.0, 0.0]] * 5 + [[0.0, 1.0]] * 5, dtype=torch.float64)
    expected = -(truth * F.logsigmoid(answers) + (1 - truth) * F.logsigmoid(-answers)).mean()
    torch.testing.assert_close(loss, expected)
    parameters = list(discriminator.parameters())
    ours = torch.autograd.grad(loss, [*parameters, student])
    theirs = torch.autograd.grad(expected, [*parameters, student])
    for one, other in zip(ours[:-1], theirs[:-1], strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(ours[-1], -theirs[-1] if adversarial else theirs[-1])
    assert teacher.grad is None

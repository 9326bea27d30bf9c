"""The distillation loss against formulas in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bnfree.distillation import corrected_distillation_loss, cosine_share, distillation_loss, mean_probabilities
from bnfree.errors import InputError


def logits(seed, n=5, classes=7):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(n, classes, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_a_student_equal_to_its_teacher_has_no_gradient(temperature):
    student = logits(0).requires_grad_()
    distillation_loss(student, mean_probabilities([student.detach()], temperature), temperature).backward()
    assert student.grad.abs().max() < 1e-12


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_loss_and_gradient_are_the_formulas(temperature):
    student, teacher = logits(0).requires_grad_(), logits(1)
    loss = distillation_loss(student, mean_probabilities([teacher], temperature), temperature)
    (gradient,) = torch.autograd.grad(loss, student)
    p, q = ((x / temperature).exp() for x in (teacher, student.detach()))
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    assert loss.item() == pytest.approx(-(temperature**2) * (p * q.log()).sum(1).mean().item(), rel=1e-12)
    torch.testing.assert_close(gradient, temperature * (q - p) / 5, rtol=1e-12, atol=1e-12)
    divergence = temperature**2 * F.kl_div(q.log(), p, reduction="batchmean")
    entropy = -(temperature**2) * (p * p.log()).sum(1).mean()
    assert loss.item() == pytest.approx((divergence + entropy).item(), rel=1e-12)


def test_the_size_of_the_gradient_hardly_depends_on_a_high_temperature():
    sizes = []
    for temperature in (20.0, 80.0):
        student = logits(0).requires_grad_()
        distillation_loss(student, mean_probabilities([logits(1)], temperature), temperature).backward()
        sizes.append(student.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)


def test_teachers_are_averaged_as_probabilities():
    sure, other = torch.tensor([[40.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    both = mean_probabilities([sure, other])
    expected = [(1 + a) / 2 if i == 0 else a / 2 for i, a in enumerate(F.softmax(other, 1)[0].tolist())]
    assert both[0].tolist() == pytest.approx(expected, rel=1e-6)
    # The mean of the logits would be sure of the first class.
    assert both[0, 0] < 0.61


def test_half_precision_is_raised():
    student, teacher = logits(0).bfloat16(), logits(1).bfloat16()
    loss = distillation_loss(student, mean_probabilities([teacher]))
    assert loss.dtype == torch.float32
    expected = F.cross_entropy(student.double(), teacher.double().softmax(1)).item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperatures_out_of_range_are_named(temperature):
    with pytest.raises(InputError, match="temperature="):
        mean_probabilities([logits(0)], temperature)
    with pytest.raises(InputError, match="temperature="):
        distillation_loss(logits(0), logits(0).softmax(1), temperature)


def test_no_teacher_and_other_classes_are_refused():
    with pytest.raises(InputError, match="no teacher"):
        mean_probabilities([])
    with pytest.raises(InputError, match=r"\(5, 6\).*\(5, 7\)"):
        distillation_loss(logits(0), logits(1, classes=6).softmax(1))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("correction", [0.0, 0.4, 1.0])
def test_labels_take_the_place_of_a_teacher_that_errs(temperature, correction):
    torch.manual_seed(0)
    logits, teacher = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    probabilities, labels = (teacher / temperature).softmax(1), teacher.argmax(1)
    labels[::2] = (labels[::2] + 1) % 5
    soft = -(probabilities * (logits / temperature).log_softmax(1)).sum(1) * temperature**2
    hard = -logits.log_softmax(1)[torch.arange(6), labels]
    expected = torch.cat([(1 - correction) * soft[::2] + correction * hard[::2], soft[1::2]]).mean()
    actual = corrected_distillation_loss(logits, probabilities, labels, correction, temperature)
    torch.testing.assert_close(actual, expected)


def test_the_correction_ends_along_a_cosine():
    assert [cosine_share(done) for done in (0, 1 / 3, 0.5, 1, 1.2)] == pytest.approx([1, 0.75, 0.5, 0, 0])

"""Losses by name, dotted path or as a callable."""

import pytest
import torch
from torch import nn

from bnfree.errors import InputError
from bnfree.losses import build_loss

LOGITS, LABELS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.0]], dtype=torch.float64), torch.tensor([0, 2])


def squared(logits, labels):
    return (logits.softmax(1) - nn.functional.one_hot(labels, logits.shape[1])).square().sum(1).mean()


class Squared:
    def __call__(self, logits, labels):
        return squared(logits, labels)


class Weighted(Squared):
    def __init__(self, weight):
        self.weight = weight


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("loss", ["cross_entropy", nn.CrossEntropyLoss, "torch.nn.functional.cross_entropy"])
def test_cross_entropy_with_smoothed_labels(loss, smoothing):
    target = nn.functional.one_hot(LABELS, 3) * (1 - smoothing) + smoothing / 3
    expected = -(target * LOGITS.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(build_loss(loss, smoothing)(LOGITS, LABELS), expected)


@pytest.mark.parametrize("loss", [squared, Squared, Squared()])
def test_ones_own(loss):
    assert build_loss(loss)(LOGITS, LABELS) == squared(LOGITS, LABELS)


@pytest.mark.parametrize(
    ("loss", "smoothing", "message"),
    [
        ("cross_entrpy", 0, "loss='cross_entrpy' is not known; did you mean 'cross_entropy'?"),
        ("torch.pi", 0, "loss='torch.pi' is no loss"),
        (squared, 0.1, "label_smoothing=0.1 is not an argument of loss="),
        (Weighted, 0, "needs arguments .*weight"),
        (lambda logits: logits.sum(), 0, r"cannot be called as loss\(logits, labels\) \(too many"),
    ],
)
def test_mistakes(loss, smoothing, message):
    with pytest.raises(InputError, match=message):
        build_loss(loss, smoothing)

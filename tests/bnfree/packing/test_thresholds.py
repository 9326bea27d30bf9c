"""One comparison decides what RSign decides, for the numbers on both sides of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfree.binarize import RSign
from bnfree.packing.thresholds import find_thresholds

shifts = st.floats(width=32, allow_nan=False, allow_infinity=False)
betas = st.floats(0, 2.0**100, width=32)


def thresholds_of(shift, beta):
    rsign = RSign(len(shift))
    rsign.shift.data.copy_(torch.tensor(shift))
    scale = None if beta is None else torch.tensor(beta)

    def sign(x):
        with torch.no_grad():
            return rsign(x.view(1, -1, 1, 1), scale).flatten()

    return find_thresholds(sign, len(shift)), sign


@given(st.lists(shifts, min_size=1, max_size=5), st.none() | betas)
@settings(deadline=None, max_examples=50)
def test_the_sign_changes_exactly_at_the_threshold(shift, beta):
    thresholds, sign = thresholds_of(shift, beta)
    assert torch.isfinite(thresholds).all()
    below = thresholds.nextafter(torch.tensor(-torch.inf))
    largest = torch.finfo(torch.float32).max
    for x in (thresholds, below, torch.zeros(len(shift)), -torch.zeros(len(shift)), -torch.tensor(shift)):
        inside = torch.isfinite(x) & ~((x == largest) & (thresholds == largest))
        assert torch.equal((x >= thresholds)[inside], (sign(x) > 0)[inside])


@pytest.mark.parametrize(("shift", "beta", "threshold"), [(0.5, None, -0.5), (0.0, 0.7, 0.0), (-3.0, 2.0, 1.5)])
def test_exact_equality_is_positive(shift, beta, threshold):
    thresholds, sign = thresholds_of([shift], beta)
    assert thresholds.item() == threshold
    assert sign(torch.tensor([threshold])).item() == 1


def test_a_sign_that_never_changes():
    thresholds, _ = thresholds_of([1.0, -1.0], 0.0)
    largest = torch.finfo(torch.float32).max
    assert thresholds.tolist() == [-largest, largest]

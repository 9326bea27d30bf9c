"""The controller that steers the share of flips."""

import math

import pytest
import torch

from bnfree.errors import InputError
from bnfree.flip_control import LIMIT, FlipControl, wanted_share

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("cosine", [1, (1 + math.sqrt(0.5)) / 2, 0.5, 0]),
        ("linear", [1, 0.75, 0.5, 0]),
        ("constant", [1, 1, 1, 1]),
    ],
)
def test_what_is_wanted(schedule, shares):
    found = [wanted_share(0.02, progress, schedule) for progress in (0, 0.25, 0.5, 1)]
    assert found == pytest.approx([0.02 * share for share in shares])
    assert wanted_share(0.02, 1.2, schedule) == wanted_share(0.02, 1, schedule)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(InputError, match="schedule='step'"):
        wanted_share(0.1, 0, "step")


def test_an_update_is_the_formula():
    control = FlipControl.starting(0.01, CPU)
    control.update(torch.tensor(0.014), 0.02, 0.9)
    mean = 0.9 * 0.01 + 0.1 * 0.014
    assert control.mean.item() == pytest.approx(mean)
    assert control.factor.item() == pytest.approx(math.exp(0.025 * (0.02 - mean) / 0.02))


@pytest.mark.parametrize("momentum", [0.8, 0.9, 0.99])
@pytest.mark.parametrize("response", [0.1, 1.0, 6.0])
def test_flips_in_proportion_to_the_step_arrive_without_swinging(momentum, response):
    """From a step that flips a tenth, or six times, of what is wanted."""
    control, shares = FlipControl.starting(0.005, CPU), []
    for _ in range(round(24 / (1 - momentum))):
        share = 0.005 * response * control.factor
        shares.append(share.item() / 0.005)
        control.update(share, 0.005, momentum)
    assert shares[-1] == pytest.approx(1, abs=0.08)
    assert min(shares) > 0.5 * min(1, response)
    assert max(shares) < 1.2 * max(1, response)


def test_a_step_stays_within_bounds_when_nothing_flips_or_nothing_should():
    control = FlipControl.starting(0.005, CPU)
    for _ in range(2000):
        control.update(torch.tensor(0.0), 0.005, 0.9)
    assert control.factor.item() == pytest.approx(LIMIT)
    for _ in range(2000):
        control.update(torch.tensor(0.1), 0.0, 0.9)
    assert control.factor.item() == pytest.approx(1 / LIMIT)

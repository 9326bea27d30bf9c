import pytest
import torch

from bnfree.errors import InputError
from bnfree.lightning_modules.modules.linear_decay import LinearDecay


def learning_rates(total, **kwargs):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = LinearDecay(optimizer, total, **kwargs)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_falls_linearly_and_the_last_step_still_moves():
    assert learning_rates(4) == pytest.approx([2.0, 1.5, 1.0, 0.5])


def test_warm_up_rises_under_the_same_line():
    rates = learning_rates(10, warmup=4)
    expected = [2 * (1 - k / 10) * min(1, (k + 1) / 5) for k in range(10)]
    assert rates == pytest.approx(expected)
    assert min(rates) > 0


def test_one_step_too_many_does_not_climb_the_gradient():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = LinearDecay(optimizer, 3)
    for _ in range(6):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] > 0


@pytest.mark.parametrize("warmup", [-1, 5, 9])
def test_warm_up_must_fit_into_the_run(warmup):
    with pytest.raises(InputError, match=f"warmup={warmup}"):
        learning_rates(5, warmup=warmup)

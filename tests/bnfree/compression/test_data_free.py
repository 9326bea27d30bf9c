"""Channels that go without data: what is made up for, by how much, and the grid of rounded weights."""

import math

import pytest
import torch
from torch.nn import functional as F

from bnfree.compression.data_free import DataFree, nonnegative_mix
from bnfree.compression.inner_channels import InnerChannels
from bnfree.errors import InputError

RATIOS = [0.0, 0.25, 0.5, 0.75, 0.9]


def channels_of(count=12, inputs=6, outputs=5):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return InnerChannels(draw(count, inputs, 3, 3), 0.3 * draw(count), draw(outputs, count, 3, 3))


def branch(channels):
    """What the branch makes of inputs as they come from a scaled ReLU."""
    generator = torch.Generator().manual_seed(1)
    x = torch.relu(torch.randn(4, channels.incoming.shape[1], 9, 9, generator=generator, dtype=torch.float64))
    return F.conv2d(torch.relu(F.conv2d(x, channels.incoming, channels.shift)), channels.outgoing)


def error(method, channels):
    return (branch(method(channels)) - branch(channels)).square().mean().sqrt().item()


def with_proportional(channels, factor=2.5, weak=0.01):
    """Channel 3 is a multiple of channel 7, and the weakest of all."""
    channels.incoming[3], channels.shift[3] = factor * channels.incoming[7], factor * channels.shift[7]
    channels.outgoing[:, 3] *= weak
    return channels


def test_a_proportional_channel_goes_without_error():
    channels = with_proportional(channels_of())
    left = DataFree(ratio=1 / 12, alpha=0.0)(channels)
    assert left.shift.shape == (11,)
    torch.testing.assert_close(branch(left), branch(channels), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(left.outgoing[:, 6], channels.outgoing[:, 7] + 2.5 * channels.outgoing[:, 3])
    assert error(DataFree(1 / 12, math.inf), channels) > 0.1


def test_a_large_penalty_is_plain_pruning():
    channels = channels_of()
    strength = channels.rows.norm(dim=1) * channels.outgoing.square().sum((0, 2, 3)).sqrt()
    kept = strength.argsort()[6:].sort().values
    for alpha in (1e12, math.inf):
        left = DataFree(0.5, alpha)(channels)
        torch.testing.assert_close(left.incoming, channels.incoming[kept])
        torch.testing.assert_close(left.shift, channels.shift[kept])
        torch.testing.assert_close(left.outgoing, channels.outgoing[:, kept], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.01, math.inf])
def test_the_error_grows_with_the_share_that_goes(alpha):
    channels = channels_of()
    errors = [error(DataFree(ratio, alpha), channels) for ratio in RATIOS]
    assert errors[0] < 1e-12
    assert errors == sorted(errors)
    assert errors[1] > 1e-3


def test_what_is_made_up_for_errs_less_than_what_is_not():
    """Filters of few kinds, as trained ones are."""
    channels = channels_of()
    kinds = channels.incoming[torch.arange(12) % 5]
    channels = InnerChannels(kinds + 0.3 * channels.incoming, channels.shift, channels.outgoing)
    for bits in (None, 4):
        assert error(DataFree(0.5, 0.01, bits), channels) < 0.9 * error(DataFree(0.5, math.inf, bits), channels)


def test_the_mix_is_the_minimum_that_has_no_negative_number():
    generator = torch.Generator().manual_seed(2)
    targets, parts = (torch.randn(n, 8, generator=generator, dtype=torch.float64) for n in (4, 5))
    mix = nonnegative_mix(targets, parts, 0.1)
    gradient = (mix @ parts - targets) @ parts.T + 0.1 * mix
    # Karush-Kuhn-Tucker: no slope where it is positive, and none downwards where it is 0.
    assert (mix >= 0).all()
    assert gradient[mix > 0].abs().max() < 1e-7
    assert gradient[mix == 0].min() > -1e-7
    assert 3 < (mix == 0).sum() < 17
    solved = torch.linalg.solve(parts @ parts.T + 0.1 * torch.eye(5, dtype=torch.float64), parts @ targets.T).T
    positive = (solved > 0).all(1)
    torch.testing.assert_close(mix[positive], solved[positive])


def test_dead_channels_are_no_part_of_a_mix():
    channels = channels_of()
    channels.incoming[:3], channels.shift[:3] = 0, 0
    assert branch(DataFree(0.5, 0.0)(channels)).isfinite().all()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_are_on_the_grid_of_their_filter(bits):
    left = DataFree(0.25, 0.01, bits)(channels_of())
    for weight in (left.incoming, left.outgoing):
        for row in weight.flatten(1):
            steps = row / row.abs().max() * (2 ** (bits - 1) - 1)
            torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-9)
            assert len(row.unique()) <= 2**bits - 1


def test_more_bits_err_less():
    channels = channels_of()
    errors = [error(DataFree(0.0, 0.01, bits), channels) for bits in (2, 4, 6, 8, 16)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 * errors[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"ratio": 1.0}, "ratio=1.0"),
        ({"alpha": -1.0}, "alpha=-1.0"),
        ({"alpha": math.nan}, "alpha="),
        ({"bits": 1}, "bits=1"),
    ],
)
def test_values_out_of_range_are_named(arguments, said):
    with pytest.raises(InputError, match=f"^{said}"):
        DataFree(**arguments)

import itertools
import math

import pytest

from bnfree.errors import InputError
from bnfree.tickets import kept_count, level_densities


def test_each_level_prunes_the_same_share_of_what_is_left():
    densities = level_densities(0.2, levels=6)
    assert densities == pytest.approx([1, 0.8, 0.64, 0.512, 0.4096, 0.32768, 0.262144], abs=1e-12)
    assert level_densities(0.5, levels=0) == (1.0,)


@pytest.mark.parametrize("target", [0.3, 0.262144, 0.8**5, 0.01, 0.9])
def test_the_last_level_has_the_target_density_exactly(target):
    densities = level_densities(0.2, target_density=target)
    assert densities[-1] == target
    assert len(densities) - 1 == math.ceil(math.log(target) / math.log(0.8) - 1e-6)
    assert all(a > b for a, b in itertools.pairwise(densities))
    assert densities[:-1] == level_densities(0.2, levels=len(densities) - 2)


def test_what_comes_first_of_target_and_levels():
    assert level_densities(0.5, 0.2, levels=2) == (1.0, 0.5, 0.25)
    assert level_densities(0.5, 0.2, levels=9) == (1.0, 0.5, 0.25, 0.2)
    assert level_densities(0.5, 1.0) == (1.0,)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"rate": 0, "levels": 1}, "rate=0 must be between 0 and 1"),
        ({"rate": 1.0, "levels": 1}, "rate=1.0 must be"),
        ({"rate": 20, "levels": 1}, "rate=20 must be"),
        ({"rate": float("nan"), "levels": 1}, "rate=nan must be"),
        ({"target_density": 0}, "target_density=0 must be above 0 and at most 1"),
        ({"target_density": 1.5}, "target_density=1.5 must be"),
        ({"levels": -1}, "levels=-1 must be at least 0"),
        ({}, "neither target_density nor levels"),
    ],
)
def test_values_out_of_range(arguments, said):
    with pytest.raises(InputError) as caught:
        level_densities(**arguments)
    assert said in str(caught.value)


def test_counts_are_the_nearest_integers():
    assert [kept_count(10, d) for d in (0.04, 0.05, 0.14, 0.15, 0.96, 1)] == [0, 1, 1, 2, 10, 10]
    assert kept_count(1000, 0.8**3) == 512

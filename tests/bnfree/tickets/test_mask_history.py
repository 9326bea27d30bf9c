import pytest
import torch

from bnfree.errors import InputError
from bnfree.tickets import MaskHistory
from bnfree.tickets.mask_history import check_tolerance

SHAPES = {"a": (4, 3, 3, 3), "b": (8, 4, 1, 1)}
WEIGHTS = 140


def masks(*pruned):
    """All weights survive but those of the given numbers, counted over both layers."""
    flat = torch.ones(WEIGHTS, dtype=torch.bool)
    flat[list(pruned)] = False
    return {"a": flat[:108].view(SHAPES["a"]), "b": flat[108:].view(SHAPES["b"])}


def test_distances_are_shares_of_all_weights_to_the_newest():
    history = MaskHistory(window=3, tolerance=0.1)
    assert (history.distances, history.newest, history.settled) == ([], {}, False)
    history.observe(0, masks(0, 1, 2))
    assert (history.distances, history.settled) == ([], False)
    history.observe(1, masks(2, 3))
    assert history.distances == [3 / WEIGHTS]
    history.observe(2, masks(139))
    assert history.distances == [4 / WEIGHTS, 3 / WEIGHTS]
    history.observe(3, masks())
    # The first has left.
    assert history.distances == [2 / WEIGHTS, 1 / WEIGHTS]


def test_settles_when_the_window_is_full_and_all_are_close():
    history = MaskHistory(window=3, tolerance=2 / WEIGHTS)
    found = []
    for epoch, pruned in enumerate([(0,), (0,), (0, 1, 2), (0, 1), (0, 1), (0, 1)]):
        history.observe(epoch, masks(*pruned))
        found.append(history.settled)
    # Epoch 2: a distance of 2 weights is not below the tolerance; epoch 3: one of 1 weight and one of 1; and so on.
    assert found == [False, False, False, True, True, True]


def test_the_mask_of_an_epoch_that_runs_again_is_replaced():
    history = MaskHistory(window=3)
    for epoch, pruned in enumerate([(0,), (1,), (2,)]):
        history.observe(epoch, masks(*pruned))
    history.observe(1, masks(0, 1, 2, 3))
    assert history.distances == [3 / WEIGHTS]


def test_goes_on_from_a_state_that_loads_safely(tmp_path):
    history, other = MaskHistory(window=3), MaskHistory(window=3)
    for epoch, pruned in enumerate([(0,), (1,), (1, 2)]):
        history.observe(epoch, masks(*pruned))
    torch.save(history.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.distances == history.distances
    assert all(torch.equal(mask, history.newest[name]) for name, mask in other.newest.items())
    for each in (history, other):
        each.observe(3, masks(5))
    assert other.distances == history.distances == [2 / WEIGHTS, 3 / WEIGHTS]


@pytest.mark.parametrize("density", [0.5, 0.2, 0.05])
def test_unrelated_masks_differ_by_the_chance_that_the_refusal_names(density):
    generator = torch.Generator().manual_seed(0)
    first, second = ({"a": torch.rand(64, 64, 3, 3, generator=generator) < density} for _ in range(2))
    history = MaskHistory(window=2, tolerance=1)
    history.observe(0, first)
    history.observe(1, second)
    chance = 2 * density * (1 - density)
    assert history.distances[0] == pytest.approx(chance, rel=0.03)
    check_tolerance(0.99 * chance, density)
    with pytest.raises(InputError, match=f"unrelated masks differ in {chance:.2g}"):
        check_tolerance(chance, density)


def test_mistakes_are_said():
    with pytest.raises(InputError, match="window=1 must be at least 2"):
        MaskHistory(window=1)
    with pytest.raises(InputError, match="tolerance=0 must be above 0"):
        MaskHistory(tolerance=0)
    history = MaskHistory()
    history.observe(0, masks())
    with pytest.raises(InputError, match="not of the same layers"):
        history.observe(1, {"a": masks()["a"]})
    assert history.newest.keys() == SHAPES.keys()

import pytest
import torch

from bnfree.datamodules.randomness import epoch_crops_and_flips, epoch_order, stratified_split


def test_stratified_split_is_a_partition_in_proportion():
    labels = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)[torch.randperm(100)]
    rest, held = stratified_split(labels, 30, seed=3)
    assert sorted([*rest.tolist(), *held.tolist()]) == list(range(100))
    assert torch.bincount(labels[held]).tolist() == [21, 6, 3]


@pytest.mark.parametrize("holdout", [0, 1, 7, 50, 99, 100])
def test_stratified_split_has_the_exact_size_and_is_off_by_less_than_one_image_per_class(holdout):
    labels = torch.randint(0, 7, (100,), generator=torch.Generator().manual_seed(1))
    rest, held = stratified_split(labels, holdout, seed=0)
    assert (len(rest), len(held)) == (100 - holdout, holdout)
    exact = holdout * torch.bincount(labels, minlength=7) / 100
    assert ((torch.bincount(labels[held], minlength=7) - exact).abs() < 1).all()


def test_split_depends_on_its_seed_alone():
    labels = torch.arange(50) % 5
    first = stratified_split(labels, 10, 0)
    torch.manual_seed(99)
    again, other = stratified_split(labels, 10, 0), stratified_split(labels, 10, 1)
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


def test_epoch_one_of_seed_zero_is_not_epoch_zero_of_seed_one():
    assert not torch.equal(epoch_order(100, 0, 1), epoch_order(100, 1, 0))
    assert sorted(epoch_order(100, 0, 1).tolist()) == list(range(100))


def test_offsets_and_flips_are_uniform():
    offsets, flips = epoch_crops_and_flips(60_000, 2, True, 0, 0)
    share = torch.bincount(offsets[:, 0] * 5 + offsets[:, 1], minlength=25) / 60_000
    torch.testing.assert_close(share, torch.full((25,), 1 / 25), rtol=0, atol=0.005)
    assert abs(flips.float().mean() - 0.5) < 0.01
    assert not epoch_crops_and_flips(100, 2, False, 0, 0)[1].any()

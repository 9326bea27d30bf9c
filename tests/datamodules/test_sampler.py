import itertools

import pytest
import torch
from torch.utils.data import DistributedSampler

from bnfree.datamodules.sampler import GlobalBatchSampler
from bnfree.errors import InputError


def test_evaluation_shows_each_image_once_in_equally_many_full_batches_on_each_rank():
    for n, batch, world in itertools.product(range(1, 40), (1, 2, 3, 8), (1, 2, 3, 4)):
        if n < world:
            with pytest.raises(InputError, match=f"{n} images for {world} processes"):
                GlobalBatchSampler(n, batch, world, 0)
            continue
        samplers = [GlobalBatchSampler(n, batch, world, rank) for rank in range(world)]
        batches = [list(sampler) for sampler in samplers]
        assert {len(b) for b in batches} == {len(samplers[0])}
        sizes = [len(b) for rank in batches for b in rank]
        assert min(sizes) >= 1
        assert max(sizes) <= batch + (1 if world > 1 else 0)
        assert sorted(i for rank in batches for b in rank for i in b.tolist()) == list(range(n))


def test_ranks_together_see_the_global_batches_of_one_process():
    for world in (2, 3, 4):
        single = GlobalBatchSampler(131, 4 * world, shuffle=True, drop_last=True, seed=5)
        ranks = [GlobalBatchSampler(131, 4, world, r, shuffle=True, drop_last=True, seed=5) for r in range(world)]
        for epoch in (0, 3):
            for sampler in (single, *ranks):
                sampler.set_epoch(epoch)
            together = [torch.cat(parts) for parts in zip(*ranks, strict=True)]
            assert len(together) == len(single) == 131 // (4 * world)
            assert all(torch.equal(a, b) for a, b in zip(together, single, strict=True))
            assert all(len(batch) == 4 for rank in ranks for batch in rank)


def test_training_order_is_a_new_permutation_in_each_epoch_and_for_each_seed():
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        sampler = GlobalBatchSampler(64, 8, shuffle=True, drop_last=True, seed=seed)
        sampler.set_epoch(epoch)
        orders.append(torch.cat(list(sampler)))
        assert sorted(orders[-1].tolist()) == list(range(64))
    assert len({tuple(order.tolist()) for order in orders}) == 3


def test_training_part_smaller_than_a_global_batch_is_refused():
    with pytest.raises(InputError, match=r"batch_size=64 on each of 2 processes needs 128 images.*at most 50"):
        GlobalBatchSampler(100, 64, 2, 1, shuffle=True, drop_last=True)


def test_lightning_sees_a_distributed_sampler():
    assert isinstance(GlobalBatchSampler(10, 2), DistributedSampler)

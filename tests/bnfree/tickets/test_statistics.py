import math

import pytest
import torch

from bnfree.errors import InputError
from bnfree.tickets import effective_zeros, hamming_distance, mask_statistics, overlap


def masks_by_hand():
    first = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]]).bool().view(2, 4, 1, 1)
    return {"a": first, "b": torch.zeros(3, 1, 2, 2).bool(), "c": torch.ones(1, 2, 1, 1).bool()}


def test_what_masks_keep():
    statistics = mask_statistics(masks_by_hand())
    rows = {row.name: row for row in statistics.layers}
    assert [(r.weights, r.kept, r.density, r.share) for r in rows.values()] == [
        (8, 2, 0.25, 0.5), (12, 0, 0.0, 0.0), (2, 2, 1.0, 0.5),
    ]  # fmt: skip
    assert [(r.filters, r.empty_filters, r.empty_layers) for r in rows.values()] == [(2, 1, 0), (3, 3, 1), (1, 0, 0)]
    total = statistics.total
    assert (total.weights, total.kept, total.filters, total.empty_filters, total.empty_layers) == (22, 4, 6, 4, 1)
    assert total.density == 4 / 22
    assert total.share == 1


def test_stored_bits_fall_below_one_at_a_density_of_0_227():
    def bits(kept):
        return mask_statistics({"a": (torch.arange(1000) < kept).view(10, 100, 1, 1)}).total.bits_per_weight

    assert bits(0) == 0
    assert bits(1000) == 1
    assert bits(50) == pytest.approx(-(0.05 * math.log2(0.05) + 0.95 * math.log2(0.95)) + 0.05)
    assert bits(227) < 1 < bits(228)


def test_zeros_are_counted_where_the_convolution_has_them(small_net):
    network = small_net()
    layer = network.body[0].convolution
    # Zeros among latent weights mean nothing.
    layer.weight.data[:, 0] = 0
    assert set(effective_zeros(network).values()) == {0}
    mask = torch.ones(layer.weight.shape)
    mask[:, 1] = 0
    layer.set_mask(mask)
    zeros = effective_zeros(network)
    assert zeros.pop("body.0.convolution") == 36
    assert set(zeros.values()) == {0}
    assert set(zeros) == {"stem.convolution", "body.1.convolution", "body.1.projection", "body.2.convolution"}


def test_overlap_by_hand():
    second = masks_by_hand()
    second["a"] = torch.tensor([[0, 1, 1, 1], [1, 0, 0, 0]]).bool().view(2, 4, 1, 1)
    found = overlap(masks_by_hand(), second)
    assert (found.weights, found.first, found.second, found.both) == (22, 4, 6, 3)
    assert found.chance_both == 2 * 4 / 8 + 0 + 2
    assert found.chance_both_global == 4 * 6 / 22
    assert found.intersection == 3 / 4
    assert found.jaccard == 3 / 7
    assert found.chance_jaccard == 3 / 7
    assert found.hamming == hamming_distance(masks_by_hand(), second) == 4 / 22


@pytest.mark.parametrize("density", [0.05, 0.3, 0.8])
def test_the_chance_level_is_that_of_random_masks(density):
    generator = torch.Generator().manual_seed(0)

    def draw():
        return {"a": (torch.randperm(2000, generator=generator) < 2000 * density).view(20, 100, 1, 1)}

    found = [overlap(draw(), draw()) for _ in range(50)]
    mean = sum(each.jaccard for each in found) / 50
    assert found[0].chance_jaccard == pytest.approx(density**2 / (2 * density - density**2))
    assert mean == pytest.approx(found[0].chance_jaccard, rel=0.1)
    assert sum(each.hamming for each in found) / 50 == pytest.approx(2 * density * (1 - density), rel=0.05)


def test_extremes():
    masks = masks_by_hand()
    same = overlap(masks, masks)
    assert (same.jaccard, same.intersection, same.hamming) == (1, 1, 0)
    none = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    assert overlap(none, none).jaccard == 1
    assert overlap(masks, none).jaccard == overlap(masks, none).intersection == 0
    assert mask_statistics(none).total.share == 0


def test_what_cannot_be_compared():
    masks = masks_by_hand()
    for other in ({"a": masks["a"]}, {**masks, "a": masks["a"].view(4, 2, 1, 1)}):
        with pytest.raises(InputError, match="not of the same layers and shapes"):
            overlap(masks, other)
    with pytest.raises(InputError, match="masks is empty"):
        mask_statistics({})

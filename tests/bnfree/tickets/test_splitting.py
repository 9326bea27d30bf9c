import pytest
import torch

from bnfree.errors import InputError
from bnfree.tickets import checksum, join_key, prunable_layers, prune, score_weights, split_key


@pytest.fixture
def parts(small_net):
    network = small_net(width=8)
    return prune(network, 0.4), score_weights(prunable_layers(network))


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5])
def test_a_split_ticket_is_whole_again_with_its_key_alone(parts, share):
    masks, scores = parts
    locked, key = split_key(masks, scores, share)
    survivors = sum(int(mask.sum()) for mask in masks.values())
    assert sum(int(mask.sum()) for mask in key.values()) == round(share * survivors)
    assert not any((locked[name] & key[name]).any() for name in masks)
    assert checksum(join_key(locked, key)) == checksum(masks)
    best = torch.cat([scores[name][mask] for name, mask in key.items()]).min()
    rest = torch.cat([scores[name][mask] for name, mask in locked.items()]).max()
    assert best >= rest


def test_equal_scores_are_split_exactly(parts):
    masks, scores = parts
    equal = {name: torch.ones_like(score) for name, score in scores.items()}
    _, key = split_key(masks, equal, 0.1)
    survivors = sum(int(mask.sum()) for mask in masks.values())
    assert sum(int(mask.sum()) for mask in key.values()) == round(0.1 * survivors)
    assert all(mask.any() for mask in key.values())


def test_mistakes(parts):
    masks, scores = parts
    locked, key = split_key(masks, scores)
    first = next(iter(masks))
    broken = scores | {first: scores[first] * torch.nan}
    for call, said in (
        (lambda: split_key(masks, scores, 0.0), "share=0.0 must be between 0 and 1"),
        (lambda: split_key(masks, scores, 1e-9), "survivors is 0 weights; the key needs some but not all"),
        (lambda: split_key(masks, {}), f"scores holds nothing of the shape (8, 8, 3, 3) for {first!r}"),
        (lambda: split_key(masks, broken), f"scores[{first!r}] holds NaN"),
        (lambda: join_key(masks, key), f"key_masks keeps weights of {first!r} that locked keeps too"),
        (lambda: join_key(locked, {first: key[first]}), "are not of the same layers and shapes"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert said in str(caught.value)

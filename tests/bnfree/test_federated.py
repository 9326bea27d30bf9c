"""Federated averaging: what it is the same as, and partitions that are partitions."""

import copy

import pytest
import torch
from torch.nn import functional as F
from torch.optim import SGD

from bnfree.backbones import ReActNet18
from bnfree.clipping import adaptive_clip_grad_
from bnfree.compression import remove_rows
from bnfree.errors import InputError
from bnfree.federated import (
    average_states,
    binary_weights_of,
    dirichlet_partition,
    federated_round,
    sign_disagreement,
)


def network(binary=True):
    torch.manual_seed(0)
    return ReActNet18(num_classes=3, width=2, binary_weights=binary).double()


def batch(seed, size):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, 8, 8, dtype=torch.float64, generator=generator)
    return images, torch.randint(0, 3, (size,), generator=generator)


@pytest.mark.parametrize("concentration", [0.05, 0.5, 100.0])
def test_a_partition_is_one(concentration):
    labels = torch.arange(1000) % 10
    parts = dirichlet_partition(labels, 7, concentration, seed=3)
    assert torch.cat(parts).sort().values.equal(torch.arange(1000))
    counts = torch.stack([labels[part].bincount(minlength=10) for part in parts]).double()
    shares = (counts / counts.sum(0)).std(0).mean()
    assert shares < 0.03 if concentration == 100 else shares > 0.1
    assert all(a.equal(b) for a, b in zip(parts, dirichlet_partition(labels, 7, concentration, seed=3), strict=True))


def test_averages_have_their_weights_and_equal_networks_stay():
    one, other = network().state_dict(), {n: v + 1 for n, v in network().state_dict().items()}
    for name, value in average_states([one, copy.deepcopy(one)], [1, 5]).items():
        torch.testing.assert_close(value, one[name])
    for name, value in average_states([one, other], [1, 3]).items():
        torch.testing.assert_close(value, one[name] + 0.75)
    with pytest.raises(InputError, match="weights="):
        average_states([one], [0])
    # Equally many rows are left, but others.
    shrunk = []
    for row in (0, 1):
        smaller = network()
        remove_rows(smaller, {"body.0.0.convolution": [row]})
        shrunk.append(smaller.state_dict())
    with pytest.raises(InputError, match="states hold different 'body.0.0.convolution.kept_rows'"):
        average_states(shrunk, [1, 1])


def test_one_step_of_equal_clients_is_a_step_on_all_their_images():
    """Whatever the sizes: also of clients with one image."""
    ours, plain = network(), network()
    batches = [batch(0, 1), batch(1, 4), batch(2, 3)]
    disagreement = federated_round(ours, [[b] for b in batches] + [[]], lambda p: SGD(p, lr=0.3))
    F.cross_entropy(plain(torch.cat([b[0] for b in batches])), torch.cat([b[1] for b in batches])).backward()
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other - 0.3 * other.grad, rtol=1e-8, atol=1e-10)
    assert 0 <= disagreement < 0.5
    assert all(p.grad is None for p in ours.parameters())


def test_disagreement_counts_signs_alone():
    model = network()
    names = binary_weights_of(model)
    assert "body.0.0.convolution.weight" in names
    assert "stem.convolution.weight" not in names
    one = {n: torch.tensor([1.0, -1.0, 0.0, 2.0]) for n in names}
    other = {n: torch.tensor([3.0, 1.0, 1.0, -2.0]) for n in names}
    assert sign_disagreement([one, other], names) == 0.5
    assert binary_weights_of(network(binary=False)) == []


def test_gradients_are_clipped_but_those_of_the_classifier():
    ours, plain, (images, labels) = network(), network(), batch(0, 4)
    federated_round(ours, [[(images, labels)]], lambda p: SGD(p, lr=0.3), clip_factor=0.01)
    F.cross_entropy(plain(images), labels).backward()
    adaptive_clip_grad_([p for n, p in plain.named_parameters() if not n.startswith("classifier")], 0.01)
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other - 0.3 * other.grad, rtol=1e-8, atol=1e-10)
    with pytest.raises(InputError, match="clients have no batch"):
        federated_round(ours, [[], []], lambda p: SGD(p, lr=0.05))

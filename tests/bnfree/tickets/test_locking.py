import dataclasses

import pytest
import torch

from bnfree.errors import InputError
from bnfree.tickets import Ticket, apply, lock, mask_statistics, prune, take_snapshot, unlock


@pytest.fixture
def ticket(small_net):
    network, start = small_net(seed=1, width=16), take_snapshot(small_net(seed=2, width=16))
    apply(network, prune(network, 0.3))
    return Ticket.of(network, rewind=start, score="standardized", scope="global", density=0.3, details={"rate": 0.2})


def assert_same(first, second):
    assert first.details == second.details
    assert first.checksum == second.checksum
    for ours, theirs in ((first.state_dict, second.state_dict), (first.rewind or {}, second.rewind or {})):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("with_rewind", [True, False])
def test_joined_the_ticket_is_the_same_bit_for_bit(ticket, with_rewind):
    ticket = ticket if with_rewind else dataclasses.replace(ticket, rewind=None)
    locked, key = lock(ticket, 0.1)
    assert_same(unlock(locked, key), ticket)
    survivors = mask_statistics(ticket.masks).total.kept
    assert locked.details["locked"] == {"id": key.id, "weights": round(0.1 * survivors)}
    assert mask_statistics(locked.masks).total.kept == survivors - round(0.1 * survivors)


def test_the_locked_ticket_holds_no_value_of_the_key(ticket):
    locked, key = lock(ticket, 0.1)
    for name, mask in key.masks.items():
        weight = f"{name}.weight"
        # As pruned weights are: 0 among those it was found with, a draw of their size among those of the start.
        assert (locked.state_dict[weight][mask] == 0).all()
        replaced, before = locked.rewind[weight][mask], ticket.rewind[weight][mask]
        assert not (replaced == before).any()
        pruned = ticket.rewind[weight][~ticket.masks[name]]
        if len(replaced) > 40:
            assert replaced.std().item() == pytest.approx(pruned.std().item(), rel=0.4)
        others = ~mask
        assert torch.equal(locked.rewind[weight][others], ticket.rewind[weight][others])
    assert "classifier.weight" in locked.state_dict


def test_the_key_holds_the_largest_survivors_in_units_of_their_filter(ticket):
    _, key = lock(ticket, 0.05)
    inside, outside = [], []
    for name, mask in ticket.masks.items():
        weight = ticket.state_dict[f"{name}.weight"].double()
        for row, kept, taken in zip(weight, mask, key.masks[name], strict=True):
            values = row[kept]
            if values.numel() < 2:
                continue
            size = ((row - values.mean()) / values.std(correction=0)).abs()
            inside += size[taken].tolist()
            outside += size[kept & ~taken].tolist()
    assert min(inside) >= max(outside) - 1e-3


def test_mistakes(ticket):
    locked, key = lock(ticket, 0.1)
    _, other = lock(ticket, 0.2)
    altered = {name: torch.ones_like(mask) & ~key.masks[name] for name, mask in locked.masks.items()}
    state = {**locked.state_dict, **{f"{name}.mask": mask for name, mask in altered.items()}}
    for call, said in (
        (lambda: lock(locked, 0.1), f"the ticket is locked with the key {key.id}; join them first"),
        (lambda: lock(ticket, 1.5), "share=1.5 must be between 0 and 1"),
        (lambda: unlock(ticket, key), "the ticket is not locked"),
        (lambda: unlock(locked, other), f"the key is {other.id}, but the ticket is locked with {key.id}"),
        (lambda: unlock(dataclasses.replace(locked, state_dict=state), key), "do not give those that were split"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert said in str(caught.value)

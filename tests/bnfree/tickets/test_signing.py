import dataclasses

import pytest
import torch

from bnfree.errors import InputError
from bnfree.tickets import Ticket, apply, commitment, mask_statistics, prune, take_snapshot, verify
from bnfree.tickets.signing import sign_ticket, signature_of

KEY = "the owner's long secret"


@pytest.fixture
def ticket(small_net):
    network, start = small_net(seed=1, width=32), take_snapshot(small_net(seed=2, width=32))
    apply(network, prune(network, 0.2))
    return Ticket.of(network, rewind=start, score="standardized", scope="global", density=0.2)


def test_masks_weights_and_signature_belong_together(ticket, small_net):
    signed = sign_ticket(ticket, KEY, "card", bits=64, created="2026-05-04")
    signature = signature_of(signed)
    assert signature_of(ticket) is None
    assert verify(signed.masks, KEY, signature).agreement == 1
    assert commitment(signed.masks, KEY, "card", "2026-05-04") == signature.commitment
    for before, after in zip(mask_statistics(ticket.masks).layers, mask_statistics(signed.masks).layers, strict=True):
        assert before.kept == after.kept
    moved = 0
    for name, mask in signed.masks.items():
        weight, new = f"{name}.weight", mask & ~ticket.masks[name]
        moved += int(new.sum())
        # What comes alive has the value that it would start from; the rest is as it was; what is pruned is 0.
        assert torch.equal(signed.state_dict[weight][new], ticket.rewind[weight][new])
        stayed = mask & ticket.masks[name]
        assert torch.equal(signed.state_dict[weight][stayed], ticket.state_dict[weight][stayed])
        assert (signed.state_dict[weight][~mask] == 0).all()
        assert torch.equal(signed.rewind[weight], ticket.rewind[weight])
    assert moved > 0
    fresh = small_net(width=32)
    fresh.load_state_dict(signed.state_dict)
    assert KEY not in str(signed.details)


def test_without_a_rewind_point_new_weights_are_drawn_and_their_places_show_nothing(ticket):
    bare = dataclasses.replace(ticket, rewind=None)
    signed = sign_ticket(bare, KEY, bits=256)
    taps, values = [], []
    for name, mask in signed.masks.items():
        new = mask & ~ticket.masks[name]
        if mask.shape[-1] == 3:
            taps += (new.flatten(2).nonzero()[:, 2]).tolist()
        values.append(signed.state_dict[f"{name}.weight"][new])
    values = torch.cat(values)
    assert (values != 0).all()
    assert len(values) > 30
    counts = torch.bincount(torch.tensor(taps), minlength=9).double()
    # Not always the first of a kernel: chi squared of nine places, 8 degrees of freedom.
    assert (counts - counts.mean()).square().sum() / counts.mean() < 8 + 5 * 16**0.5


def test_a_second_mark_keeps_the_first_signature(ticket):
    once = sign_ticket(ticket, KEY, "first", bits=32)
    twice = sign_ticket(once, "another long secret", "second", bits=32)
    assert twice.details["earlier_ownership"] == [once.details["ownership"]]
    assert signature_of(twice).message == "second"
    with pytest.raises(InputError, match="key has 5 characters"):
        sign_ticket(ticket, "short")

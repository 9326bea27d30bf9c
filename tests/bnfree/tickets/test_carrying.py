import pytest
import torch

from bnfree.errors import InputError
from bnfree.tickets import Ticket, apply, carry, prune, take_snapshot


@pytest.fixture
def ticket(small_net):
    network = small_net(seed=1, width=8)
    apply(network, prune(network, 0.3))
    start = take_snapshot(small_net(seed=2, width=8))
    return Ticket.of(network, rewind=start, score="standardized", scope="global", density=0.3)


def test_masks_alone_start_from_the_weights_of_the_fresh_network(ticket, small_net):
    fresh = small_net(seed=3, width=8)
    carried = carry(ticket, fresh, "mask")
    assert carried.checksum == ticket.checksum
    assert carried.rewind.keys() == ticket.rewind.keys()
    assert all(torch.equal(tensor, fresh.state_dict()[name]) for name, tensor in carried.rewind.items())
    assert carried.details["carried"] == "mask"


def test_signs_are_kept_and_magnitudes_are_one_for_each_layer(ticket, small_net):
    carried = carry(ticket, small_net(seed=3, width=8), "signs")
    before, after = small_net(width=8), small_net(width=8)
    before.load_state_dict(ticket.start())
    after.load_state_dict(carried.start())
    for (name, old), (_, new) in zip(before.named_modules(), after.named_modules(), strict=True):
        if name in ticket.masks:
            assert torch.equal(old.effective_weight().sign(), new.effective_weight().sign())
            assert len(carried.rewind[f"{name}.weight"][ticket.masks[name]].abs().unique()) == 1
    assert not [name for name in carried.rewind if name.endswith(".mask")]


def test_both_is_the_ticket_itself_and_an_unknown_choice_is_refused(ticket, small_net):
    assert carry(ticket, small_net(width=8)) is ticket
    with pytest.raises(InputError, match="copy='all' is not known; choose 'both', 'signs' or 'mask'"):
        carry(ticket, small_net(width=8), "all")

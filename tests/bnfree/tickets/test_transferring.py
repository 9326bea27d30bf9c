import pytest
import torch

from bnfree.backbones import ReActNet18
from bnfree.errors import InputError
from bnfree.tickets import Ticket, apply, prune, take_snapshot, transfer


def network(seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ReActNet18(**{"num_classes": 4, "width": 4, "blocks_per_stage": [1, 2, 1, 1], **options})


@pytest.fixture
def ticket():
    source = network()
    apply(source, prune(source, 0.3))
    return Ticket.of(source, rewind=take_snapshot(network(1)), score="standardized", scope="global", density=0.3)


def parts(state, other):
    """Names of the parts of a network whose tensors are those of another one."""
    names = {name.partition(".")[0] for name in state}
    own = {part: [n for n in state if n.partition(".")[0] == part and not n.endswith(".mask")] for part in names}
    return {part for part, tensors in own.items() if all(torch.equal(state[n], other[n]) for n in tensors)}


@pytest.mark.parametrize(
    ("options", "fresh"),
    [
        ({"num_classes": 7}, ["classifier"]),
        ({}, ["classifier"]),
        ({"in_channels": 1, "num_classes": 7}, ["classifier", "stem"]),
        ({"stem": "imagenet"}, ["classifier", "stem"]),
    ],
)
def test_each_part_is_carried_over_or_drawn(ticket, options, fresh):
    target = network(5, **options)
    moved = transfer(ticket, target)
    assert moved.details["transfer"] == [{"source_checksum": ticket.checksum, "fresh": fresh}]
    assert moved.checksum == ticket.checksum
    drawn = target.state_dict()
    for state, before in ((moved.state_dict, ticket.state_dict), (moved.rewind, ticket.rewind)):
        assert parts(state, drawn) == set(fresh)
        kept = {part for part in ("stem", "body") if part not in fresh}
        carried = {name: tensor for name, tensor in state.items() if name.partition(".")[0] in kept}
        assert all(torch.equal(tensor, before[name]) for name, tensor in carried.items())
    other = network(6, **options)
    other.load_state_dict(moved.start(), strict=True)
    assert other(torch.randn(2, options.get("in_channels", 3), 32, 32)).isfinite().all()


def test_the_same_classes_keep_their_classifier(ticket):
    moved = transfer(ticket, network(5, in_channels=1), keep_classifier=True)
    assert moved.details["transfer"][0]["fresh"] == ["stem"]
    assert torch.equal(moved.rewind["classifier.weight"], ticket.rewind["classifier.weight"])
    again = transfer(moved, network(7))
    assert [step["fresh"] for step in again.details["transfer"]] == [["stem"], ["classifier", "stem"]]


@pytest.mark.parametrize(
    ("target", "arguments", "said"),
    [
        ({"width": 8}, {}, "'body.0.0.convolution.gain' has shape (4, 1, 1, 1) in the ticket and (8, 1, 1, 1) there"),
        ({"blocks_per_stage": [1, 3, 1, 1]}, {}, "the ticket has no 'body.1.2.beta'; give a network of the same kind"),
        ({"blocks_per_stage": [1, 1, 1, 1]}, {}, "ReActNet18 has no 'body.1.1.beta'"),
        ({"norm": "batch_norm"}, {}, "the ticket has no 'body.0.0.batch_norm.bias'"),
        ({"num_classes": 9}, {"keep_classifier": True}, "keep_classifier: 'classifier.bias' has shape (4,) in the"),
    ],
)
def test_what_differs_in_more_is_refused(ticket, target, arguments, said):
    with pytest.raises(InputError) as caught:
        transfer(ticket, network(5, **target), **arguments)
    assert said in str(caught.value)

import dataclasses

import pytest
import torch

from bnfree.errors import InputError
from bnfree.tickets import Ticket, apply, checksum, is_ticket, load_ticket, prune, save_ticket, take_snapshot
from bnfree.tickets.ticket_file import _content_checksum

BODY = [f"body.{i}.convolution" for i in range(3)]


@pytest.fixture
def network(small_net, train):
    """A trained and pruned network."""
    network = small_net()
    train(network, lambda p: torch.optim.SGD(p, lr=0.1), 2)
    apply(network, prune(network, 0.4))
    return network


@pytest.fixture
def ticket(small_net, network):
    return Ticket.of(
        network, rewind=take_snapshot(small_net()), score="standardized", scope="global", density=0.4, level=3,
        source="runs/digits", details={"rate": 0.2, "rewind": "step:500", "parents": ["abc"]},
        config={"hyper_parameters": {"backbone": {"class_path": "SmallNet"}}, "other": 1},
    )  # fmt: skip


def test_a_ticket_comes_back_as_it_was(ticket, network, tmp_path):
    path = tmp_path / "new" / "ticket.pt"
    save_ticket(ticket, path)
    save_ticket(ticket, path)
    assert [file.name for file in path.parent.iterdir()] == ["ticket.pt"]
    back = load_ticket(path)
    for field in ("score", "scope", "density", "level", "source", "details", "checksum"):
        assert getattr(back, field) == getattr(ticket, field)
    assert back.config == {"hyper_parameters": {"backbone": {"class_path": "SmallNet"}}}
    for ours, theirs in ((ticket.state_dict, back.state_dict), (ticket.rewind, back.rewind)):
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert list(back.masks) == BODY
    assert back.checksum == checksum({name: network.get_submodule(name).mask for name in BODY})


def test_any_reader_of_state_dicts_gets_the_pruned_network(ticket, network, small_net, tmp_path):
    save_ticket(ticket, tmp_path / "ticket.pt")
    content = torch.load(tmp_path / "ticket.pt", weights_only=True)
    assert is_ticket(content)
    fresh = small_net(seed=9)
    fresh.load_state_dict(content["state_dict"], strict=True)
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(fresh(x), network(x))


def test_training_starts_from_the_rewound_survivors(ticket, network, small_net):
    for each, source in ((ticket, small_net()), (dataclasses.replace(ticket, rewind=None), network)):
        fresh = small_net(seed=9)
        fresh.load_state_dict(each.start(), strict=True)
        for name, value in take_snapshot(source).items():
            mask = ticket.masks.get(name.removesuffix(".weight"))
            assert torch.equal(fresh.state_dict()[name], value if mask is None else value * mask)
        assert checksum({name: fresh.get_submodule(name).mask for name in BODY}) == ticket.checksum
    # Other masks, as those of a control, find the weights that this one prunes.
    assert (ticket.rewind[f"{BODY[0]}.weight"] != 0).all()


def test_names_that_compilation_adds_are_left_out(network):
    wrapped = torch.nn.ModuleDict({"_orig_mod": network})
    ticket = Ticket.of(wrapped, score="random", scope="layer", density=0.4)
    assert set(ticket.state_dict) == set(network.state_dict())


def edit(path, change):
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["state_dict"][f"{BODY[1]}.mask"][0, 0, 0].logical_not_(), "its masks do not give the checksum"),
        (lambda c: c["state_dict"]["classifier.bias"].add_(1e-6), "its weights or notes do not give the checksum"),
        (lambda c: c["rewind"][f"{BODY[0]}.weight"].neg_(), "its weights or notes do not give the checksum"),
        (lambda c: c["found"].update(density=0.1), "its weights or notes do not give the checksum"),
        (lambda c: c["found"]["details"].update(rate=0.3), "its weights or notes do not give the checksum"),
        (lambda c: c["checksums"].update(masks="0"), "is damaged or was edited: its masks do not"),
        (lambda c: c.pop("checksums"), "is an incomplete ticket (KeyError)"),
        (lambda c: c["found"].pop("score"), "is an incomplete ticket (TypeError)"),
        (lambda c: c.update(state_dict=None), "is an incomplete ticket (AttributeError)"),
        (lambda c: c.update(version=2), "is a ticket of version 2, which this bnfree cannot read; it reads version 1"),
        (lambda c: c.update(format="other"), "is no ticket; give a file that save_ticket wrote"),
    ],
)
def test_a_file_that_was_changed_is_refused_in_one_sentence(ticket, tmp_path, change, said):
    path = tmp_path / "ticket.pt"
    save_ticket(ticket, path)
    edit(path, change)
    with pytest.raises(InputError) as caught:
        load_ticket(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file_and_no_mask(ticket, small_net, tmp_path):
    with pytest.raises(InputError, match="is not a file"):
        load_ticket(tmp_path / "gone.pt")
    dense = Ticket.of(small_net(), score="standardized", scope="global", density=1.0)
    with pytest.raises(InputError, match="the ticket has no mask; prune its network before saving it"):
        save_ticket(dense, tmp_path / "dense.pt")


def test_a_failed_write_leaves_the_old_file(ticket, tmp_path):
    path = tmp_path / "ticket.pt"
    save_ticket(ticket, path)
    broken = dataclasses.replace(ticket, config={"hyper_parameters": (i for i in range(3))})
    with pytest.raises(TypeError):
        save_ticket(broken, path)
    assert [file.name for file in tmp_path.iterdir()] == ["ticket.pt"]
    assert load_ticket(path).checksum == ticket.checksum


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: {"state_dict": {**t.state_dict, f"{BODY[0]}.mask": torch.ones(3, 3, dtype=torch.bool)}}, "shape"),
        (lambda t: {"state_dict": {**t.state_dict, f"{BODY[0]}.mask": torch.ones(2, 2)}}, "float32"),
        (lambda t: {"state_dict": {n: v for n, v in t.state_dict.items() if n != f"{BODY[0]}.weight"}}, "shape"),
        (lambda t: {"rewind": {n: v for n, v in t.rewind.items() if n != f"{BODY[0]}.weight"}}, "shape"),
        (lambda t: {"rewind": {**t.rewind, f"{BODY[0]}.weight": torch.zeros(1)}}, "shape"),
        (lambda t: {"state_dict": {n: v for n, v in t.state_dict.items() if not n.endswith(".mask")}}, "no mask"),
        (lambda t: {"density": "0.4"}, "density"),
        (lambda t: {"level": None}, "level"),
        (lambda t: {"details": [1]}, "details"),
    ],
)
def test_right_checksums_over_wrong_content_are_refused(ticket, tmp_path, change, problem):
    save_ticket(ticket, tmp_path / "ticket.pt")
    content = torch.load(tmp_path / "ticket.pt", weights_only=True)
    changed = dataclasses.replace(ticket, **change(ticket))
    fields = ("score", "scope", "density", "level", "source", "details")
    content |= {"state_dict": changed.state_dict, "rewind": changed.rewind}
    content["found"] = {name: getattr(changed, name) for name in fields}
    content["checksums"] = {"masks": changed.checksum, "content": _content_checksum(changed)}
    torch.save(content, tmp_path / "ticket.pt")
    with pytest.raises(InputError, match=problem) as error:
        load_ticket(tmp_path / "ticket.pt")
    assert "no sound ticket" in str(error.value)


@pytest.mark.parametrize("key", ["format", "version"])
def test_a_tensor_where_a_name_belongs_is_refused(ticket, tmp_path, key):
    save_ticket(ticket, tmp_path / "ticket.pt")
    content = torch.load(tmp_path / "ticket.pt", weights_only=True)
    torch.save({**content, key: torch.zeros(2, 2)}, tmp_path / "ticket.pt")
    with pytest.raises(InputError, match="is no ticket|is a ticket of version 'Tensor'"):
        load_ticket(tmp_path / "ticket.pt")

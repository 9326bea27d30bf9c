"""`bnfree ticket key`, `sign` and `verify`."""

import copy
import re
import stat

import pytest
import torch
from ticket_files import make_ticket, network
from torch.nn import functional as F

from bnfree.tickets import Signature, apply, current_masks, load_ticket, prune, save_ticket, verify, zero_pruned


@pytest.fixture
def signed(ticket, act, project):
    """The ticket with a mark, in `signed.pt`; the owner's key is in `owner.key`."""
    act("key", "new", "--output=owner.key")
    act("sign", "ticket.pt", "--key=owner.key", "--message=A. Owner", "--created=2026-05-04", "--output=signed.pt")
    return load_ticket(project / "signed.pt")


def secret(project, name="owner.key"):
    return (project / name).read_text().splitlines()[-1]


def test_keys_are_for_their_owner_alone(act, complaint, project):
    out = act("key", "new", "--output=sub/owner.key")
    file = project / "sub" / "owner.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    key = secret(project, "sub/owner.key")
    assert re.fullmatch("[0-9a-f]{64}", key)
    assert key not in out
    act("key", "new", "--output=other.key")
    assert secret(project, "other.key") != key
    assert "a key is never replaced" in complaint("ticket", "key", "new", "--output=other.key")


def test_a_signed_ticket_is_verified_and_its_commitment_opens(ticket, signed, act, bnfree, project):
    assert {n: int(m.sum()) for n, m in signed.masks.items()} == {n: int(m.sum()) for n, m in ticket.masks.items()}
    signature = Signature(**signed.details["ownership"])
    assert (signature.message, signature.created) == ("A. Owner", "2026-05-04")
    out = act("verify", "signed.pt", "--key=owner.key")
    found = verify(signed.masks, secret(project), signature)
    assert f"{found.agreeing} of {found.bits} agree (100.0%)" in out
    assert f"{found.p_value:.1e} that a key" in out
    assert f"{found.occupied:.3f} of the kernels" in out
    assert "Accepted: p < 1e-06" in out
    assert f"{signature.commitment} of signed.pt: opened by its masks, key, message and time" in " ".join(out.split())
    assert secret(project) not in out + act("info", "signed.pt")
    assert signature.commitment in act("info", "signed.pt")


def test_exit_codes(ticket, signed, act, bnfree, complaint):
    assert bnfree("ticket", "verify", "signed.pt", "--key=owner.key")[0] == 0
    act("key", "new", "--output=foreign.key")
    code, out, _ = bnfree("ticket", "verify", "signed.pt", "--key=foreign.key")
    assert code == 1
    assert "Not accepted: p >= 1e-06" in out
    assert "not the one that the signature names" in out
    assert "not opened by this key" in " ".join(out.split())
    # The unsigned ticket under the owner's claim.
    assert bnfree("ticket", "verify", "ticket.pt", "--key=owner.key", "--signed=signed.pt")[0] == 1
    said = complaint("ticket", "verify", "ticket.pt", "--key=owner.key")
    assert said == "ticket='ticket.pt' holds no signature; give the owner's signed ticket as --signed."


def test_a_trained_checkpoint_of_the_signed_ticket_is_recognised(signed, act, project):
    """The mark through a network that is trained on, as a thief would."""
    net = network()
    net.load_state_dict(signed.start())
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    images, labels = torch.randn(8, 1, 8, 8), torch.arange(8)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
    apply(net, prune(net, rate=0.05))
    torch.save({"state_dict": {f"backbone.{n}": t for n, t in net.state_dict().items()}}, project / "stolen.ckpt")
    assert "Accepted" in act("verify", "stolen.ckpt", "--key=owner.key", "--signed=signed.pt")


def test_base_rates_far_from_one_half_are_reported_with_their_numbers(act, project):
    save_ticket(make_ticket(density=0.4), project / "dense.pt")
    # One key for good: with a fresh one, every twentieth mark would leave a layer with a share just below 0.9.
    (project / "owner.key").write_text("1f" * 32 + "\n")
    (project / "owner.key").chmod(0o600)
    out = act("sign", "dense.pt", "--key=owner.key", "--layers", "body.2.*", "body.3.*", "--output=signed.pt")
    said = " ".join(out.split())
    assert "Warning the base rate is far from one half in 3 of 3 marked layers (0.9" in said
    assert "a bit 1 is there by chance" in said
    assert "mark sparser layers" in said
    assert set(load_ticket("signed.pt").details["ownership"]["layers"]) == {
        "body.2.0.convolution", "body.3.0.convolution", "body.3.1.convolution"
    }  # fmt: skip
    save_ticket(make_ticket(density=0.09), project / "balanced.pt")
    out = act("sign", "balanced.pt", "--key=owner.key", "--output=balanced_signed.pt")
    assert "Warning" not in out


def test_a_ticket_split_and_joined_is_the_same(ticket, act, same, complaint, project):
    out = act("key", "split", "ticket.pt", "--share=0.1", "--key=part.key", "--output=locked.pt")
    assert stat.S_IMODE((project / "part.key").stat().st_mode) == 0o600
    kept = sum(int(mask.sum()) for mask in ticket.masks.values())
    assert f"{round(0.1 * kept)} survivors" in out
    assert sum(int(mask.sum()) for mask in load_ticket("locked.pt").masks.values()) == kept - round(0.1 * kept)
    act("key", "join", "locked.pt", "--key=part.key", "--output=whole.pt")
    same("whole.pt", ticket)
    assert load_ticket("whole.pt").details == ticket.details
    act("key", "split", "ticket.pt", "--share=0.2", "--key=other.key", "--output=other.pt")
    assert "but the ticket is locked with" in complaint(
        "ticket", "key", "join", "locked.pt", "--key=other.key", "--output=x.pt"
    )
    assert "part.key' exists" in complaint("ticket", "key", "split", "ticket.pt", "--key=part.key", "--output=y.pt")


def test_mistakes_with_keys(ticket, signed, complaint, bnfree, project):
    (project / "short.key").write_text("# comment\ntoo short\n")
    (project / "binary.key").write_bytes(bytes(range(256)))
    torch.save({"format": "something"}, project / "thing.key")
    sign = ("ticket", "sign", "ticket.pt", "--output=x.pt")
    for arguments, said in (
        ((*sign, "--key=nothing.key"), "key='nothing.key' is not a file"),
        ((*sign, "--key=short.key"), "key='short.key' must hold one line of at least 16 characters"),
        ((*sign, "--key=binary.key"), "key='binary.key' is no owner's key"),
        ((*sign, "--key=owner.key", "--bits=100000"), "bits=100000 must be between 1 and"),
        ((*sign, "--key=owner.key", "--layers", "stem.*"), "layers='stem.*' fits no pruned layer; choose among body."),
        (
            ("ticket", "sign", "ticket.pt", "--key=owner.key", "--output=owner.key", "--overwrite"),
            "the file that is read",
        ),
        (("ticket", "verify", "signed.pt", "--key=owner.key", "--accept=2"), "accept=2.0 must be between 0 and 1"),
        (
            ("ticket", "key", "join", "ticket.pt", "--key=thing.key", "--output=x.pt"),
            "is not the key of a locked ticket",
        ),
    ):
        message = complaint(*arguments)
        assert said in message
        assert "too short" not in message
        assert secret(project) not in message
        assert not (project / "x.pt").exists()
    (project / "owner.key").chmod(0o644)
    _, _, err = bnfree("ticket", "verify", "signed.pt", "--key=owner.key")
    assert "can be read by others (mode 644); chmod 600 owner.key" in err


def regrow(net, share):
    """Brings random pruned weights to life, as many as a share of the survivors."""
    masks = current_masks(net)
    for mask in masks.values():
        pruned = (~mask).flatten().nonzero().flatten()
        count = -(-int(mask.sum()) * share // 1)
        mask.view(-1)[pruned[torch.randperm(len(pruned))[: int(count)]]] = True
    apply(net, masks)


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.05, 0.1, 0.2])
def test_the_owner_and_none_of_a_thousand_others_after_pruning_regrowth_and_fine_tuning(act, bnfree, project, density):
    """Through networks and files: signed, trained, stolen, pruned by a tenth, regrown by a hundredth, trained on."""
    # One draw of everything, in double precision so that it is the same on every processor: p-values of foreign keys
    # are uniform, so of fresh draws of a thousand a tenth has one below 1e-4.
    torch.manual_seed(0)
    ticket = make_ticket(density=density, width=16)
    save_ticket(ticket, project / "ticket.pt")
    (project / "owner.key").write_text("1f" * 32 + "\n")
    (project / "owner.key").chmod(0o600)
    act("sign", "ticket.pt", "--key=owner.key", "--output=signed.pt")
    signed = load_ticket("signed.pt")
    net = network(width=16).double()
    net.load_state_dict(signed.start())
    images, labels = torch.randn(64, 1, 8, 8).double(), torch.randint(10, (64,))

    def train(steps):
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()
        zero_pruned(net)

    train(30)
    apply(net, prune(net, rate=0.1))
    regrow(net, 0.01)
    before = copy.deepcopy(net.state_dict())
    train(30)
    assert not torch.equal(before["body.3.1.convolution.weight"], net.state_dict()["body.3.1.convolution.weight"])
    torch.save({"state_dict": {f"backbone.{n}": t for n, t in net.state_dict().items()}}, project / "stolen.ckpt")
    code, out, _ = bnfree("ticket", "verify", "stolen.ckpt", "--key=owner.key", "--signed=signed.pt")
    assert code == 0, out
    signature, stolen = Signature(**signed.details["ownership"]), current_masks(net)
    found = verify(stolen, secret(project), signature)
    assert found.agreement < 1
    assert found.p_value < 1e-6
    foreign = [verify(stolen, f"a foreign key, number {i:6}", signature).p_value for i in range(1000)]
    assert min(foreign) > 1e-4
    # None is small because all are large: half of them are below one half, and one in a hundred below 0.01.
    assert sum(p < 0.5 for p in foreign) / 1000 == pytest.approx(0.5, abs=0.1)
    assert 1 <= sum(p < 0.01 for p in foreign) <= 25

"""What `bnfree ticket` does, in Python: typed settings, results with numbers, the same files and figures."""

import dataclasses
import stat

import pytest
from ticket_files import network

from bnfree.errors import InputError
from bnfree.lightning_modules.experiments import tickets as actions
from bnfree.tickets import Signature, load_ticket, overlap, random_masks, save_ticket, stretch, transfer, verify


def test_info_in_numbers(ticket, act, project):
    info = actions.ticket_info(project / "ticket.pt")
    out = act("info", "ticket.pt")
    for name, mask in ticket.masks.items():
        layer = next(layer for layer in info.statistics.layers if layer.name == name)
        assert (layer.kept, info.zeros[name]) == (int(mask.sum()), int((~mask).sum()))
        kernels = mask.flatten(2).any(2)
        assert info.occupied[name] == pytest.approx(kernels.double().mean().item())
        assert f" {info.occupied[name]:.3f} " in out
    assert info.zeros["all"] == sum(int((~mask).sum()) for mask in ticket.masks.values())
    assert info.pruned.ticket.checksum == ticket.checksum
    d = info.statistics.total.density
    assert 0 < info.stored_bits < info.statistics.total.weights * (d + 1)
    assert info.why_no_zeros is None
    save_ticket(dataclasses.replace(ticket, config={}), project / "mute.pt")
    mute = actions.ticket_info("mute.pt")
    assert mute.zeros is None
    assert "does not say which network" in mute.why_no_zeros


def test_diff_in_numbers(ticket, project):
    masks = random_masks(ticket.masks, seed=1)
    state = {**ticket.state_dict, **{f"{name}.mask": mask for name, mask in masks.items()}}
    name = "body.0.1.convolution"
    flipped = {**ticket.rewind, f"{name}.weight": -ticket.rewind[f"{name}.weight"]}
    save_ticket(dataclasses.replace(ticket, state_dict=state, rewind=flipped), project / "other.pt")
    diff = actions.ticket_diff("ticket.pt", "other.pt")
    assert diff.total == overlap(ticket.masks, masks)
    assert list(diff.layers) == list(ticket.masks)
    both = int((ticket.masks[name] & masks[name]).sum())
    assert diff.flips[name] == (both, both)
    assert diff.flips["all"] == (both, sum(int((mask & masks[n]).sum()) for n, mask in ticket.masks.items()))
    assert diff.differing == (f"{name}.weight",)
    assert diff.only_in == {"A": [], "B": []}


def test_stretched_and_squeezed_as_by_the_command(ticket, act, same):
    settings = actions.ElasticSettings(ticket="ticket.pt", output="deep.pt", blocks_per_stage=(3, 5, 1, 4))
    deeper = actions.stretch_ticket_file(settings)
    act("stretch", "ticket.pt", "--blocks_per_stage=3,5,1,4", "--output=command.pt")
    same("deep.pt", "command.pt")
    same(deeper.ticket, stretch(ticket, network(depth=[3, 5, 1, 4])))
    assert (deeper.step["from"], deeper.step["to"]) == ([2, 2, 1, 2], [3, 5, 1, 4])
    kept = sum(int(mask.sum()) for mask in ticket.masks.values())
    assert (deeper.before.kept, deeper.after.kept > kept) == (kept, True)
    assert deeper.betas.startswith("analytic")
    # The depth as an option of the network, and as an argument.
    for number, given in enumerate(
        ({"options": {"model.backbone.blocks_per_stage": [2, 2, 1, 2]}},
         {"arguments": ["--model.backbone.blocks_per_stage=[2,2,1,2]"]})
    ):  # fmt: skip
        back = actions.squeeze_ticket_file(
            actions.ElasticSettings(ticket="deep.pt", output=f"back{number}.pt", **given)
        )
        same(back.path, ticket)


def test_transferred_as_by_the_command(ticket, act, same):
    options = {"model.backbone.num_classes": 7, "model.backbone.in_channels": 3}
    settings = actions.TransferSettings(ticket="ticket.pt", output="new.pt", to="ticket.pt", options=options, seed=4)
    found = actions.transfer_ticket_file(settings)
    words = [f"--{name}={value}" for name, value in options.items()]
    act("transfer", "ticket.pt", "--to=ticket.pt", "--seed=4", "--output=command.pt", *words)
    same("new.pt", "command.pt")
    same(found.ticket, transfer(ticket, network(seed=4, num_classes=7, in_channels=3)))
    assert {name: part.fresh for name, part in found.parts.items()} == {
        "stem": True, "body": False, "classifier": True,
    }  # fmt: skip
    assert found.parts["classifier"].shapes["classifier.weight"] == ((10, 64), (7, 64))
    assert found.parts["body"].masks == len(ticket.masks)
    with pytest.raises(InputError, match="to=None must be a config"):
        actions.transfer_ticket_file(actions.TransferSettings(ticket="ticket.pt", output="x.pt"))


def test_signed_verified_split_and_joined(ticket, same, project):
    key = actions.new_owner_key("owner.key")
    assert stat.S_IMODE(key.path.stat().st_mode) == 0o600
    settings = actions.SignSettings(
        ticket="ticket.pt", key="owner.key", output="signed.pt", message="A. Owner", created="2026-05-04"
    )
    signed = actions.sign_ticket_file(settings)
    assert Signature(**load_ticket("signed.pt").details["ownership"]) == signed.signature
    assert signed.signature.key_id == key.id
    assert signed.moved == sum(int((m & ~signed.ticket.masks[n]).sum()) for n, m in ticket.masks.items())
    found = actions.verify_ticket_file("signed.pt", "owner.key")
    secret = (project / "owner.key").read_text().splitlines()[-1]
    assert found.found == verify(signed.ticket.masks, secret, signed.signature) == signed.found
    assert (found.accepted, found.opened, found.right_key) == (True, True, True)
    actions.new_owner_key("foreign.key")
    foreign = actions.verify_ticket_file("signed.pt", "foreign.key")
    assert (foreign.accepted, foreign.opened, foreign.right_key) == (False, False, False)
    split = actions.split_ticket_file("ticket.pt", "part.key", "locked.pt", share=0.1)
    assert split.taken.kept == round(0.1 * split.whole.kept) == split.whole.kept - split.locked.kept
    joined = actions.join_ticket_file("locked.pt", "part.key", "whole.pt")
    same(joined.ticket, ticket)
    with pytest.raises(InputError, match="exists"):
        actions.join_ticket_file("locked.pt", "part.key", "whole.pt")


def test_a_key_takes_the_place_of_what_a_killed_process_has_left(project):
    (project / ".owner.key.unfinished").write_text("open to all")
    (project / ".owner.key.unfinished").chmod(0o644)
    key = actions.new_owner_key("owner.key")
    assert stat.S_IMODE(key.path.stat().st_mode) == 0o600
    assert "open to all" not in key.path.read_text()
    assert not (project / ".owner.key.unfinished").exists()

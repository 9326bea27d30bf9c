"""`bnfree ticket info` and `diff`, and the help of every action."""

import dataclasses
import math
import re

import pytest
import torch

from bnfree.lightning_modules.command.ticket import ACTIONS
from bnfree.tickets import Ticket, random_masks, save_ticket


def rows(out):
    """The lines of a table by their first word."""
    return {line.split()[0]: line.split() for line in out.splitlines() if line and not line.startswith((" ", "-"))}


def test_info_counts_what_the_masks_keep(ticket, act):
    out = act("info", "ticket.pt")
    found = rows(out)
    for name, mask in ticket.masks.items():
        _, shape, _, kept, density, zeros, empty, occupied, _, bits = found[name]
        assert shape == "x".join(map(str, mask.shape))
        assert (int(kept), int(zeros)) == (int(mask.sum()), int((~mask).sum()))
        d = mask.double().mean().item()
        assert float(density) == pytest.approx(d, abs=5e-5)
        assert int(empty) == sum(not row.any() for row in mask)
        kernels = [bool(kernel.any()) for row in mask for kernel in row]
        assert float(occupied) == pytest.approx(sum(kernels) / len(kernels), abs=5e-4)
        assert float(bits) == pytest.approx(d - d * math.log2(d) - (1 - d) * math.log2(1 - d), abs=5e-3)
    assert found["all"][2] == str(sum(int(mask.sum()) for mask in ticket.masks.values()))
    for said in (
        "ReActNet18(width=8", "blocks_per_stage=[2,2,1,2]", "DigitsDataModule", "score standardized, scope global",
        "level 3", "lot, seed 0", "rewind_point", ticket.checksum, "weights of an earlier moment",
    ):  # fmt: skip
        assert said in out


def test_info_counts_zeros_in_the_network_and_says_where_it_cannot(ticket, act, project):
    state = dict(ticket.state_dict)
    state["body.0.0.convolution.gain"] = state["body.0.0.convolution.gain"].clone()
    state["body.0.0.convolution.gain"][3] = 0
    save_ticket(dataclasses.replace(ticket, state_dict=state), project / "dead.pt")
    mask = ticket.masks["body.0.0.convolution"]
    assert int(rows(act("info", "dead.pt"))["body.0.0.convolution"][5]) == int((~mask).sum()) + int(mask[3].sum())
    save_ticket(dataclasses.replace(ticket, config={}), project / "mute.pt")
    out = act("info", "mute.pt")
    assert "not counted: the file does not say which network it is of" in out
    assert rows(out)["body.0.0.convolution"][5] == "?"


def test_info_of_a_checkpoint_and_of_a_directory(ticket, act, complaint, project):
    state = {f"backbone.{name}": tensor for name, tensor in ticket.state_dict.items()}
    torch.save({"state_dict": state, **ticket.config}, project / "pruned.ckpt")
    out = act("info", "pruned.ckpt")
    kept, weights = (sum(int(count(mask)) for mask in ticket.masks.values()) for count in (torch.sum, torch.numel))
    assert f"checkpoint of a pruned network, density {kept / weights:.5g}" in out
    assert ticket.checksum in out
    assert rows(out)["body.1.1.convolution"] == rows(act("info", "ticket.pt"))["body.1.1.convolution"]
    assert rows(act("info", "."))["body.1.1.convolution"] == rows(out)["body.1.1.convolution"]
    dense = {name: tensor for name, tensor in state.items() if not name.endswith(".mask")}
    torch.save({"state_dict": dense}, project / "dense.ckpt")
    assert "ticket='dense.ckpt' holds a network without masks" in complaint("ticket", "info", "dense.ckpt")


def test_diff_against_sets_of_survivors(ticket, act, project):
    masks = random_masks(ticket.masks, seed=1)
    state = {**ticket.state_dict, **{f"{name}.mask": mask for name, mask in masks.items()}}
    flipped = {
        name: -tensor if name == "body.0.1.convolution.weight" else tensor for name, tensor in ticket.rewind.items()
    }
    other = dataclasses.replace(ticket, state_dict=state, rewind=flipped, level=4, score="random")
    save_ticket(other, project / "other.pt")
    out = act("diff", "ticket.pt", "other.pt")
    found = rows(out)
    for name, mask in ticket.masks.items():
        a, b = (set(m.flatten().nonzero().flatten().tolist()) for m in (mask, masks[name]))
        _, _, _, _, both, jaccard, chance, hamming, signs = found[name]
        assert int(both) == len(a & b)
        assert float(jaccard) == pytest.approx(len(a & b) / len(a | b), abs=5e-4)
        by_chance = len(a) * len(b) / mask.numel()
        assert float(chance) == pytest.approx(by_chance / (len(a) + len(b) - by_chance), abs=5e-4)
        assert float(hamming) == pytest.approx(len(a ^ b) / mask.numel(), abs=5e-5)
        assert float(signs if signs != "-" else 0) == (name == "body.0.1.convolution" and len(a & b) > 0)
    assert re.search(r"score +'standardized' in A, 'random' in B", out)
    assert re.search(r"level +3 in A, 4 in B", out)
    assert "1 of" in out.split("weights  ")[-1]


def test_diff_of_the_same_and_of_other_depths(ticket, act, complaint, project):
    out = act("diff", "ticket.pt", "ticket.pt")
    assert "the same\n" in out
    assert "the same weights, bit for bit" in out
    act("squeeze", "ticket.pt", "--blocks_per_stage=1,2,1,2", "--output=shallow.pt")
    out = act("diff", "ticket.pt", "shallow.pt")
    assert re.search(r"only in A +body.0.1.convolution\n", out)
    assert "in the 6 common layers" in out
    save_ticket(Ticket(state_dict={"x.weight": torch.ones(1, 1, 1, 1), "x.mask": torch.ones(1, 1, 1, 1).bool()},
                       score="", scope="", density=1.0), project / "x.pt")  # fmt: skip
    assert "have no pruned layer of the same name and shape" in complaint("ticket", "diff", "ticket.pt", "x.pt")


@pytest.mark.parametrize("action", [*ACTIONS, "key new", "key split", "key join"])
def test_help_reads_like_a_manual(bnfree, action):
    code, out, _ = bnfree("ticket", *action.split(), "--help")
    assert code == 0
    assert out.startswith(f"usage: bnfree ticket {action}")
    assert f"  bnfree ticket {action} " in out
    assert max(map(len, out.splitlines())) <= 120
    assert len(out.splitlines()) > 8


def test_the_front_lists_every_action(bnfree):
    code, out, _ = bnfree("ticket")
    assert code == 0
    assert all(f"  {action.usage} " in out and action.summary in out for action in ACTIONS.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["inof"], "action 'inof' of bnfree ticket is not known; did you mean 'info'?"),
        (["--output=x"], "'--output=x' stands before the action; give one of info, diff,"),
        (["info"], "TICKET must be given; see bnfree ticket info --help."),
        (["info", "nothing.pt"], "ticket='nothing.pt' is not a file"),
        (["info", "ticket.pt", "--jsn"], "option '--jsn' is not expected here"),
        (["info", "toy.yaml"], "ticket='toy.yaml' cannot be read as a checkpoint"),
        (["info", "empty"], "ticket='empty' is a directory without ticket.pt"),
        (["diff", "ticket.pt", "nothing.pt"], "B='nothing.pt' is not a file"),
        (["key", "nwe"], "action 'nwe' of ticket key is not known; did you mean 'new'?"),
    ],
)
def test_mistakes_are_one_sentence(ticket, project, complaint, arguments, said):
    (project / "empty").mkdir()
    assert said in complaint("ticket", *arguments)

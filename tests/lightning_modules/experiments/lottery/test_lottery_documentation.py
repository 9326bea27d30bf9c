"""The Python code in docs/lottery.md and docs/lottery_controls.md is run as it is printed, without its trainings."""

import re
from pathlib import Path

import torch

from bnfree import lightning_modules
from bnfree.lightning_modules.experiments.lottery.level_results import (
    ControlsResult,
    LevelResult,
    LotteryResult,
    kind_title,
)
from bnfree.lightning_modules.experiments.lottery.level_tickets import control_kind
from bnfree.tickets import ControlledTicket

DOCS = Path(__file__).resolve().parents[4] / "docs"
LEVEL = LevelResult(
    kind="ticket", level=1, seed=0, density=0.5, mask_checksum="", epochs=1, steps=1, seconds=1.0, val_acc=0.9,
    best_val_acc=0.9, test_acc=0.8, directory=Path("level_01"),
)  # fmt: skip


def run(name, **names):
    for block in re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), re.DOTALL):
        exec(block, names)
    return names


def test_a_lottery_from_python(monkeypatch, capsys):
    given = []

    def lottery(settings):
        given.append(settings)
        return LotteryResult(Path("runs/mine"), (), (LEVEL,))

    monkeypatch.setattr(lightning_modules, "run_lottery", lottery, raising=False)
    monkeypatch.setattr(lightning_modules, "report", given.append, raising=False)
    run("lottery.md")
    assert capsys.readouterr().out == "0 0.5 0.8 level_01/ticket.pt\n"
    settings, reported = given
    assert (settings.densities, settings.fit.configs) == ([0.5, 0.2, 0.05], "quickstart")
    assert reported.directories == Path("runs/mine")


def test_a_control_of_ones_own(monkeypatch, capsys):
    given = []

    def controls(settings):
        given.append(settings)
        return ControlsResult(Path("runs/digits_lottery"), (LEVEL,), ())

    monkeypatch.setattr(lightning_modules, "run_controls", controls, raising=False)
    control = run("lottery_controls.md", __name__="my_controls")["NeighbourMasks"]
    assert capsys.readouterr().out == "ticket 0.8\n"
    assert [control_kind(each) for each in given[0].controls] == ["reinit", "my_controls.NeighbourMasks"]
    assert kind_title("my_controls.NeighbourMasks") == "neighbour masks"
    mask, start, complete = torch.rand(3, 2, 1, 1) < 0.5, {"a.weight": torch.ones(3, 2, 1, 1)}, {}
    masks, weights = control.draw(ControlledTicket(torch.nn.Identity(), {"a": mask}, start, complete, 0))
    assert torch.equal(masks["a"], mask[[2, 0, 1]])
    assert weights is complete

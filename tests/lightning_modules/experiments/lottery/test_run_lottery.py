"""Lotteries from Python, and controls of the user's own."""

import csv

import pytest
import yaml
from small_lottery import assert_same, finished, start, weights, write_lottery

from bnfree.errors import InputError
from bnfree.lightning_modules import ControlSettings, FitSettings, LotterySettings, run_controls, run_lottery
from bnfree.lightning_modules.experiments.lottery.controls import check_controls
from bnfree.lightning_modules.experiments.lottery.level_tickets import control_kind
from bnfree.lightning_modules.experiments.lottery.plan import check_unchanged, plan_lottery
from bnfree.lightning_modules.experiments.lottery.settings import SECTION
from bnfree.lightning_modules.experiments.lottery.started import read_started, write_started
from bnfree.lightning_modules.reports.lottery_report import report_lottery
from bnfree.tickets import load_ticket
from bnfree.tickets.controls import Reinit

MY_CONTROLS = """
class Negated:
    @staticmethod
    def draw(ticket):
        drawn = {f"{name}.weight": -ticket.start[f"{name}.weight"] for name in ticket.masks}
        return ticket.masks, {**ticket.start, **drawn}


def halved(ticket):
    return ticket.masks, {name: value / 2 for name, value in ticket.start.items()}
"""
WATCH = """
from lightning.pytorch import Callback


class Watch(Callback):
    pass
"""


def rows(directory):
    with (directory / "levels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_shipped_file_is_read_by_name(project):
    settings = LotterySettings.read("digits_lottery", seeds=[0, 1], fit=FitSettings(options={"trainer.devices": 1}))
    assert (settings.densities, settings.seeds) == ([0.5, 0.2, 0.05], [0, 1])
    assert settings.fit.options == {"trainer.max_epochs": 8, "trainer.devices": 1}
    assert list(settings.fit.configs) == ["quickstart"]
    assert settings.directory == project / "runs" / "digits_lottery"


def test_what_belongs_to_the_lottery_is_not_asked_of_its_fits(project):
    write_lottery(project)
    with pytest.raises(InputError, match=r"fit\.ckpt_path='a\.ckpt' is chosen by the experiment"):
        LotterySettings.read("lottery.yaml", fit=FitSettings(ckpt_path="a.ckpt"))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"densities": 0.5}, r"lottery\.densities=0\.5 must be a list of numbers"),
        ({"densities": ["half"]}, "must be a list of numbers"),
        ({"densities": [0.5], "score": 3}, r"lottery\.score=3 is of the wrong type; give a text"),
        ({"rate": 0.5, "levels": 1.5}, r"lottery\.levels=1\.5 is of the wrong type; give an integer"),
        ({"densities": [0.5], "seeds": [True]}, r"lottery\.seeds=\[True\] must be a list of integers"),
    ],
)
def test_settings_of_the_wrong_type(wrong, said):
    with pytest.raises(InputError, match=said):
        LotterySettings(fit=FitSettings("quickstart"), **wrong)


def test_controls_are_looked_at_before_anything_is_trained(project):
    write_lottery(project)
    for controls, said in (
        (["re-init"], "controls='re-init' is not known; did you mean 'reinit'"),
        (["no_module.Control"], "there is no module 'no_module'"),
        ([Reinit, "reinit"], "controls name 'reinit' twice"),
        ([3], "is no control"),
        (["bnfree.tickets.controls.Reinit", Reinit], "controls name 'reinit' twice"),
    ):
        with pytest.raises(InputError, match=said):
            run_lottery(LotterySettings.read("lottery.yaml", controls=controls))
    assert not (project / "runs").exists()
    assert control_kind(Reinit) == "reinit"
    check_controls(["reinit", lambda ticket: (ticket.masks, ticket.start)])


@pytest.mark.slow
def test_python_and_the_command_give_the_same(project, bnfree):
    (project / "watch.py").write_text(WATCH)
    write_lottery(project, densities=[0.3], rewind_point="3it")
    # The list that replaces all callbacks leaves the ticket in its place.
    options = ["--trainer.callbacks=watch.Watch", "--trainer.max_epochs=1", "--controls=reinit"]
    assert bnfree("lottery", "run", "lottery.yaml", "--run_dir=command", *options)[0] == 0
    fit = FitSettings(["network.yaml"], {"trainer.callbacks": ["watch.Watch"], "trainer.max_epochs": 1})
    settings = LotterySettings(
        fit=fit, run_dir="python", controls=["reinit"], densities=[0.3], rewind_point="3it", seeds=[0]
    )
    result = run_lottery(settings)
    report_lottery(result.directory)
    command, python = project / "command", project / "python"
    assert (python / "levels.csv").read_bytes() == (command / "levels.csv").read_bytes()
    assert (python / "layers.csv").read_bytes() == (command / "layers.csv").read_bytes()
    found = [*result.dense, *result.tickets, *result.controls]
    assert [(level.kind, level.level) for level in found] == [("dense", 0), ("ticket", 1), ("reinit", 1)]
    assert [f"{level.test_acc}" for level in found] == [row["test_acc"] for row in rows(command)]
    for level in found:
        same = command / level.directory.relative_to(python)
        assert_same(weights(level.directory), weights(same))
        callbacks = yaml.safe_load((level.directory / "config.yaml").read_text())["trainer"]["callbacks"]
        assert [c["class_path"] for c in callbacks] == ["watch.Watch", "bnfree.callbacks.LotteryTicket"]
    # Again from Python, with more: what has finished is not trained again.
    before = weights(python / "seed_0" / "level_00")
    more = run_controls(ControlSettings(directory="python", controls=[Reinit, "shuffle_signs"]))
    assert [(level.kind, level.seed, level.level) for level in more.controls] == [
        ("reinit", 0, 1), ("shuffle_signs", 0, 1),
    ]  # fmt: skip
    assert more.tickets == result.tickets
    assert more.controls[0] == result.controls[0]
    assert_same(before, weights(python / "seed_0" / "level_00"))


@pytest.mark.slow
def test_controls_of_the_users_own_by_their_paths(project):
    (project / "my_controls.py").write_text(MY_CONTROLS)
    write_lottery(project, densities=[0.3])
    kinds = ["my_controls.Negated", "my_controls.halved"]
    process = start(project, "--trainer.max_epochs=1", "--controls", ",".join([*kinds, "reinit"]))
    output, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, errors
    run = project / "runs" / "lottery"
    assert "3 trainings: negated; halved; re-initialised." in output
    assert sorted(path.name for path in (run / "seed_0" / "controls").iterdir()) == [*kinds, "reinit"]
    point = load_ticket(run / "seed_0" / "level_01" / "ticket.pt")
    for kind, factor in zip(kinds, (-1, 0.5), strict=True):
        folder = run / "seed_0" / "controls" / kind / "level_01"
        control = load_ticket(folder / "ticket.pt")
        assert control.checksum == point.checksum
        for name in point.masks:
            assert (control.rewind[f"{name}.weight"] == factor * point.rewind[f"{name}.weight"]).all()
        assert finished(folder)["kind"] == kind
    assert [row["kind"] for row in rows(run)] == ["dense", "ticket", "reinit", *kinds]
    table = output[output.index("Tickets and their controls") :].splitlines()
    for title in ("ticket", "re-initialised", "negated", "halved"):
        assert sum(title in line for line in table[2:]) == 1
        assert title in (run / "report.md").read_text()
    # Later, by the other action; what has finished is not repeated.
    process = start(project, "--controls=my_controls.halved", action=("controls", "runs/lottery"))
    output, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, errors
    assert "halved has finished: val/acc" in output


def test_a_run_of_an_earlier_version_goes_on(project):
    write_lottery(project, densities=[0.3])
    run = project / "runs" / "lottery"
    run.mkdir(parents=True)
    section = {"densities": [0.3], "score": "standardized", "seeds": [0, 2], "include": None}
    words = ["--config=network.yaml", "--trainer.max_epochs=1", "--data.batch_size", "8"]
    (run / "lottery.yaml").write_text(yaml.safe_dump({"options": words, "lottery": section}))
    earlier = read_started(run)
    assert (earlier.densities, earlier.seeds, earlier.fit.arguments) == ([0.3], [0, 2], words)
    plan = plan_lottery(earlier)
    assert plan.parsed.settings["trainer"]["max_epochs"] == 1
    assert plan.parsed.settings["data"]["init_args"]["batch_size"] == 8
    check_unchanged(plan_lottery(LotterySettings.read("lottery.yaml")))
    with pytest.raises(InputError, match=r"lottery\.score=latent, not standardized"):
        check_unchanged(plan_lottery(LotterySettings.read("lottery.yaml", score="latent")))


def test_settings_of_python_come_back_out_of_the_directory(project):
    write_lottery(project)
    fit = FitSettings("network.yaml", {"data.data_dir": project / "data", "trainer.max_epochs": 1})
    settings = LotterySettings(fit=fit, densities=(0.5, 0.3), include=("body.*",), seeds=range(2))
    assert settings.directory == project / "runs" / "network"
    write_started(project / "run", settings)
    again = read_started(project / "run")
    assert (again.densities, again.include, again.seeds) == ([0.5, 0.3], ["body.*"], [0, 1])
    assert (list(again.fit.configs), again.fit.options["data.data_dir"]) == (["network.yaml"], str(project / "data"))
    assert [getattr(again, key) for key in SECTION] == [getattr(settings, key) for key in SECTION]

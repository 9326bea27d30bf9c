"""`bnfree lottery early-bird`: a search that stops, and the level from its ticket."""

import csv

import pytest
import torch
import yaml
from small_lottery import assert_same, finished, last, weights, write_lottery

from bnfree.backbones import ReActNet18
from bnfree.lightning_modules.cli import main
from bnfree.lightning_modules.experiments.lottery.level_results import read_levels
from bnfree.tickets import load_ticket

COMMAND = ["lottery", "early-bird", "lottery.yaml", "--density", "0.5", "--window=2", "--tolerance", "0.45"]
SEARCH, LEVEL = "seed_0/early_bird/density_0.5/search", "seed_0/early_bird/density_0.5/level_01"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished early-bird run that is rewound into the midst of the first epoch; not to be changed."""
    project = tmp_path_factory.mktemp("early_bird")
    write_lottery(project, rewind_point="2it")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        assert main([*COMMAND, "--trainer.max_epochs=4"]) == 0
    return project / "runs" / "lottery"


@pytest.mark.slow
def test_the_search_stops_and_the_level_trains_its_mask_to_the_end(run):
    with (run / SEARCH / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    distances = [float(row["ticket/mask_distance"]) for row in rows if row.get("ticket/mask_distance")]
    assert len(distances) == 1
    assert distances[0] < 0.45
    assert last(run / SEARCH)["epoch"] == 1
    found, ticket = load_ticket(run / SEARCH / "ticket.pt"), load_ticket(run / LEVEL / "ticket.pt")
    assert found.checksum == ticket.checksum
    result = finished(run / LEVEL)
    assert (result["kind"], result["level"], result["seed"], result["epochs"]) == ("early_bird", 1, 0, 4)
    assert result["mask_checksum"] == ticket.checksum
    kept = sum(int(mask.sum()) for mask in ticket.masks.values())
    assert result["density"] == kept / sum(mask.numel() for mask in ticket.masks.values())
    masks = {name: value for name, value in last(run / LEVEL)["state_dict"].items() if name.endswith(".mask")}
    assert_same({name.removeprefix("backbone.").removesuffix(".mask"): m for name, m in masks.items()}, ticket.masks)


@pytest.mark.slow
def test_the_level_starts_from_the_weights_and_the_step_of_the_rewind_point(run):
    rewind = torch.load(run / SEARCH / "rewind.pt", weights_only=True)
    ticket = load_ticket(run / LEVEL / "ticket.pt")
    assert rewind["step"] == 2
    assert_same(ticket.rewind, rewind["state_dict"])
    assert ticket.details["rewind_point"] == "2it"
    assert finished(run / LEVEL)["steps"] == last(run / LEVEL)["global_step"] - 2
    network = ReActNet18(10, in_channels=1, width=2, blocks_per_stage=[1, 1, 1, 1])
    network.load_state_dict(ticket.start())


@pytest.mark.slow
def test_it_is_reported_beside_the_levels_of_a_run(run):
    (result,) = read_levels(run)
    assert result.directory == run / LEVEL
    with (run / "levels.csv").open(newline="") as file:
        assert [row["kind"] for row in csv.DictReader(file)] == ["early_bird"]
    assert "early-bird ticket" in (run / "report.md").read_text()


@pytest.mark.slow
def test_again_repeats_nothing_and_what_has_changed_is_refused(run, monkeypatch, capsys):
    monkeypatch.chdir(run.parents[1])
    before = (run / LEVEL / "finished.yaml").read_text(), (run / LEVEL / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    assert main([*COMMAND, "--trainer.max_epochs=4"]) == 0
    assert "early bird (density 0.5) has finished: val/acc" in capsys.readouterr().out
    after = (run / LEVEL / "finished.yaml").read_text(), (run / LEVEL / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    assert after == before
    for options, message in (
        (["--trainer.max_epochs=4", "--tolerance=0.3"], "has been searched with --tolerance 0.45, not 0.3"),
        (["--trainer.max_epochs=5"], "has been trained with other settings (trainer.max_epochs=5, not 4)"),
        (["--trainer.max_epochs=4", "--lottery.scope=layer"], "lottery.scope=layer, not global"),
    ):
        assert main([*COMMAND, *options]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on(run, tmp_path, monkeypatch):
    write_lottery(tmp_path, rewind_point="2it")
    monkeypatch.chdir(tmp_path)
    # As if it had been killed after the first epoch, and again before the level's mark was written.
    from bnfree.callbacks import EarlyBird

    original = EarlyBird.on_train_epoch_end

    def stop(self, trainer, pl_module):
        original(self, trainer, pl_module)
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(tmp_path / "runs" / "lottery" / SEARCH / "checkpoints" / "last.ckpt")
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(EarlyBird, "on_train_epoch_end", stop)
        with pytest.raises(RuntimeError, match="killed"):
            main([*COMMAND, "--trainer.max_epochs=4"])
    assert main([*COMMAND, "--trainer.max_epochs=4"]) == 0
    directory = tmp_path / "runs" / "lottery"
    assert_same(weights(directory / LEVEL), weights(run / LEVEL))
    ours, theirs = finished(directory / LEVEL), finished(run / LEVEL)
    assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    assert (directory / "levels.csv").read_text() == (run / "levels.csv").read_text()


@pytest.mark.slow
def test_a_mask_that_does_not_settle_is_an_error(tmp_path, monkeypatch, capsys):
    write_lottery(tmp_path)
    monkeypatch.chdir(tmp_path)
    command = ["lottery", "early-bird", "lottery.yaml", "--density=0.2", "--tolerance=0.0001", "--trainer.max_epochs=1"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "the mask of density 0.2 has not settled in 1 epochs" in said
    assert not list(tmp_path.glob("runs/lottery/seed_0/early_bird/density_0.2/level_*"))


@pytest.mark.slow
def test_mistakes_are_said_before_anything_is_written(tmp_path, monkeypatch, capsys):
    write_lottery(tmp_path)
    monkeypatch.chdir(tmp_path)
    for options, message in (
        ([], "levels of densities 0.5, 0.2, 0.1; say which with --density"),
        (["--density", "half"], "--density 'half' must be a number"),
        (["--density=0.5", "--window"], "--window '' must be a whole number"),
        (["--density=0.5", "--window=1"], "window=1 must be at least 2"),
        (["--density=0.05"], "tolerance=0.1 says nothing at density=0.05"),
        (["--density=0.5", "--lottery.score=flip"], "score='flip' needs more than the weights"),
        (["--density=0.5", "--lottery.find_in=step1"], "lottery.find_in=step1 carries masks"),
    ):
        assert main(["lottery", "early-bird", "lottery.yaml", *options]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_only_density_of_a_file_needs_no_option(tmp_path, monkeypatch, capsys):
    write_lottery(tmp_path, densities=[0.3])
    monkeypatch.chdir(tmp_path)
    options = ["--window=2", "--tolerance=0.4", "--trainer.max_epochs=2", "--lottery.rewind=learning_rate"]
    assert main(["lottery", "early-bird", "lottery.yaml", *options]) == 0
    ticket = load_ticket(tmp_path / "runs/lottery/seed_0/early_bird/density_0.3/level_01/ticket.pt")
    assert (ticket.density, ticket.rewind) == (0.3, None)
    config = yaml.safe_load((tmp_path / "runs/lottery/lottery.yaml").read_text())
    assert config["lottery"]["densities"] == [0.3]


@pytest.mark.slow
def test_help_is_a_manual_without_torch(capsys):
    assert main(["lottery", "early-bird", "--help"]) == 0
    said = capsys.readouterr().out
    for word in ("--density", "--window", "--tolerance", "--run_dir", "ticket/mask_distance", "search/"):
        assert word in said
    assert all(len(line) <= 120 for line in said.splitlines())

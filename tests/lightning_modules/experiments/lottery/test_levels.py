"""`bnfree lottery run`: what the levels start from, what they leave, and going on with them."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from small_lottery import assert_same, finished, last, weights, write_lottery

from bnfree.backbones import ReActNet18
from bnfree.lightning_modules.cli import main
from bnfree.lightning_modules.experiments.lottery.level_results import read_levels
from bnfree.lightning_modules.experiments.lottery.level_tickets import write_start
from bnfree.tickets import Ticket, load_ticket, prunable_layers, weights_checksum

DENSITIES = (1, 0.5, 0.2, 0.1)


class Recorder(Callback):
    """Writes the weights before the first step of a fit into its run directory."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        path = Path(trainer.default_root_dir) / "first.pt"
        if not path.exists():
            rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
            state = {name: value.clone() for name, value in pl_module.backbone.state_dict().items()}
            torch.save({"step": trainer.global_step, "state": state, "lr": rates[0]}, path)


@pytest.fixture
def recorded(monkeypatch):
    """Every fit of the test has a `Recorder`."""
    from bnfree.lightning_modules.training import default_callbacks as defaults

    original = defaults.default_callbacks
    monkeypatch.setattr(
        "bnfree.lightning_modules.training.command_line.default_callbacks",
        lambda options, always_on, directory: [*original(options, always_on, directory), Recorder()],
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of three levels that are rewound to a step in the midst of the first epoch; not to be changed."""
    project = tmp_path_factory.mktemp("lottery")
    write_lottery(project, rewind_point="3it")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        from bnfree.lightning_modules.training import default_callbacks as defaults

        original = defaults.default_callbacks
        patch.setattr(
            "bnfree.lightning_modules.training.command_line.default_callbacks",
            lambda options, always_on, directory: [*original(options, always_on, directory), Recorder()],
        )
        assert main(["lottery", "run", "lottery.yaml"]) == 0
    return project / "runs" / "lottery"


def level(run, number, seed=0):
    return run / f"seed_{seed}" / f"level_{number:02d}"


def network_of(directory):
    network = ReActNet18(10, in_channels=1, width=2, blocks_per_stage=[1, 1, 1, 1])
    state = {name.removeprefix("backbone."): value for name, value in last(directory)["state_dict"].items()}
    network.load_state_dict({name: value for name, value in state.items() if not name.startswith("accuracies")})
    return network


def test_every_level_has_exactly_its_density(run):
    for number, density in enumerate(DENSITIES):
        layers = prunable_layers(network_of(level(run, number)))
        zeros = sum(int((layer.effective_weight() == 0).sum()) for layer in layers.values())
        total = sum(layer.weight.numel() for layer in layers.values())
        assert zeros == total - int(total * density + 0.5)
        assert finished(level(run, number))["density"] == 1 - zeros / total


def test_masks_shrink(run):
    masks = [load_ticket(level(run, number) / "ticket.pt").masks for number in (1, 2, 3)]
    for denser, sparser in pairwise(masks):
        assert all(not (sparser[name] & ~denser[name]).any() for name in sparser)


def test_every_level_starts_from_the_rewind_point_to_the_bit(run):
    point = torch.load(level(run, 0) / "rewind.pt", weights_only=True)
    assert point["step"] == 3
    for number in (1, 2, 3):
        ticket = load_ticket(level(run, number) / "ticket.pt")
        assert_same(ticket.rewind, point["state_dict"])
        first = torch.load(level(run, number) / "first.pt", weights_only=True)
        assert first["step"] == 3
        expected = {name: value.clone() for name, value in point["state_dict"].items()}
        for name, mask in ticket.masks.items():
            expected[f"{name}.weight"] *= mask
            expected[f"{name}.mask"] = mask
        assert_same(first["state"], expected)


def test_results_tell_what_the_runs_have_measured(run):
    results = read_levels(run)
    assert [(r.kind, r.level) for r in results] == [("dense", 0), ("ticket", 1), ("ticket", 2), ("ticket", 3)]
    for result in results:
        mark, checkpoint = finished(result.directory), last(result.directory)
        assert checkpoint["global_step"] == 8
        assert mark["steps"] == (8 if result.level == 0 else 5)
        assert mark["epochs"] == 2
        assert mark["weights_checksum"] == weights_checksum(
            {n.removeprefix("backbone."): v for n, v in checkpoint["state_dict"].items()}
        )
        assert mark["mask_checksum"] == (None if result.level == 0 else load_ticket(result.ticket).checksum)
        assert mark["test_acc"] == mark["test"]["test/acc"]
        assert mark["val_acc"] <= mark["best_val_acc"]
        assert mark["seconds"] > 0
    assert (run / "levels.csv").is_file()
    assert not list(run.glob("seed_0/*/start.ckpt"))


def test_level_that_prunes_nothing_repeats_the_dense_run(run, project, bnfree):
    write_lottery(project)
    point = torch.load(level(run, 0) / "rewind.pt", weights_only=True)
    masks = {f"{name}.mask": torch.ones_like(layer.weight, dtype=torch.bool)
             for name, layer in prunable_layers(network_of(level(run, 0))).items()}  # fmt: skip
    ticket = Ticket(
        state_dict={**point["state_dict"], **masks}, rewind=point["state_dict"], score="", scope="", density=1.0
    )
    write_start(point, ticket, project / "start.ckpt")
    assert bnfree("fit", "--config=network.yaml", "--ckpt_path=start.ckpt", "--run_dir=again", "--data.seed=0")[0] == 0
    assert_same(weights("again"), weights(level(run, 0)))


@pytest.mark.slow
def test_finished_levels_are_not_repeated_and_seeds_and_levels_may_be_added(project, bnfree):
    write_lottery(project, densities=[0.5])
    assert bnfree("lottery", "run", "lottery.yaml")[0] == 0
    folder = project / "runs" / "lottery"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("seed_0/level_*/checkpoints/last.ckpt")}
    code, output, _ = bnfree("lottery", "run", "lottery.yaml", "--lottery.densities=[0.5, 0.3]", "--seeds=0,1")
    assert code == 0
    assert "Seed 0, level 1 of 2 (density 0.5) has finished: val/acc" in output
    assert "Seed 1, level 2 of 2 (density 0.3)" in output
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert len(read_levels(folder)) == 6
    assert yaml.safe_load((folder / "lottery.yaml").read_text())["lottery"]["seeds"] == [0, 1]
    assert finished(level(folder, 0, 1))["weights_checksum"] != finished(level(folder, 0))["weights_checksum"]
    configs = [yaml.safe_load((level(folder, 0, seed) / "config.yaml").read_text()) for seed in (0, 1)]
    assert [config["data"]["init_args"]["seed"] for config in configs] == [0, 1]


class StopIn(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise RuntimeError("stopped")


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 6])
def test_interrupted_level_goes_on_to_the_same_results(run, project, bnfree, monkeypatch, step):
    from bnfree.lightning_modules.training import default_callbacks as defaults

    write_lottery(project, rewind_point="3it")
    original, stop = defaults.default_callbacks, StopIn(step)
    monkeypatch.setattr(
        "bnfree.lightning_modules.training.command_line.default_callbacks",
        lambda options, always_on, directory: [
            *original(options, always_on, directory), *([stop] if directory.name == "level_02" else []),
        ],
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="stopped"):
        bnfree("lottery", "run", "lottery.yaml")
    again = project / "runs" / "lottery"
    assert (level(again, 2) / "ticket.pt").is_file()
    assert (level(again, 2) / "checkpoints" / "last.ckpt").is_file() is (step == 6)
    stop.step = -1
    assert bnfree("lottery", "run", "lottery.yaml")[0] == 0
    assert (again / "levels.csv").read_bytes() == (run / "levels.csv").read_bytes()
    for number in range(4):
        assert_same(weights(level(again, number)), weights(level(run, number)))


@pytest.mark.slow
@pytest.mark.parametrize("point", ["init", "1ep"])
@pytest.mark.usefixtures("recorded")
def test_signs_alone(project, bnfree, point):
    write_lottery(project, densities=[0.3], rewind="sign", rewind_point=point)
    assert bnfree("lottery", "run", "lottery.yaml")[0] == 0
    folder = project / "runs" / "lottery"
    content = torch.load(level(folder, 0) / "rewind.pt", weights_only=True)
    first = torch.load(level(folder, 1) / "first.pt", weights_only=True)
    assert first["step"] == content["step"]
    for name, mask in load_ticket(level(folder, 1) / "ticket.pt").masks.items():
        weight = first["state"][f"{name}.weight"]
        assert len(weight[mask].abs().unique()) == 1
        kept = torch.where(mask, content["state_dict"][f"{name}.weight"].double(), torch.nan)
        seen = kept - kept.nanmean((1, 2, 3), keepdim=True)
        clear = mask & (mask.sum((1, 2, 3), keepdim=True) > 1)
        assert torch.equal(weight[clear] > 0, seen[clear] > 0)
    assert torch.equal(first["state"]["classifier.weight"], content["state_dict"]["classifier.weight"])


@pytest.mark.slow
@pytest.mark.parametrize(("rewind", "point"), [("learning_rate", "init"), ("learning_rate", "1ep"), ("none", "init")])
@pytest.mark.usefixtures("recorded")
def test_trained_weights(project, bnfree, rewind, point):
    write_lottery(project, densities=[0.3], rewind=rewind, rewind_point=point)
    assert bnfree("lottery", "run", "lottery.yaml")[0] == 0
    folder = project / "runs" / "lottery"
    first = torch.load(level(folder, 1) / "first.pt", weights_only=True)
    expected = weights(level(folder, 0))
    for name, mask in load_ticket(level(folder, 1) / "ticket.pt").masks.items():
        expected[f"{name}.weight"] = expected[f"{name}.weight"] * mask
    assert_same({name: value for name, value in first["state"].items() if not name.endswith(".mask")}, expected)
    # Linear decay over eight steps.
    assert first["lr"] == pytest.approx({"init": 0.01, "1ep": 0.005}[point] * (0.1 if rewind == "none" else 1))
    # The settings are recognised as those of the level's own.
    assert bnfree("lottery", "run", "lottery.yaml")[0] == 0


@pytest.mark.slow
@pytest.mark.usefixtures("recorded")
def test_masks_of_step1_are_carried_to_step2(project, bnfree):
    write_lottery(project, densities=[0.4], find_in="step1", step1_options={"trainer.max_epochs": 1})
    code, output, _ = bnfree("lottery", "run", "lottery.yaml")
    assert code == 0
    assert "step 1 (real weights)" in output
    folder = project / "runs" / "lottery"
    for number in (0, 1):
        one, two = level(folder, number) / "step1", level(folder, number)
        configs = [yaml.safe_load((directory / "config.yaml").read_text()) for directory in (one, two)]
        backbones = [config["model"]["init_args"]["backbone"]["init_args"] for config in configs]
        assert [backbone.get("binary_weights", True) for backbone in backbones] == [False, True]
        assert [last(directory)["epoch"] for directory in (one, two)] == [0, 1]
        first = torch.load(two / "first.pt", weights_only=True)["state"]
        assert_same({name: value for name, value in first.items() if not name.endswith(".mask")}, weights(one))
    found = load_ticket(level(folder, 1) / "step1" / "ticket.pt")
    assert load_ticket(level(folder, 1) / "ticket.pt").checksum == found.checksum
    assert finished(level(folder, 1))["mask_checksum"] == found.checksum
    assert_same(found.rewind, torch.load(level(folder, 0) / "step1" / "rewind.pt", weights_only=True)["state_dict"])
    assert [(r.kind, r.level) for r in read_levels(folder)] == [("dense", 0), ("ticket", 1)]
    assert bnfree("lottery", "run", "lottery.yaml")[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("score", ["flip", "snip", "random"])
def test_scores_that_want_to_know_more(project, bnfree, score):
    write_lottery(project, densities=[0.3], score=score)
    assert bnfree("lottery", "run", "lottery.yaml", "--trainer.max_epochs=1")[0] == 0
    ticket = load_ticket(level(project / "runs" / "lottery", 1) / "ticket.pt")
    assert (ticket.score, ticket.density) == (score, 0.3)

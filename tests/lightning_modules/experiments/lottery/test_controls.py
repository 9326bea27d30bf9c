"""`bnfree lottery controls`: what the controls start from, how they train, and what is printed."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from small_lottery import assert_same, finished, last, weights, write_lottery

from bnfree.backbones import ReActNet18
from bnfree.lightning_modules.cli import main
from bnfree.lightning_modules.experiments.lottery.controls import plan_controls
from bnfree.lightning_modules.experiments.lottery.level_results import read_levels
from bnfree.lightning_modules.experiments.lottery.level_tickets import control_ticket, draw_seed
from bnfree.lightning_modules.experiments.lottery.settings import ControlSettings
from bnfree.tickets import apply, checksum, load_ticket, overlap, rewind, save_ticket

pytestmark = pytest.mark.slow

KINDS = ("random_layerwise", "random_global", "reinit", "shuffle_signs")


class Recorder(Callback):
    """Writes what a fit begins with into its run directory."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        path = Path(trainer.default_root_dir) / "first.pt"
        if not path.exists():
            optimizer = trainer.optimizers[0]
            state = {name: value.clone() for name, value in pl_module.backbone.state_dict().items()}
            moments = {
                name: optimizer.state[value]["exp_avg"].clone()
                for name, value in pl_module.backbone.named_parameters()
                if value in optimizer.state
            }
            lr = optimizer.param_groups[0]["lr"]
            images = batch[0].clone()
            torch.save(
                {"step": trainer.global_step, "lr": lr, "state": state, "moments": moments, "images": images}, path
            )


@pytest.fixture
def recorded(monkeypatch):
    """Every fit of the test has a `Recorder`."""
    _record(monkeypatch)


def _record(patch):
    from bnfree.lightning_modules.training import default_callbacks as defaults

    original = defaults.default_callbacks
    patch.setattr(
        "bnfree.lightning_modules.training.command_line.default_callbacks",
        lambda options, always_on, directory: [*original(options, always_on, directory), Recorder()],
    )


@pytest.fixture(scope="module")
def controlled(tmp_path_factory):
    """A run of one level, rewound to a step in the midst of the first epoch, with all controls; not to be changed."""
    project = tmp_path_factory.mktemp("controls")
    write_lottery(project, densities=[0.3], rewind_point="3it")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        _record(patch)
        assert main(["lottery", "run", "lottery.yaml"]) == 0
        assert main(["lottery", "controls", "runs/lottery"]) == 0
    return project / "runs" / "lottery"


def level(run, number, seed=0):
    return run / f"seed_{seed}" / f"level_{number:02d}"


def control(run, kind, number=1, seed=0):
    return run / f"seed_{seed}" / "controls" / kind / f"level_{number:02d}"


def first(directory):
    return torch.load(directory / "first.pt", weights_only=True)


def effective(start, masks):
    """The binary weights that the layers see, by an independent network."""
    network = ReActNet18(10, in_channels=1, width=2, blocks_per_stage=[1, 1, 1, 1])
    rewind(network, {name: value for name, value in start.items() if not name.endswith(".mask")}, masks)
    apply(network, masks)
    return {name: network.get_submodule(name).effective_weight().detach() for name in masks}


def test_random_masks_have_the_counts_of_the_ticket_and_meet_it_by_chance(controlled):
    ticket = load_ticket(level(controlled, 1) / "ticket.pt")
    counts = {name: int(mask.sum()) for name, mask in ticket.masks.items()}
    for kind in ("random_layerwise", "random_global"):
        masks = load_ticket(control(controlled, kind) / "ticket.pt").masks
        own = {name: int(mask.sum()) for name, mask in masks.items()}
        assert sum(own.values()) == sum(counts.values())
        assert (own == counts) is (kind == "random_layerwise")
        shared = overlap(ticket.masks, masks)
        # Hypergeometric in each layer.
        variance = 0.0
        for name, mask in masks.items():
            n, a, b = mask.numel(), own[name], counts[name]
            variance += a * b * (n - a) * (n - b) / (n * n * max(n - 1, 1))
        assert abs(shared.both - shared.chance_both) < 4 * variance**0.5
    layerwise, anywhere = (load_ticket(control(controlled, kind) / "ticket.pt") for kind in KINDS[:2])
    assert layerwise.checksum != anywhere.checksum


def test_random_masks_keep_weights_and_momentum_of_the_rewind_point(controlled):
    point = torch.load(level(controlled, 0) / "rewind.pt", weights_only=True)["state_dict"]
    of_dense = first(level(controlled, 1))
    for kind in ("random_layerwise", "random_global"):
        masks, begun = load_ticket(control(controlled, kind) / "ticket.pt").masks, first(control(controlled, kind))
        expected = {name: value.clone() for name, value in point.items()}
        for name, mask in masks.items():
            expected[f"{name}.weight"] *= mask
            expected[f"{name}.mask"] = mask
        assert_same(begun["state"], expected)
        assert begun["moments"].keys() == of_dense["moments"].keys()
        assert begun["moments"]["classifier.weight"].abs().sum() > 0
        for name, moment in begun["moments"].items():
            mask = masks.get(name.removesuffix(".weight"))
            if mask is None:
                assert torch.equal(moment, of_dense["moments"][name])
            else:
                assert not moment[~mask].any()
                both = mask & load_ticket(level(controlled, 1) / "ticket.pt").masks[name.removesuffix(".weight")]
                assert torch.equal(moment[both], of_dense["moments"][name][both])


@pytest.mark.parametrize("kind", ["reinit", "shuffle_signs"])
def test_other_weights_under_the_masks_of_the_ticket(controlled, kind):
    point = torch.load(level(controlled, 0) / "rewind.pt", weights_only=True)["state_dict"]
    ticket, begun = load_ticket(level(controlled, 1) / "ticket.pt"), first(control(controlled, kind))
    assert begun["moments"] == {}
    drawn = {f"{name}.weight" for name in ticket.masks}
    for name, value in begun["state"].items():
        if name.endswith(".mask"):
            assert torch.equal(value, ticket.masks[name.removesuffix(".mask")])
        else:
            assert torch.equal(value, point[name]) is (name not in drawn), name
    before, after = effective(point, ticket.masks), effective(begun["state"], ticket.masks)
    agreeing = by_chance = kept = 0
    for name, mask in ticket.masks.items():
        assert torch.equal(after[name] != 0, mask)
        for old, new in zip(before[name], after[name], strict=True):
            count, of_old, of_new = int((old != 0).sum()), int((old > 0).sum()), int((new > 0).sum())
            if kind == "shuffle_signs":
                assert of_new == of_old
            agreeing += int((old * new > 0).sum())
            by_chance += (of_old * of_new + (count - of_old) * (count - of_new)) / max(count, 1)
            kept += count
    assert agreeing == pytest.approx(by_chance, abs=4 * kept**0.5 / 2)
    if kind == "reinit":
        name = max(drawn, key=lambda name: point[name].numel())
        old, new = point[name], load_ticket(control(controlled, kind) / "ticket.pt").rewind[name]
        assert new.std().item() == pytest.approx(old.std().item(), rel=0.1)
        assert abs(torch.corrcoef(torch.stack([old.flatten(), new.flatten()]))[0, 1]) < 4 / old.numel() ** 0.5


def test_controls_train_as_their_ticket_did(controlled):
    ticket, mark = first(level(controlled, 1)), finished(level(controlled, 1))
    configs = []
    for kind in KINDS:
        folder = control(controlled, kind)
        begun, own = first(folder), finished(folder)
        assert (begun["step"], begun["lr"]) == (3, ticket["lr"])
        assert torch.equal(begun["images"], ticket["images"])
        assert (own["kind"], own["level"], own["seed"]) == (kind, 1, 0)
        assert (own["steps"], own["epochs"]) == (mark["steps"], mark["epochs"])
        masks = {
            name.removeprefix("backbone.").removesuffix(".mask"): value
            for name, value in last(folder)["state_dict"].items()
            if name.endswith(".mask")
        }
        assert own["mask_checksum"] == checksum(masks) == load_ticket(folder / "ticket.pt").checksum
        trained = effective(weights(folder), masks)
        zeros = sum(int((weight == 0).sum()) for weight in trained.values())
        assert own["density"] == 1 - zeros / sum(weight.numel() for weight in trained.values())
        configs.append(yaml.safe_load((folder / "config.yaml").read_text()))
        configs[-1]["trainer"]["callbacks"][0]["init_args"].pop("ticket")
    assert all(config == configs[0] for config in configs)
    assert [(r.kind, r.level) for r in read_levels(controlled)] == [
        ("dense", 0), ("ticket", 1), *((kind, 1) for kind in KINDS)
    ]  # fmt: skip
    assert len({finished(control(controlled, kind))["weights_checksum"] for kind in KINDS}) == 4


def test_draws_depend_on_seed_level_and_kind_alone(controlled, monkeypatch):
    monkeypatch.chdir(controlled.parent.parent)
    lottery, places = plan_controls(ControlSettings(directory="runs/lottery"))
    assert places == [(0, 1)]
    ticket = load_ticket(level(controlled, 1) / "ticket.pt")
    for kind in KINDS:
        torch.manual_seed(12)
        again = control_ticket(lottery, kind, 0, ticket)
        assert_same(again.start(), load_ticket(control(controlled, kind) / "ticket.pt").start())
    places = [(seed, number, kind) for seed in (0, 1, 11) for number in (1, 2, 11) for kind in KINDS]
    assert len({draw_seed(*place) for place in places}) == len(places)
    other = control_ticket(
        lottery, "random_layerwise", 0, load_ticket(control(controlled, "random_global") / "ticket.pt")
    )
    assert other.details["draw"] == draw_seed(0, 1, "random_layerwise")


def test_finished_controls_are_not_repeated_and_the_table_tells_the_leads(controlled, monkeypatch, bnfree):
    monkeypatch.chdir(controlled.parent.parent)
    before = {path: path.stat().st_mtime_ns for path in controlled.glob("seed_0/**/last.ckpt")}
    assert len(before) == 6
    code, output, _ = bnfree("lottery", "controls", "runs/lottery", "--levels=1", "--seeds=0")
    assert code == 0
    assert output.count("has finished: val/acc") == 4
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    table = output[output.index("Tickets and their controls") :].splitlines()
    dense, ticket = (finished(level(controlled, number))["test_acc"] for number in (0, 1))
    assert re.split(r"\s{2,}", table[1])[2:] == ["kind", "test acc (%)", "to dense", "verdict", "ticket minus control"]
    assert re.split(r"\s{2,}", table[2])[2:5] == ["ticket", f"{100 * ticket:.2f}", f"{100 * (ticket - dense):+.2f}"]
    for line, kind in zip(table[3:], KINDS, strict=True):
        own = finished(control(controlled, kind))["test_acc"]
        cells = re.split(r"\s{2,}", line)
        assert cells[3] == f"{100 * own:.2f}"
        assert cells[5] == ("matching" if own >= dense - 0.01 - 1e-9 else "below")
        assert float(cells[6]) == pytest.approx(100 * (ticket - own), abs=0.0051)
    assert (controlled / "report.md").read_text().count("re-initialised") > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--controls=random_layer"], "control 'random_layer' in --controls is not known; did you mean 'random_layer"),
        (["--controls=wrong"], "choose from random_layerwise, random_global, reinit, shuffle_signs"),
        (["--controls=,"], "names no control"),
        (["--controls"], "--controls needs a value"),
        (["--levels=0"], "level 0 is the dense network"),
        (["--levels=1-3"], "the run has no level 3; give levels from 1 to 2"),
        (["--levels=2"], "level 2 of seed 0 has not finished"),
        (["--levels=2-1"], "--levels='2-1' must be numbers and ranges"),
        (["--seeds=0,4"], "4 is no seed of this run, which has 0"),
        (["--trainer.max_epochs=4"], "trainer.max_epochs=4, not 2); controls must be trained as the run was"),
        (["--data.batch_size=8"], "data.batch_size=8, not 16"),
        (["--lottery.score=latent"], "--lottery.score is no option of bnfree lottery controls"),
        (["--run_dir=other"], "--run_dir is no option of bnfree lottery controls: the run's directory comes first"),
        (["--trainer.max_epoch=4"], "trainer.max_epoch"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(controlled, project, complaint, options, said):
    run = _unfinished_copy(controlled, project)
    before = sorted(run.rglob("*"))
    assert said in complaint("lottery", "controls", str(run), *options)
    assert sorted(run.rglob("*")) == before


def _unfinished_copy(controlled, project, **settings):
    """The run, whose second level has not finished, without what weighs."""
    write_lottery(project, densities=[0.3, 0.1], rewind_point="3it")
    run = project / "runs" / "lottery"
    content = yaml.safe_load((controlled / "lottery.yaml").read_text())
    content["lottery"] |= {"densities": [0.3, 0.1], **settings}
    for number in (0, 1, 2):
        level(run, number).mkdir(parents=True)
        for name in ("finished.yaml", "config.yaml", "ticket.pt", "rewind.pt"):
            source = level(controlled, min(number, 1)) / name
            if source.is_file() and (number < 2 or name == "config.yaml"):
                (level(run, number) / name).write_bytes(source.read_bytes())
    (run / "lottery.yaml").write_text(yaml.safe_dump(content))
    return run


def test_what_is_not_there_is_told(controlled, project, complaint, monkeypatch):
    run = _unfinished_copy(controlled, project)
    assert "wants the directory of a lottery run first" in complaint("lottery", "controls", "--levels=1")
    assert "'nothing' does not exist" in complaint("lottery", "controls", "nothing")
    assert "is no lottery run" in complaint("lottery", "controls", "runs")
    assert "is no lottery run" in complaint("lottery", "controls", str(level(run, 1)))
    with monkeypatch.context() as elsewhere:
        elsewhere.chdir(run)
        message = complaint("lottery", "controls", str(run))
        assert "config 'network.yaml', which does not exist here; give the command in the directory" in message
    (level(run, 0) / "rewind.pt").unlink()
    assert "rewind.pt' is gone, from which controls of level 1 are made" in complaint("lottery", "controls", str(run))
    (level(run, 1) / "finished.yaml").unlink()
    assert "has no finished level after the dense one" in complaint("lottery", "controls", str(run))
    assert "did you mean 'reinit'" in complaint("lottery", "run", "lottery.yaml", "--run_dir=new", "--controls=re-init")
    assert not Path("new").exists()


def test_a_control_of_a_ticket_that_has_been_replaced_is_refused(controlled, project, complaint):
    run = _unfinished_copy(controlled, project)
    folder = control(run, "reinit")
    folder.mkdir(parents=True)
    other = load_ticket(control(controlled, "reinit") / "ticket.pt")
    other.details["control_of"] = "another"
    save_ticket(other, folder / "ticket.pt")
    message = complaint("lottery", "controls", str(run), "--controls=reinit")
    assert "holds a control of another ticket" in message


def test_manual(bnfree):
    for arguments in ([], ["--help"], ["runs/lottery", "-h"]):
        code, output, _ = bnfree("lottery", "controls", *arguments)
        assert code == 0
        for word in (*KINDS, "--levels", "How to read the outcome", "find_in", "learning_rate"):
            assert word in output
    assert "--controls LIST" in bnfree("lottery", "run", "--help")[1]
    assert "controls DIR" in bnfree("lottery")[1]


@pytest.mark.slow
def test_controls_of_a_run_in_one_command(controlled, project, bnfree):
    write_lottery(project, densities=[0.3], rewind_point="3it")
    code, output, _ = bnfree("lottery", "run", "lottery.yaml", "--controls", "reinit,random_layerwise")
    assert code == 0
    assert output.count("Tickets and their controls") == 1
    run = project / "runs" / "lottery"
    assert sorted(path.name for path in (run / "seed_0" / "controls").iterdir()) == ["random_layerwise", "reinit"]
    for kind in ("random_layerwise", "reinit"):
        assert_same(weights(control(run, kind)), weights(control(controlled, kind)))


@pytest.mark.slow
@pytest.mark.parametrize("point", ["init", "1ep"])
@pytest.mark.usefixtures("recorded")
def test_controls_of_signs_alone(project, bnfree, point):
    write_lottery(project, densities=[0.3], rewind="sign", rewind_point=point)
    assert bnfree("lottery", "run", "lottery.yaml", "--controls=" + ",".join(KINDS))[0] == 0
    run = project / "runs" / "lottery"
    content = torch.load(level(run, 0) / "rewind.pt", weights_only=True)
    for kind in KINDS:
        begun, masks = first(control(run, kind)), load_ticket(control(run, kind) / "ticket.pt").masks
        assert begun["step"] == content["step"]
        assert begun["moments"] == {}
        assert torch.equal(begun["state"]["classifier.weight"], content["state_dict"]["classifier.weight"])
        for name, mask in masks.items():
            assert len(begun["state"][f"{name}.weight"][mask].abs().unique()) == 1
        if kind.startswith("random"):
            seen, expected = effective(begun["state"], masks), effective(content["state_dict"], masks)
            clear = {name: mask & (mask.sum((1, 2, 3), keepdim=True) > 1) for name, mask in masks.items()}
            # A filter whose survivors are all alike in sign is not: it has a mean.
            mixed = {
                name: clear[name]
                & (expected[name] > 0).any((1, 2, 3)).view(-1, 1, 1, 1)
                & (expected[name] < 0).any((1, 2, 3)).view(-1, 1, 1, 1)
                for name in masks
            }
            assert all(torch.equal(seen[n][mixed[n]] > 0, expected[n][mixed[n]] > 0) for n in masks)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "point"), [("learning_rate", "1ep"), ("none", "init")])
@pytest.mark.usefixtures("recorded")
def test_controls_of_trained_weights(project, bnfree, how, point):
    write_lottery(project, densities=[0.5, 0.3], rewind=how, rewind_point=point)
    assert bnfree("lottery", "run", "lottery.yaml", "--controls=" + ",".join(KINDS))[0] == 0
    run = project / "runs" / "lottery"
    dense, trained, ticket = weights(level(run, 0)), weights(level(run, 1)), load_ticket(level(run, 2) / "ticket.pt")
    drawn = {f"{name}.weight" for name in ticket.masks}
    for kind in KINDS:
        begun, masks = first(control(run, kind, 2)), load_ticket(control(run, kind, 2) / "ticket.pt").masks
        assert begun["moments"] == {}
        assert (begun["step"], begun["lr"]) == tuple(first(level(run, 2))[key] for key in ("step", "lr"))
        start = dense if kind.startswith("random") else trained
        for name, value in begun["state"].items():
            layer = name.removesuffix(".weight")
            if kind.startswith("random") and layer in masks and name in drawn:
                assert torch.equal(value, start[name] * masks[layer])
            elif name not in drawn and not name.endswith(".mask"):
                assert torch.equal(value, start[name])
        if kind == "reinit":
            name = max(drawn, key=lambda name: dense[name].numel())
            fresh = load_ticket(control(run, kind, 2) / "ticket.pt").rewind[name]
            assert fresh.std().item() == pytest.approx(dense[name].std().item(), rel=0.1)


@pytest.mark.slow
@pytest.mark.usefixtures("recorded")
def test_controls_of_masks_that_were_found_in_step1(project, bnfree):
    write_lottery(project, densities=[0.4], find_in="step1", step1_options={"trainer.max_epochs": 1})
    code, output, _ = bnfree("lottery", "run", "lottery.yaml", "--controls=random_layerwise,reinit")
    assert code == 0
    assert "random mask, layerwise, step 1 (real weights): " in output
    run = project / "runs" / "lottery"
    found = load_ticket(level(run, 1) / "step1" / "ticket.pt")
    point = torch.load(level(run, 0) / "step1" / "rewind.pt", weights_only=True)["state_dict"]
    for kind in ("random_layerwise", "reinit"):
        one, two = control(run, kind) / "step1", control(run, kind)
        masks = load_ticket(one / "ticket.pt").masks
        assert load_ticket(two / "ticket.pt").checksum == checksum(masks) == finished(two)["mask_checksum"]
        assert (checksum(masks) == found.checksum) is (kind == "reinit")
        assert torch.equal(first(one)["state"]["classifier.weight"], point["classifier.weight"])
        begun = {name: value for name, value in first(two)["state"].items() if not name.endswith(".mask")}
        assert_same(begun, weights(one))
        assert [last(folder)["epoch"] for folder in (one, two)] == [0, 1]
    assert bnfree("lottery", "controls", "runs/lottery", "--controls=reinit")[0] == 0

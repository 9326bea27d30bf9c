"""Settings of optimizer and schedule on the command line, for a fresh run and for one that goes on."""

import csv
import itertools
import math
import os
import subprocess
import sys

import pytest

from bnfree.import_names import folder

SMALL = (
    "--config", "quickstart.yaml", "--data.limit_train=320", "--trainer.max_epochs=2", "--model.backbone.width=4",
    "--trainer.callbacks=[]", "--test_after_fit=false", "--trainer.enable_model_summary=false",
    "--trainer.log_every_n_steps=1", "--data.val_split=64",
)  # fmt: skip


@pytest.fixture
def fit(bnfree, project):
    (project / "quickstart.yaml").write_text((folder("configs") / "quickstart.yaml").read_text())

    def run(*options):
        code, _, stderr = bnfree("fit", *SMALL, *options)
        assert code == 0, stderr

    return run


def rates(directory):
    with (directory / "metrics.csv").open() as file:
        return [float(row["lr-Adam/decayed"]) for row in csv.DictReader(file) if row.get("lr-Adam/decayed")]


@pytest.mark.slow
def test_schedules_by_name(fit, project, complaint):
    fit("--model.lr_scheduler=ExponentialLR", "--model.lr_scheduler.gamma=.95", "--run_dir=exponential")
    assert rates(project / "exponential") == pytest.approx([5e-3 * 0.95**k for k in range(10)])
    fit("--model.lr_scheduler=null", "--run_dir=constant")
    assert set(rates(project / "constant")) == {5e-3}
    fit("--model.lr_scheduler=MultiStepLR", "--model.lr_scheduler.milestones=[4]", "--run_dir=steps")
    assert rates(project / "steps") == pytest.approx([5e-3] * 4 + [5e-4] * 6)
    plateau = "torch.optim.lr_scheduler.ReduceLROnPlateau"
    fit(f"--model.lr_scheduler={plateau}", "--model.lr_scheduler.mode=max", "--run_dir=plateau")
    said = complaint("fit", *SMALL, "--model.lr_scheduler=ReduceLROnPlateau", "--run_dir=none")
    assert f"could be {plateau} or lightning.pytorch.cli.ReduceLROnPlateau; give the full path." in said
    said = complaint("fit", *SMALL, "--model.lr_scheduler=ExponentialLR", "--run_dir=none")
    assert "gamma" in said
    assert not (project / "none").exists()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--model.weight_decay_on=all", "weight_decay_on=all cannot go on"),
        pytest.param("--model.optimizer.amsgrad=true", "amsgrad=True needs max_exp_avg_sq", marks=pytest.mark.slow),
        pytest.param("--model.lr_scheduler=null", "lr_scheduler=None cannot go on", marks=pytest.mark.slow),
    ],
)
def test_what_a_checkpoint_cannot_go_on_with_is_one_sentence(fit, project, complaint, option, said):
    fit("--run_dir=run")
    last = project / "run/checkpoints/last.ckpt"
    before = last.read_bytes()
    options = ("--ckpt_path", last, "--run_dir=run", "--trainer.max_epochs=4", option)
    assert said in complaint("fit", *SMALL, *options)
    assert last.read_bytes() == before


@pytest.mark.slow
def test_a_longer_run_through_the_command(fit, project):
    fit("--model.lr_scheduler=CosineAnnealingLR", "--run_dir=run")
    fit(
        "--model.lr_scheduler=CosineAnnealingLR", "--ckpt_path=run/checkpoints/last.ckpt", "--run_dir=run",
        "--trainer.max_epochs=4",
    )  # fmt: skip
    assert rates(project / "run")[10] == pytest.approx(0.0025)
    assert rates(project / "run")[19] == pytest.approx(3.08e-5, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "batch", "accumulate"), [(2, 64, 1), (2, 32, 1), (2, 32, 2), (1, 32, 2)])
def test_the_rest_on_other_processes_starts_where_the_schedule_stopped(project, devices, batch, accumulate):
    """Four of eight epochs on one process with batches of 64; of what is left, each rate by the formula."""

    def fit(*options):
        command = [sys.executable, "-m", "bnfree", "fit", *SMALL, "--trainer.max_epochs=8", *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        run = subprocess.run(command, capture_output=True, text=True, timeout=1200, env=environment, cwd=project)
        assert run.returncode == 0, run.stderr[-2000:]

    (project / "quickstart.yaml").write_text((folder("configs") / "quickstart.yaml").read_text())
    every_fourth = "--trainer.callbacks=ModelCheckpoint"
    fit(
        "--run_dir=whole", every_fourth, "--trainer.callbacks.every_n_epochs=4", "--trainer.callbacks.save_top_k=-1",
        "--trainer.callbacks.dirpath=kept", "--trainer.callbacks.filename={epoch}",
    )  # fmt: skip
    fit(
        "--run_dir=rest", "--ckpt_path=kept/epoch=3.ckpt", f"--trainer.devices={devices}", f"--data.batch_size={batch}",
        f"--trainer.accumulate_grad_batches={accumulate}",
    )  # fmt: skip
    steps = math.ceil(320 // (batch * devices) / accumulate)
    total = 8 * steps
    assert rates(project / "whole") == pytest.approx([5e-3 * (1 - k / 40) for k in range(40)])
    # With accumulation a step has a row for each of its batches.
    rest = [rate for rate, _ in itertools.groupby(rates(project / "rest"))]
    assert rest == pytest.approx([5e-3 * (1 - k / total) for k in range(total // 2, total)])

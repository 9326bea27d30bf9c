"""The command as a process, and several processes at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def bnfree(project, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # As a console script does, without the working directory on the import path.
    script = project.parent / f"{project.name}-bnfree"
    script.write_text("import sys\nfrom bnfree.lightning_modules.cli import main\nsys.exit(main())\n")
    return subprocess.run(
        [sys.executable, str(script), *arguments], cwd=project, env=environment, capture_output=True, text=True,
        timeout=1200,
    )  # fmt: skip


DDP = ["--trainer.strategy=ddp", "--trainer.devices=2"]


@pytest.mark.slow
def test_two_processes_share_one_run_directory(project):
    run = bnfree(project, "fit", "--config", "toy.yaml", "--test_after_fit=true", *DDP)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("Run directory:") == 1
    assert run.stdout.count("test/acc:") == 1
    (directory,) = (project / "runs" / "toy").iterdir()
    assert {"config.yaml", "metrics.csv", "checkpoints"} <= {path.name for path in directory.iterdir()}


@pytest.mark.slow
def test_a_mistake_that_all_processes_meet_is_answered_once(project):
    options = ["--trainer.callbacks=toy_project.ToyCallback", "--trainer.callbacks.fail=true"]
    run = bnfree(project, "fit", "--config", "toy.yaml", *options, *DDP)
    assert run.returncode == 2
    assert run.stderr.count("bnfree: error: fail=True does not do.") == 1
    assert "Traceback" not in run.stderr
    assert not (project / "runs").exists()


@pytest.mark.slow
def test_no_warnings_that_are_not_the_users(project):
    run = bnfree(project, "fit", "--config", "toy.yaml", "--trainer.max_epochs=1")
    assert run.returncode == 0, run.stderr
    for word in ("Tip:", "deprecat", "Deprecat", "litlogger", "jsonargparse"):
        assert word not in run.stdout + run.stderr

"""Two processes against one, by `benchmarks/several_processes.py`; and the ways in which several are started."""

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
FIT = [
    "fit", "--config=quickstart", "--run_dir=run", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2",
    "--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=8",
    "--model.backbone.width=2", "--data.val_split=33", "--model.calibration_images=8",
]  # fmt: skip


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(tmp_path):
    run = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "several_processes.py"],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    assert "NOT AS EXPECTED" not in run.stdout
    assert run.stdout.count("| test on ") == 5


def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def torchrun(directory):
    words = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port()}", "-m", "bnfree", *FIT]
    return [subprocess.Popen([sys.executable, *words], cwd=directory, env=ENVIRONMENT)]


def slurm(directory):
    """As srun starts them, without SLURM."""
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
           "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost", "MASTER_ADDR": "127.0.0.1",
           "MASTER_PORT": str(port())}  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, "-m", "bnfree", *FIT], cwd=directory,
            env={**ENVIRONMENT, **job, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("launch", [torchrun, slurm])
def test_processes_that_others_start_train_together(tmp_path, launch):
    started = launch(tmp_path)
    assert [process.wait(timeout=1200) for process in started] == [0] * len(started)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        accuracies = [float(row["val/acc"]) for row in csv.DictReader(file) if row["val/acc"]]
    assert len(accuracies) == 1
    # Of 33 images, each counted once.
    assert accuracies[0] * 33 == pytest.approx(round(accuracies[0] * 33), abs=1e-4)
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()

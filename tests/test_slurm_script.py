"""The SLURM script runs, is interrupted and goes on, with stand-ins for `srun`, `scontrol` and `bnfree`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_data import write_image

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "configs" / "slurm" / "imagenet_reactnet_a.sh"
SHORT = [
    "--trainer.accelerator=cpu", "--trainer.devices=1", "--model.backbone.width=2", "--model.backbone.num_classes=2",
    "--data.batch_size=2", "--data.image_size=32", "--data.num_workers=0", "--data.val_split=2",
    "--model.calibration_images=4",
]  # fmt: skip


def test_header_asks_for_what_the_overlay_uses():
    header = [line.removeprefix("#SBATCH ") for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    options = dict(option.removeprefix("--").partition("=")[::2] for option in header)
    assert options["ntasks-per-node"] == options["gpus-per-node"] == "8"
    assert options["signal"].startswith("SIGUSR1@")
    assert "requeue" in options
    assert subprocess.run(["bash", "-n", str(SCRIPT)]).returncode == 0


@pytest.fixture
def cluster(tmp_path):
    """A folder to start from and the environment of a job of one task."""
    programs = {
        "srun": 'echo $$ > pid\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"',
        "scontrol": 'echo "$@" >> scontrol.log',
        "bnfree": f'exec {sys.executable} -m bnfree "$@"',
    }
    for name, text in programs.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for label in range(2):
        for i in range(8):
            write_image(tmp_path / "data" / "train" / f"class{label}" / f"{i}.png", 40, 40, 10 * label + i)
        write_image(tmp_path / "data" / "val" / f"class{label}" / "0.png", 40, 40, label)
    variables = {
        "JOB_ID": "123", "JOB_NAME": "bnfree-imagenet", "JOB_NUM_NODES": "1", "NNODES": "1", "NTASKS": "1",
        "NTASKS_PER_NODE": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "NODELIST": "localhost",
    }  # fmt: skip
    environment = {
        **os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        **{f"SLURM_{name}": value for name, value in variables.items()},
    }  # fmt: skip
    return tmp_path, environment


def wait_for(condition, seconds=1200):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
def test_a_requeued_job_goes_on_in_its_run_directory(cluster):
    folder, environment = cluster
    command = ["bash", str(SCRIPT), "data", *SHORT]
    run = folder / "runs" / "imagenet_reactnet_a_step1" / "slurm-123"
    with (folder / "first.log").open("w") as log:
        job = subprocess.Popen(
            [*command, "--trainer.max_epochs=100000"], cwd=folder, env=environment, stdout=log, stderr=log
        )
        try:
            wait_for(lambda: (run / "checkpoints" / "last.ckpt").exists() or job.poll() is not None)
            assert job.poll() is None, (folder / "first.log").read_text()[-2000:]
            os.kill(int((folder / "pid").read_text()), signal.SIGUSR1)
            wait_for((folder / "scontrol.log").exists)
        finally:
            os.kill(int((folder / "pid").read_text()), signal.SIGKILL)
            job.wait()
    assert (folder / "scontrol.log").read_text() == "requeue 123\n"
    saved = torch.load(run / "hpc_ckpt_1.ckpt", weights_only=True)
    epochs = saved["epoch"] + 2
    last = run / "checkpoints" / "last.ckpt"
    newest = max(last, run / "hpc_ckpt_1.ckpt", key=lambda path: path.stat().st_mtime)
    again = subprocess.run(
        [*command, f"--trainer.max_epochs={epochs}"], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=1200,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr[-2000:]
    assert f"{newest.name}" in again.stderr + again.stdout
    finished = torch.load(last, weights_only=True)
    assert finished["epoch"] == epochs - 1
    # 14 training images in batches of 2.
    assert finished["global_step"] == 7 * epochs
    assert (run / "config-resumed-1.yaml").is_file()

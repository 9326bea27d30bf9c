"""A small part of `benchmarks/kill_and_resume.py`, which kills trainings and compares what they leave."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_killed_trainings_end_as_whole_ones(tmp_path):
    cases = ["every second step", "accumulation", "two processes", "recipe, every second step"]
    words = ["--kills=8", "--cases", *cases, "--directory", str(tmp_path / "runs")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "kill_and_resume.py", *words],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    assert " 0 differences" in run.stdout

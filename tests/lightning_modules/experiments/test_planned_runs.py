"""The runs of an experiment in several processes."""

import os
import time
from types import SimpleNamespace

import pytest
import torch
from torch import multiprocessing

from bnfree.lightning_modules import FitResult
from bnfree.lightning_modules.experiments import planned_runs
from bnfree.lightning_modules.experiments.stage_results import read_result, write_result


def slow_result(folder, fit):
    time.sleep(0.5)
    write_result(folder, fit)


def one_of_two(rank, folder):
    os.environ["RANK"] = str(rank)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    run = folder / "run"
    ended = FitResult(True, run, None, None, {}, {"test/acc": 0.5}, 3, 6, 0.1, torch.nn.Module())
    planned_runs.fit = lambda settings: ended
    if rank == 0:
        planned_runs.write_result = slow_result
    plan = planned_runs.PlannedRun("run", "run", run, "bnfree fit", SimpleNamespace(settings={}), None)
    planned_runs.carry_out(plan, "1 of 1")
    assert read_result(run).test == {"test/acc": 0.5}


@pytest.mark.slow
def test_a_run_has_its_result_in_every_process(tmp_path):
    (tmp_path / "run").mkdir()
    multiprocessing.start_processes(one_of_two, (tmp_path,), nprocs=2, start_method="fork")

"""`bnfree lottery run` in processes: killed at any moment, and two at once."""

import random
import signal
import time

import pytest
from small_lottery import assert_same, finished, start, weights, write_lottery

from bnfree.tickets import load_ticket


def run(project, *options):
    process = start(project, *options)
    output, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, errors
    return output


def levels_of(directory):
    return sorted(mark.parent for mark in directory.glob("seed_*/level_*/finished.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"rewind_point": "30%"}, {"score": "snip", "rewind": "learning_rate"}], ids=["rewound", "snip"]
)
def test_killed_at_any_moment_it_ends_with_the_same_results(project, settings):
    write_lottery(project, densities=[0.4, 0.2], **settings)
    options = ["--trainer.max_epochs=4"]
    run(project, "--run_dir=whole", *options)
    moments = random.Random(0)
    # Epochs that are seen before the kill: in the dense level, in the first one, and in that one or the second.
    for seen in (2, 3, 2):
        process = start(project, "--run_dir=killed", *options)
        epochs = 0
        for line in process.stdout:
            epochs += line.startswith("epoch ")
            if epochs == seen:
                break
        assert epochs == seen, "it ended before it was to be killed"
        time.sleep(moments.uniform(0, 0.7))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    run(project, "--run_dir=killed", *options)
    whole, killed = project / "whole", project / "killed"
    assert (whole / "levels.csv").read_bytes() == (killed / "levels.csv").read_bytes()
    assert (whole / "layers.csv").read_bytes() == (killed / "layers.csv").read_bytes()
    assert len(levels_of(whole)) == 3
    for level in levels_of(whole):
        same = killed / level.relative_to(whole)
        assert_same(weights(level), weights(same))
        one, other = ({**finished(folder), "seconds": None} for folder in (level, same))
        assert one == other
        if (level / "ticket.pt").is_file():
            assert load_ticket(level / "ticket.pt").checksum == load_ticket(same / "ticket.pt").checksum


CALLBACK = """
from pathlib import Path
from lightning.pytorch import Callback
from bnfree.tickets import checksum, current_masks


class Masks(Callback):
    def on_train_end(self, trainer, pl_module):
        path = Path(trainer.default_root_dir) / f"masks-{trainer.global_rank}"
        path.write_text(checksum(current_masks(pl_module.backbone)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("score", ["standardized", "effective", "latent", "flip", "snip", "random"])
def test_two_processes_have_the_masks_of_one(project, score):
    (project / "watch.py").write_text(CALLBACK)
    write_lottery(project, densities=[0.4, 0.2], score=score, rewind_point="1it")
    options = ["--trainer.callbacks+=watch.Masks", "--trainer.precision=64-true", "--trainer.max_epochs=2"]
    run(project, "--run_dir=one", *options)
    parallel = ["--trainer.strategy=ddp", "--trainer.devices=2", "--data.batch_size=8"]
    output = run(project, "--run_dir=two", *options, *parallel)
    assert output.count("Seed 0, level 1 of 2 (density 0.4): dense") == 0
    assert output.count("Report:") == 1
    for level in levels_of(project / "two"):
        marks = finished(level), finished(project / "one" / level.relative_to(project / "two"))
        assert marks[0]["mask_checksum"] == marks[1]["mask_checksum"]
        assert (level / "masks-0").read_text() == (level / "masks-1").read_text()
        if marks[0]["mask_checksum"] is not None:
            assert (level / "masks-0").read_text() == marks[0]["mask_checksum"]
            assert marks[0]["val_acc"] == pytest.approx(marks[1]["val_acc"], abs=1e-6)


@pytest.mark.slow
def test_two_processes_go_on_after_one_has_finished_a_level(project):
    write_lottery(project, densities=[0.4], score="snip")
    parallel = ["--trainer.strategy=ddp", "--trainer.devices=2", "--data.batch_size=8"]
    run(project, "--run_dir=whole", *parallel)
    process = start(project, "--run_dir=killed", *parallel)
    for line in process.stdout:
        if line.startswith("Seed 0, level 1 of 1"):
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert finished(project / "killed" / "seed_0" / "level_00")["kind"] == "dense"
    run(project, "--run_dir=killed", *parallel)
    for level in levels_of(project / "whole"):
        assert_same(weights(level), weights(project / "killed" / level.relative_to(project / "whole")))

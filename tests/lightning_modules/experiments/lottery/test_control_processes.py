"""`bnfree lottery controls` in processes: killed at any moment, and two at once."""

import shutil
import signal
import time

import pytest
from small_lottery import assert_same, finished, start, weights, write_lottery

from bnfree.tickets import load_ticket

KINDS = ("random_layerwise", "random_global", "reinit", "shuffle_signs")
MASKS = """
from pathlib import Path
from lightning.pytorch import Callback
from bnfree.tickets import checksum, current_masks, take_snapshot, weights_checksum


class Masks(Callback):
    def on_train_start(self, trainer, pl_module):
        path = Path(trainer.default_root_dir) / f"begun-{trainer.global_rank}"
        network = pl_module.backbone
        path.write_text(checksum(current_masks(network)) + weights_checksum(take_snapshot(network)))
"""


def run(project, action, *options):
    process = start(project, *options, action=action)
    output, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, errors
    return output


def controls_of(directory):
    return sorted(mark.parent for mark in directory.glob("seed_*/controls/*/level_*/finished.yaml"))


@pytest.mark.slow
def test_killed_at_any_moment_they_end_with_the_same_results(project):
    write_lottery(project, densities=[0.3], rewind_point="30%")
    options = ["--trainer.max_epochs=5"]
    run(project, ("run", "lottery.yaml"), "--run_dir=whole", *options)
    shutil.copytree(project / "whole", project / "killed")
    kinds = "--controls=random_layerwise,shuffle_signs"
    run(project, ("controls", "whole"), kinds)
    # Epochs that are seen before the kill, of the four that each control trains.
    for seen, later in ((2, 0.2), (3, 0.0)):
        process = start(project, kinds, action=("controls", "killed"))
        epochs = 0
        for line in process.stdout:
            epochs += line.startswith("epoch ")
            if epochs == seen:
                break
        assert epochs == seen, process.communicate()[1]
        time.sleep(later)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    run(project, ("controls", "killed"), kinds)
    whole, killed = project / "whole", project / "killed"
    assert (whole / "levels.csv").read_bytes() == (killed / "levels.csv").read_bytes()
    assert (whole / "layers.csv").read_bytes() == (killed / "layers.csv").read_bytes()
    assert len(controls_of(whole)) == 2
    for folder in controls_of(whole):
        same = killed / folder.relative_to(whole)
        assert_same(weights(folder), weights(same))
        assert {**finished(folder), "seconds": None} == {**finished(same), "seconds": None}
        assert load_ticket(folder / "ticket.pt").checksum == load_ticket(same / "ticket.pt").checksum


@pytest.mark.slow
def test_two_processes_have_the_masks_and_weights_of_one(project):
    (project / "watch.py").write_text(MASKS)
    write_lottery(project, densities=[0.3], rewind_point="1it")
    options = ["--trainer.callbacks+=watch.Masks", "--trainer.precision=64-true", "--trainer.max_epochs=1"]
    parallel = ["--trainer.strategy=ddp", "--trainer.devices=2", "--data.batch_size=8"]
    options.append(f"--controls={','.join(KINDS)}")
    run(project, ("run", "lottery.yaml"), "--run_dir=one", *options)
    output = run(project, ("run", "lottery.yaml"), "--run_dir=two", *options, *parallel)
    assert output.count("Tickets and their controls") == 1
    assert output.count("Report:") == 1
    assert len(controls_of(project / "two")) == len(KINDS)
    for folder in controls_of(project / "two"):
        alone = project / "one" / folder.relative_to(project / "two")
        begun = (folder / "begun-0").read_text()
        assert begun == (folder / "begun-1").read_text()
        assert begun.startswith(finished(folder)["mask_checksum"])
        assert finished(folder)["mask_checksum"] == finished(alone)["mask_checksum"]
        assert finished(folder)["val_acc"] == pytest.approx(finished(alone)["val_acc"], abs=1e-6)

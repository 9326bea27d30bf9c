"""Signals end a run where it can be gone on from, and with the exit code that a shell gives to them."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bnfree.errors import Interrupted, Terminated
from bnfree.lightning_modules import EvaluateSettings, FitSettings, evaluate, fit
from bnfree.lightning_modules.cli import main
from bnfree.lightning_modules.training import stopping

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _interruptible():
    """Also where the tests run in the background of a shell, which ignores SIGINT."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


SIGNALLER = """
import os
import signal
from lightning.pytorch import Callback


class Signaller(Callback):
    def __init__(self, step: int = 5, number: int = 15, times: int = 1, where: str = "train", rank: int = 0):
        self.step, self.number, self.times, self.where, self.rank = step, number, times, where, rank

    def send(self, trainer):
        if trainer.global_rank == self.rank:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.where == "train" and trainer.fit_loop.epoch_loop.total_batch_idx + 1 == self.step:
            self.send(trainer)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        at_step = trainer.global_step == self.step and batch_idx == 1
        if self.where == "validation" and at_step and not trainer.sanity_checking:
            self.send(trainer)

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if self.where == "test":
            self.send(trainer)

    on_predict_batch_start = on_test_batch_start
"""
FIT = ("fit", "--config", "toy.yaml", "--trainer.max_epochs=3")


@pytest.fixture
def project(project):
    (project / "signaller.py").write_text(SIGNALLER)
    yield project
    sys.modules.pop("signaller", None)


def signaller(**options):
    words = [f"--trainer.callbacks.{name}={value}" for name, value in options.items()]
    return ["--trainer.callbacks=signaller.Signaller", *words]


def state(path):
    content = torch.load(path, weights_only=True)
    moments = [value for state in content["optimizer_states"] for value in state["state"].values()]
    return [content["global_step"], *content["state_dict"].values(), *(v for m in moments for v in m.values())]


def assert_same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


DIGITS = (
    "fit", "--config=quickstart", "--trainer.max_epochs=3", "--trainer.limit_val_batches=2",
    "--trainer.accelerator=cpu", "--model.calibration_images=8", "--data.image_size=8", "--model.backbone.width=4",
    "--data.limit_train=64", "--data.batch_size=16", "--test_after_fit=false",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "code", "options", "others", "steps"),
    [
        ("SIGTERM", 143, {"step": 5}, [], 5),
        pytest.param("SIGINT", 130, {"step": 6}, [], 6, marks=pytest.mark.slow),
        # The last batch of an epoch: the checkpoint of the epoch's end is gone on from.
        pytest.param("SIGTERM", 143, {"step": 8}, [], 8, marks=pytest.mark.slow),
        pytest.param("SIGTERM", 143, {"step": 8, "where": "validation"}, [], 8, marks=pytest.mark.slow),
        pytest.param(
            "SIGINT",
            130,
            {"step": 6, "where": "validation"},
            ["--trainer.val_check_interval=2"],
            7,
            marks=pytest.mark.slow,
        ),
        # The first of two batches whose gradients are accumulated.
        pytest.param("SIGTERM", 143, {"step": 5}, ["--trainer.accumulate_grad_batches=2"], 3, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_weights(bnfree, project, name, code, options, others, steps):
    assert bnfree(*DIGITS, "--run_dir=whole", *others)[0] == 0
    number = int(getattr(signal, name))
    callback = [f"--trainer.callbacks+={word.partition('=')[2]}" for word in signaller()[:1]]
    callback += signaller(number=number, **options)[1:]
    ended, _, said = bnfree(*DIGITS, "--run_dir=a run", *others, *callback)
    assert ended == code, said
    go_on = "bnfree fit '--run_dir=a run' --ckpt_path=last"
    assert said.splitlines()[-1] == f"bnfree: stopped by {name} after {steps} steps; to go on: {go_on}"
    assert "Traceback" not in said
    # The signal is not sent again: its step has passed.
    code, out, said = bnfree(*shlex.split(go_on)[1:])
    assert code == 0, said
    assert "epoch 3/3" in out
    assert_same(state("a run/checkpoints/last.ckpt"), state("whole/checkpoints/last.ckpt"))


def test_a_second_ctrl_c_stops_at_once(bnfree, project, monkeypatch):
    monkeypatch.setattr(stopping, "SAME", -1.0)
    code, _, said = bnfree(*FIT, "--run_dir=run", *signaller(step=1, number=2, times=2))
    assert code == 130
    last = said.splitlines()[-1]
    assert last == "bnfree: stopped by SIGINT after 0 steps, without a checkpoint to go on from"
    assert list((project / "run").glob("checkpoints/*")) == []


def test_after_the_last_epoch_nothing_else_begins(bnfree, project):
    code, out, _ = bnfree(*FIT, "--run_dir=run", "--test_after_fit=true", *signaller(step=12))
    assert (code, "test/acc" in out) == (143, False)
    code, out, _ = bnfree("fit", "--run_dir=run", "--ckpt_path=last")
    assert (code, "Nothing left to train" in out, "test/acc" in out) == (0, True, True)


@pytest.mark.parametrize("part", ["test", "predict", "validate"])
def test_an_evaluation_ends_without_half_a_file(bnfree, project, trained, part):
    where = {"where": "validation", "step": 0} if part == "validate" else {"where": "test"}
    best = trained / "checkpoints" / "best.ckpt"
    code, _, said = bnfree(part, f"--ckpt_path={best}", "--run_dir=out", *signaller(**where))
    assert code == 143
    assert said.splitlines()[-1] == "bnfree: stopped by SIGTERM"
    assert not (project / "out").exists() or list((project / "out").iterdir()) == []


def test_in_python_it_is_the_exception_of_the_signal(project):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    callback = {"class_path": "signaller.Signaller", "init_args": {"step": 2, "number": 2}}
    options = {"trainer.callbacks": [callback], "trainer.max_epochs": 2}
    with pytest.raises(KeyboardInterrupt, match="stopped by SIGINT after 2 steps") as caught:
        fit(FitSettings("toy.yaml", options, run_dir="run"))
    assert isinstance(caught.value, Interrupted)
    assert caught.value.resume == ("bnfree", "fit", "--run_dir=run", "--ckpt_path=last")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    callback["init_args"] = {"where": "test", "number": 15}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with pytest.raises(SystemExit) as terminated:
        evaluate(EvaluateSettings(options={"trainer.callbacks": [callback]}, ckpt_path="run/checkpoints/last.ckpt"))
    assert isinstance(terminated.value, Terminated)
    assert terminated.value.code == 143


def test_a_handler_of_somebody_else_stays(project):
    called = []
    earlier = signal.signal(signal.SIGINT, lambda number, frame: called.append(number))
    try:
        callback = {"class_path": "signaller.Signaller", "init_args": {"step": 2, "number": 2}}
        result = fit(FitSettings("toy.yaml", {"trainer.callbacks": [callback]}, run_dir="run"))
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert (called, result.finished) == ([2], True)


@pytest.mark.slow
def test_a_recipe_goes_on_by_the_same_command(bnfree, project):
    (project / "two.yaml").write_text(
        "stages:\n  one: {config: toy.yaml}\n  two: {config: toy.yaml, init_from: null}\n"
    )
    words = ["recipe", "two.yaml", "--run_dir=runs/two", "--two.model.smoothing=0.1"]
    code, _, said = bnfree(*words, *signaller(step=6))
    assert code == 143
    command = "bnfree recipe two.yaml --run_dir=runs/two --two.model.smoothing=0.1"
    assert said.splitlines()[-1].startswith(f"bnfree: stopped by SIGTERM after 6 steps; to go on: {command} ")
    # Stage two meets the signal as well.
    assert bnfree(*words, *signaller(step=6))[0] == 143
    assert bnfree(*words, *signaller(step=6))[0] == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Terminated("stopped by SIGTERM")])
def test_other_commands_say_so(bnfree, monkeypatch, error):
    from bnfree.lightning_modules.command import configs

    def stop(arguments):
        raise error

    monkeypatch.setattr(configs, "run", stop)
    code, _, said = bnfree("configs")
    interrupted = isinstance(error, KeyboardInterrupt)
    assert (code, said) == (
        (130, "bnfree: stopped by SIGINT\n") if interrupted else (143, "bnfree: stopped by SIGTERM\n")
    )


def test_sigterm_removes_what_is_half_written(project):
    script = (
        "import os, signal, sys\n"
        "from bnfree.files import whole_file\n"
        "from bnfree.lightning_modules import cli\n"
        "from bnfree.lightning_modules.command import configs\n"
        "def run(arguments):\n"
        "    with whole_file('result') as unfinished:\n"
        "        unfinished.write_text('half')\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        signal.pause()\n"
        "configs.run = run\n"
        "sys.exit(cli.main(['configs']))\n"
    )
    (project / "half.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "half.py"], cwd=project, env=environment, capture_output=True, text=True, timeout=1200
    )
    assert (run.returncode, run.stderr) == (143, "bnfree: stopped by SIGTERM\n")
    assert not [*project.glob("*result*"), *project.glob(".*result*")]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_stop_after_the_same_step(project, rank):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = ["--trainer.devices=2", "--trainer.strategy=ddp"]

    def start(*words):
        return subprocess.run(
            [sys.executable, "-m", "bnfree", *words], cwd=project, env=environment, capture_output=True, text=True,
            timeout=1200,
        )  # fmt: skip

    # Only one of the two is told.
    word, *options = signaller(step=2, number=15, rank=rank)
    run = start(*DIGITS, "--run_dir=run", *processes, word.replace("=", "+=", 1), *options)
    assert run.returncode == 143, run.stderr
    # The two agree before the next batch.
    assert run.stderr.count("bnfree: stopped by SIGTERM after 3 steps; to go on: bnfree fit --run_dir=run") == 1
    again = start("fit", "--run_dir=run", "--ckpt_path=last")
    assert again.returncode == 0, again.stderr
    assert start(*DIGITS, "--run_dir=whole", *processes).returncode == 0
    assert_same(state(project / "run/checkpoints/last.ckpt"), state(project / "whole/checkpoints/last.ckpt"))


def test_main_leaves_the_handler_as_it_was(project):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert main(["--version"]) == 0
    assert main(["configs"]) == 0
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

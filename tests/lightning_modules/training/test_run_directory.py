import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bnfree.errors import InputError
from bnfree.lightning_modules.training import run_directory


def test_two_runs_in_one_second_get_two_directories(project):
    first = run_directory.choose_run_directory(None, "recipe", {})
    first.mkdir(parents=True)
    second = run_directory.choose_run_directory(None, "recipe", {})
    assert first != second
    assert first.parent == second.parent
    assert first.parent.as_posix() == "runs/recipe"


def test_a_started_process_takes_the_directory_of_the_first(project, monkeypatch):
    run_directory.create(project / "chosen")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run_directory.choose_run_directory(None, "recipe") == project / "chosen"
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert run_directory.choose_run_directory(None, "recipe").parent.name == "recipe"


@pytest.mark.parametrize("place", ["file/run", "/proc/nowhere/run"])
def test_a_directory_that_cannot_be_written_to(project, complaint, place):
    (project / "file").touch()
    said = complaint("fit", "--config", "toy.yaml", f"--run_dir={place}")
    assert said.startswith(f"run_dir='{place}' cannot be written to (")


def test_a_directory_with_other_files_may_be_used(project):
    (project / "notes.txt").touch()
    run_directory.check_free(project, None)
    (project / "metrics.csv").touch()
    with pytest.raises(InputError, match=r"holds an earlier run \(metrics.csv\)"):
        run_directory.check_free(project, None)
    run_directory.check_free(project, str(project / "checkpoints" / "last.ckpt"))


def test_the_latest_config_is_that_of_the_last_fit(project):
    for name in ("config.yaml", "config-resumed-1.yaml", "config-resumed-2.yaml"):
        path = run_directory.config_to_write(project)
        assert path.name == name
        path.touch()
        assert run_directory.latest_config(project) == path


def test_only_what_a_failed_start_has_created_is_removed(project):
    (project / "mine").mkdir()
    run = project / "mine" / "recipe" / "now"
    created = run_directory.create(run)
    (run / "events.out.tfevents.1").touch()
    run_directory.remove_if_unused(created)
    assert list((project / "mine").iterdir()) == []
    created = run_directory.create(run)
    (run / "notes.txt").touch()
    run_directory.remove_if_unused(created)
    assert (run / "notes.txt").exists()
    assert run_directory.create(run) == []


def test_a_new_directory_is_not_shared(project, monkeypatch):
    # The two look at the same moment, when neither has created anything.
    monkeypatch.setattr(run_directory, "datetime", Noon)
    first, second = project / "runs/recipe/noon", project / "runs/recipe/noon-2"
    places = iter([Path("runs/recipe/noon"), Path("runs/recipe/noon"), Path("runs/recipe/noon-2")])
    monkeypatch.setattr(run_directory, "choose_run_directory", lambda *_, **__: next(places))
    assert run_directory.claim(None, "recipe") == (
        Path("runs/recipe/noon"), [first, project / "runs/recipe", project / "runs"]
    )  # fmt: skip
    assert run_directory.claim(None, "recipe") == (Path("runs/recipe/noon-2"), [second])


class Noon:
    @classmethod
    def now(cls):
        return cls()

    def strftime(self, form):
        return "noon"


ROOT = Path(__file__).parents[3]
HOLD = """
import sys, time
from pathlib import Path
from bnfree.lightning_modules.training.run_directory import only_one
with only_one(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(3600)
"""


@pytest.fixture
def holder(project):
    """Another process that holds a directory."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(project / "run")], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_directory_in_use_is_refused_until_its_process_has_ended(project, holder, complaint):
    said = complaint("fit", "--config", "toy.yaml", "--run_dir=run")
    assert said.startswith(f"run_dir='run' is in use by another command that has not ended (process {holder.pid} on ")
    assert run_directory.is_in_use(project / "run")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert not run_directory.is_in_use(project / "run")
    with run_directory.only_one(project / "run"):
        assert run_directory.is_in_use(project / "run")
        again = run_directory.only_one(project / "run")
        with pytest.raises(InputError, match=f"in use by another command .*process {os.getpid()} on"), again:
            pass
    assert not run_directory.is_in_use(project / "run")
    assert list((project / "run").iterdir()) == []


@pytest.mark.slow
def test_a_lock_of_a_directory_that_is_removed_and_made_anew_holds(project):
    run = project / "run"
    for _ in range(20):
        with run_directory.only_one(run), pytest.raises(InputError), run_directory.only_one(run):
            pass
        run.rmdir()


def test_a_workers_process_does_not_keep_the_lock(project):
    with run_directory.only_one(project / "run"):
        worker = os.fork()
        if worker == 0:
            time.sleep(3600)
            os._exit(0)
    try:
        with run_directory.only_one(project / "run"):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


def test_what_a_mistake_has_created_is_removed(project, complaint):
    complaint("fit", "--config", "toy.yaml", "--model.smoothing=2", "--run_dir=mine/run")
    complaint("fit", "--config", "toy.yaml", "--model.smoothing=2")
    assert not (project / "mine").exists()
    assert not (project / "runs").exists()


def start(project, *arguments):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{project}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bnfree", "fit", "--config", "toy.yaml", "--trainer.max_epochs=5", *arguments]
    return subprocess.Popen(
        command, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_two_fits_at_once_have_a_directory_each(project):
    # A clock that stands still: both are started in the same second.
    (project / "sitecustomize.py").write_text(CLOCK)
    processes = [start(project) for _ in range(3)]
    outputs = [process.communicate(timeout=1200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    directories = sorted((project / "runs" / "toy").iterdir())
    assert len(directories) == 3
    assert all((directory / "checkpoints" / "last.ckpt").is_file() for directory in directories)
    assert sorted(out.split("Run directory: ")[1].split()[0] for out, _ in outputs) == [
        str(directory.relative_to(project)) for directory in directories
    ]


CLOCK = """
import datetime
class Fixed(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 1, 1, 12, 0, 0, tzinfo=tz)
datetime.datetime = Fixed
"""


@pytest.mark.slow
def test_of_two_fits_at_once_into_one_directory_the_second_is_refused(project):
    processes = [start(project, "--run_dir=same") for _ in range(2)]
    outputs = [process.communicate(timeout=1200) for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0, 2], outputs
    error = outputs[codes.index(2)][1].splitlines()[-1]
    assert error.startswith("bnfree: error: run_dir='same' ")
    more = start(project, "--run_dir=same", "--ckpt_path=last", "--trainer.max_epochs=6")
    assert more.communicate(timeout=1200)[0].count("epoch 6/6") == 1
    assert more.returncode == 0

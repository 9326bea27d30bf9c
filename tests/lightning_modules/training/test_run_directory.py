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

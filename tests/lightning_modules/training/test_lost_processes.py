"""What the first of several processes says when another one has ended: that one's own error, once."""

import json
import signal
import subprocess
import sys
import time

import pytest

from bnfree.errors import InputError, MachineError, NonFiniteError
from bnfree.lightning_modules.training import processes

LOST = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234")


@pytest.fixture
def started(tmp_path):
    """Makes the processes that a run has started: they end by a signal (negative) or with a code."""
    running = []

    def start(*codes, records=()):
        found = processes.Processes()
        found.errors = tmp_path
        for rank, kind, message, at in records:
            content = {"rank": rank, "kind": kind, "message": message, "time": at}
            (tmp_path / f"{rank}.json").write_text(json.dumps(content))
        for code in codes:
            words = ["sleep", "60"] if code is None or code < 0 else [sys.executable, "-c", f"raise SystemExit({code})"]
            process = subprocess.Popen(words)
            if code is not None and code < 0:
                process.send_signal(-code)
            running.append(process)
            found.started.append(process)
        return found

    yield start
    for process in running:
        process.kill()
        process.wait()


def test_a_killed_process_is_named_and_the_others_ended(started):
    found = started(-signal.SIGKILL, None)
    told = found.explain(LOST)
    assert isinstance(told, MachineError)
    assert str(told) == (
        "process 1 (of 0 to 2) has been killed by SIGKILL, as by a machine without memory; resume from the last "
        "checkpoint."
    )
    assert all(process.poll() is not None for process in found.started)


def test_a_process_that_ended_without_a_word(started):
    found = started(7)
    assert "process 1 (of 0 to 1) has ended with code 7" in str(found.explain(LOST))


@pytest.mark.parametrize(
    ("kind", "error"), [("InputError", InputError), ("NonFiniteError", NonFiniteError), ("MachineError", MachineError)]
)
def test_the_own_error_of_the_first_that_failed(started, kind, error):
    records = [(1, "InputError", "later.", 2.0), (2, kind, "the own sentence.", 1.0)]
    told = started(1, 1, records=records).explain(LOST)
    assert type(told) is error
    assert str(told) == "the own sentence."


def test_an_exception_of_the_users_code_is_named_with_its_process(started):
    told = started(1, records=[(1, "ZeroDivisionError", "division by zero", 1.0)]).explain(LOST)
    assert str(told).startswith("process 1 (of 0 to 1) has failed with ZeroDivisionError: division by zero")


def test_an_error_of_this_process_is_its_own(started):
    found = started(None)
    assert found.explain(ValueError("mine")) is None
    assert found.started[0].poll() is not None


def test_it_does_not_wait_for_ever_for_a_process_that_lives(started, monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE", 0.3)
    start = time.monotonic()
    assert started(None).explain(LOST) is None
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("speaks", [True, False])
def test_only_one_thread_speaks(started, monkeypatch, capfd, speaks):
    left = []
    monkeypatch.setattr(processes, "PATIENCE", 0.0)
    monkeypatch.setattr(processes.os, "_exit", left.append)
    found = started(1, records=[(1, "InputError", "the own sentence.", 1.0)])
    found.started[0].wait()
    if not speaks:
        found.explain(LOST)
    found._run()
    assert left == ([2] if speaks else [])
    assert capfd.readouterr().err.count("bnfree: error: the own sentence.") == speaks

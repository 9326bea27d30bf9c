"""The other processes of a run on this machine: what one of them has failed at is what the command says last."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from subprocess import Popen

from lightning.pytorch import Trainer

from bnfree.errors import InputError, MachineError, NonFiniteError
from bnfree.files import whole_file
from bnfree.lightning_modules.compat import LOST_PROCESS, watch_processes
from bnfree.lightning_modules.training.run_directory import is_child

ERRORS = "BNFREE_ERRORS"
ELASTIC = "TORCHELASTIC_ERROR_FILE"
# Seconds that the first process has to find out by itself that another one has failed, and one to end that has failed.
PATIENCE = 15.0
KNOWN: dict[str, type[InputError | MachineError]] = {
    "NonFiniteError": NonFiniteError, "InputError": InputError, "MachineError": MachineError
}  # fmt: skip


class Processes:
    """The processes that this one has started; all runs of a process share them."""

    def __init__(self) -> None:
        self.started: list[Popen[bytes]] = []
        self.errors: Path | None = None
        self._is_ending = threading.Event()
        # Only one of the main thread and the one that watches speaks.
        self._speaking = threading.Lock()

    def attach(self, trainer: Trainer) -> None:
        """Watches what a Trainer starts."""
        watch_processes(trainer, self._before_start, self._watch)

    def _before_start(self) -> None:
        self.errors = Path(tempfile.mkdtemp(prefix="bnfree-"))
        atexit.register(shutil.rmtree, self.errors, ignore_errors=True)
        os.environ[ERRORS] = str(self.errors)

    def _watch(self, started: list[Popen[bytes]]) -> None:
        self.started = list(started)
        threading.Thread(target=self._run, name="bnfree-processes", daemon=True).start()

    def _run(self) -> None:
        while not self._failed():
            if all(process.returncode == 0 for process in self.started):
                return
            time.sleep(0.5)
        # The first process mostly loses the connection, too. In a collective of NCCL it waits for ever.
        self._is_ending.wait(PATIENCE)
        with self._speaking:
            if self._is_ending.is_set():
                return
            error = self._first_error()
            print(f"bnfree: error: {error}", file=sys.stderr, flush=True)
            self.end(0)
            os._exit(3 if isinstance(error, NonFiniteError) else 2 if isinstance(error, InputError) else 1)

    def _failed(self) -> list[tuple[int, Popen[bytes]]]:
        return [(rank, process) for rank, process in enumerate(self.started, 1) if process.poll()]

    def _first_error(self) -> InputError | MachineError | None:
        records = [json.loads(path.read_text()) for path in self.errors.glob("*.json")] if self.errors else []
        number = len(self.started) + 1
        if records:
            first = min(records, key=lambda record: record["time"])
            if first["kind"] in KNOWN:
                return KNOWN[first["kind"]](first["message"])
            return MachineError(
                f"process {first['rank']} (of 0 to {number - 1}) has failed with {first['kind']}: {first['message']} "
                "(its traceback stands above)"
            )
        failed = self._failed()
        if not failed:
            return None
        rank, process = failed[0]
        how = f"ended with code {process.returncode}"
        if process.returncode < 0:
            name = signal.Signals(-process.returncode).name
            how = f"been killed by {name}" + (", as by a machine without memory" if name == "SIGKILL" else "")
        return MachineError(f"process {rank} (of 0 to {number - 1}) has {how}; resume from the last checkpoint.")

    def explain(self, error: BaseException) -> InputError | MachineError | None:
        """What another process has failed at, if that is why this one has; all others are ended.

        Args:
            error: of this process.
        """
        if not self.started:
            return None
        with self._speaking:
            self._is_ending.set()
        own = None
        if is_lost_process(error):
            patience = time.monotonic() + PATIENCE
            while not self._failed() and time.monotonic() < patience:
                time.sleep(0.1)
            own = self._first_error()
        self.end(5.0 if isinstance(error, SystemExit) else 0.0)
        return own

    def end(self, patience: float) -> None:
        """Kills the processes that have not ended by themselves within `patience` seconds."""
        end = time.monotonic() + patience
        while any(process.poll() is None for process in self.started) and time.monotonic() < end:
            time.sleep(0.05)
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.wait()


def is_lost_process(error: BaseException) -> bool:
    """Whether an error says no more than that another process is gone."""
    return isinstance(error, RuntimeError) and LOST_PROCESS.search(str(error)) is not None


def record_error(error: BaseException) -> None:
    """Tells whoever has started this process what it has failed at: the first process, or torchrun.

    Args:
        error: of this process. One that has lost another process has nothing to tell.
    """
    if not isinstance(error, Exception) or is_lost_process(error):
        return
    if os.environ.get(ELASTIC):
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
    elif is_child() and os.environ.get(ERRORS):
        kind = next((name for name, kind in KNOWN.items() if isinstance(error, kind)), None)
        rank = int(os.environ.get("LOCAL_RANK") or 0)
        content = {
            "rank": rank, "kind": kind or type(error).__name__, "message": str(error)[:2000], "time": time.time()
        }  # fmt: skip
        with whole_file(Path(os.environ[ERRORS]) / f"{rank}.json") as unfinished:
            unfinished.write_text(json.dumps(content))
        if kind is not None:
            # The first process says it.
            error.is_told = True  # type: ignore[attr-defined]


PROCESSES = Processes()

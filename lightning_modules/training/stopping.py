"""What Ctrl-C and SIGTERM do to a run: it ends where it can be gone on from, and says how."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from bnfree.errors import Stopped, raise_terminated, stopped
from bnfree.lightning_modules.compat import accumulates, agree_before_each_batch, last_saved_step
from bnfree.lightning_modules.training.run_directory import CHECKPOINTS, is_child

DEFAULTS: dict[signal.Signals, tuple[Any, ...]] = {
    signal.SIGINT: (signal.default_int_handler,),
    signal.SIGTERM: (signal.SIG_DFL, raise_terminated),
}
# Seconds within which a second Ctrl-C is the first one, which a launcher has passed on.
SAME = 1.0


class StopNow(SystemExit):
    """Raised within the Trainer, which ends other exceptions on Ctrl-C with an exit code of its own.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


class StopOnSignal(Callback):
    """Changes training only when it is to stop: writes `last.ckpt` after a step, in all processes the same.

    The first SIGINT or SIGTERM lets the batch end, and a validation that has begun; a step whose gradients are being
    accumulated is waited for. At an epoch's end the checkpoint that is written there serves. A second SIGINT stops at
    once. So does the first one where nothing is trained: while data are prepared, in an evaluation. A handler that
    somebody else has set is left alone.

    Args:
        last: the callback that writes `last.ckpt`; None: nothing is written.
    """

    def __init__(self, last: ModelCheckpoint | None = None) -> None:
        self.last = last
        self._pending: int | None = None
        self._agreed: int | None = None
        self._since = 0.0
        self._process = os.getpid()
        self._training = False
        self._installed: set[signal.Signals] = set()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Sets the handlers, and the earlier ones in the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        earlier = {number: signal.getsignal(number) for number in DEFAULTS}
        self._installed = {number for number, handler in earlier.items() if handler in DEFAULTS[number]}
        self._install()
        try:
            yield
        finally:
            for number in self._installed:
                signal.signal(number, earlier[number])

    def _install(self) -> None:
        for number in self._installed:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A data loader's worker, forked from here: the process that waits for it ends it.
            return
        if not self._training:
            raise StopNow(number)
        if self._pending is None:
            self._pending, self._since = number, time.monotonic()
            if not is_child():
                again = "; again: at once" if number == signal.SIGINT else ""
                # No print here: the signal may have come in the middle of one.
                os.write(2, f"\n{signal.Signals(number).name}: stopping after this batch{again}\n".encode())
        elif number == signal.SIGINT and time.monotonic() - self._since > SAME:
            raise StopNow(number)

    # Lightning sets a handler for SIGTERM of its own before it runs a stage, and calls ours from there.

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals back from Lightning."""
        self._install()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals back from Lightning."""
        self._install()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals back from Lightning."""
        self._install()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals back from Lightning."""
        self._install()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on there is something to be kept."""
        self._install()
        self._training = True
        if trainer.world_size > 1:
            agree_before_each_batch(trainer, lambda: self._agree(trainer))

    def _agree(self, trainer: Trainer) -> None:
        signal_number = torch.tensor(self._pending or 0, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(signal_number, torch.distributed.ReduceOp.MAX)
        self._agreed = int(signal_number) or None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops between two epochs, if the checkpoint from there has been written."""
        number = self._agreed if trainer.world_size > 1 else self._pending
        if number is not None and self._is_written(trainer):
            raise StopNow(number)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes the checkpoint and stops."""
        number = self._agreed if trainer.world_size > 1 else self._pending
        if number is None or accumulates(trainer):
            return
        path = self.path()
        if path is not None:
            trainer.save_checkpoint(path)
        raise StopNow(number)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What comes after training does not begin."""
        self._training = False
        if trainer.world_size > 1:
            self._agree(trainer)
            self._pending = self._agreed
        if self._pending is not None:
            raise StopNow(self._pending)

    def _is_written(self, trainer: Trainer) -> bool:
        path = self.path()
        if self.last is None or path is None:
            return True
        return path.is_file() and last_saved_step(self.last) == trainer.global_step

    def path(self) -> Path | None:
        """Where the checkpoint goes that a stopped run goes on from."""
        if self.last is None or self.last.dirpath is None or self.last.filename is None:
            return None
        return Path(self.last.dirpath) / f"{self.last.filename}.ckpt"


def stop(number: int, trainer: Trainer, signals: StopOnSignal, directory: Path | None, options: list[str]) -> Stopped:
    """What a run that a signal has stopped ends with.

    Args:
        number: of the signal.
        trainer: which has run.
        signals: its callback.
        directory: the run directory.
        options: of the command that goes on, in addition to those that say where.
    """
    name = signal.Signals(number).name
    if trainer.state.fn != "fit":
        return stopped(number, f"stopped by {name}")
    steps = f"stopped by {name} after {trainer.global_step} steps"
    path = signals.path()
    if path is None or not path.is_file():
        return stopped(number, f"{steps}, without a checkpoint to go on from")
    words = [f"--ckpt_path={path}"]
    if directory is not None:
        ours = directory.absolute() / CHECKPOINTS / "last.ckpt" == path
        words = [f"--run_dir={directory}", "--ckpt_path=last" if ours else words[0]]
    return stopped(number, steps, ("bnfree", "fit", *words, *options))

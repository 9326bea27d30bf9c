"""Memory of a CPU training that is kept between steps; the setting is `bnfree.allocator`."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from bnfree.allocator import keep_freed_memory, page_faults


class KeepFreedMemory(Callback):
    """Changes how training is computed, not what: freed memory stays with the process, for training on a CPU.

    glibc, the C library of most Linux systems, gives large freed blocks back to the kernel, so that every step of a
    large batch faults in its memory again, page by page (`bnfree.allocator`). With this callback it keeps them. The
    process grows somewhat, and the setting lasts until its end. Where the C library is another one, this is said and
    nothing is changed. On a GPU it gains next to nothing.

    Logs `memory/page_faults`, the page faults per optimizer step since it was last logged, in the first process, every
    `trainer.log_every_n_steps` steps; near 0 once the memory is there.

    Args:
        log_page_faults: log `memory/page_faults`.
    """

    def __init__(self, log_page_faults: bool = True) -> None:
        self.log_page_faults = log_page_faults
        self._steps, self._faults = 0, 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Changes the setting, before anything large is allocated."""
        if stage == "fit" and not keep_freed_memory():
            rank_zero_info("KeepFreedMemory changes nothing here: the C library is not glibc.")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts counting."""
        self._steps, self._faults = trainer.global_step, page_faults() or 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs when Lightning does."""
        if not self.log_page_faults or not trainer._logger_connector.should_update_logs:
            return
        steps = trainer.global_step - self._steps
        faults = page_faults() if steps else None
        if faults is None:
            return
        pl_module.log("memory/page_faults", (faults - self._faults) / steps, on_step=True, on_epoch=False)
        self._steps, self._faults = trainer.global_step, faults

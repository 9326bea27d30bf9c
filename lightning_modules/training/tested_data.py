"""Is there something to test on after a fit? To know before its first step."""

from __future__ import annotations

import copy
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from bnfree.datamodules.base import ImageDataModule
from bnfree.errors import InputError


class TestedData(Callback):
    """Changes nothing: sets the test images up before training, as the test after it will need them.

    What is wrong with them would else be found after days. Of other data modules than this project's a copy is set up,
    so that what they keep for training is left alone.
    """

    # Not one of pytest's.
    __test__ = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Looks at the test images.

        Raises:
            InputError: there are none, or no `test_step`; also what the data module says of them.
        """
        data: Any = getattr(trainer, "datamodule", None)
        if stage != "fit":
            return
        if type(pl_module).test_step is LightningModule.test_step:
            raise InputError(
                f"test_after_fit=True needs a test_step, which {type(pl_module).__name__} has not; leave it out."
            )
        if isinstance(data, ImageDataModule):
            data.setup("test")
        elif isinstance(data, LightningDataModule):
            if type(data).test_dataloader is LightningDataModule.test_dataloader:
                raise InputError(
                    f"test_after_fit=True needs a test_dataloader, which data={type(data).__name__} has not; leave it "
                    "out."
                )
            tested = copy.copy(data)
            tested.setup("test")
            tested.test_dataloader()

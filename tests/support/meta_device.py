"""Training on PyTorch's meta device, which has shapes and no values: a GPU as seen by the process that feeds it.

What asks for a value there (`.item()`, `bool(tensor)`, `.cpu()`) raises: on a GPU it would wait until all that was
launched has been computed. So does most of what mixes its tensors with those of the CPU.
"""

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities import move_data_to_device
from torch.utils.data import DataLoader, TensorDataset

META = torch.device("meta")


class StepsTaken(Exception):  # noqa: N818
    """Three steps went by."""


class MetaStrategy(SingleDeviceStrategy):
    """The network and its images lie on the meta device; Lightning may count batches on the CPU before training."""

    training = False

    @property
    def root_device(self):
        return META if self.training else torch.device("cpu")

    @root_device.setter
    def root_device(self, device):
        pass

    def model_to_device(self):
        self.model.to(META)

    def batch_to_device(self, batch, device=None, dataloader_idx=0):
        return move_data_to_device(batch, META)


class ThreeSteps(Callback):
    def on_train_start(self, trainer, pl_module):
        trainer.strategy.training = True

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 2:
            raise StepsTaken


def three_steps(module, *callbacks, **options):
    """Takes three training steps without a value of any tensor; the first error that is met is raised."""
    images = torch.zeros(8, 1, 16, 16)
    trainer = Trainer(
        accelerator=CPUAccelerator(), strategy=MetaStrategy(device=torch.device("cpu")), devices=1, max_epochs=1,
        callbacks=[ThreeSteps(), *callbacks], num_sanity_val_steps=0, limit_val_batches=0, enable_model_summary=False,
        **{"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, **options},
    )  # fmt: skip
    # It would move the results to the CPU.
    trainer._teardown = lambda: None
    try:
        trainer.fit(module, DataLoader(TensorDataset(images, torch.arange(8) % 3), 2))
    except StepsTaken:
        return
    raise AssertionError("training ended before three steps were taken")

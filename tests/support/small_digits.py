"""A finished run on digits, one step long."""

import os
import sys
from pathlib import Path
from unittest import mock

from bnfree.lightning_modules.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"
OPTIONS = (
    "--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1",
    "--trainer.log_every_n_steps=1", "--model.calibration_images=8", "--data.image_size=8", "--model.backbone.width=4",
    "--trainer.limit_test_batches=1",
)  # fmt: skip


def train_digits(directory, *options):
    """Writes the run directory; `options` of `bnfree fit` beat the small ones."""
    with mock.patch.dict(os.environ), mock.patch.object(sys, "path", list(sys.path)):
        config = f"--config={CONFIGS / 'quickstart.yaml'}"
        assert main(["fit", config, f"--run_dir={directory}", *OPTIONS, *options]) == 0
    return directory

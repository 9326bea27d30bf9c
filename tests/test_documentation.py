"""The code in CONTRIBUTING.md is run as it is printed."""

import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from bnfree.lightning_modules import ImageClassifier

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def examples():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    names = {"some_tensor": torch.tensor([-0.5, 0.0, 2.0], requires_grad=True)}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    return names


def test_the_estimator_has_its_own_gradient(examples):
    from bnfree.binarize import sign

    x = examples["some_tensor"]
    (gradient,) = torch.autograd.grad(sign(x, "triangle").sum(), x)
    assert gradient.tolist() == [0.5, 1.0, 0.0]


def test_backbone_data_module_and_callback_train_together(examples, tmp_path):
    torch.manual_seed(0)
    network = examples["TinyNet"](num_classes=2, width=8, in_channels=1)
    module = ImageClassifier(network, optimizer=lambda p: torch.optim.Adam(p, lr=0.01), calibration_images=32)
    balance = examples["SignBalance"]()
    assert isinstance(balance, Callback)
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[balance],
    )  # fmt: skip
    trainer.fit(module, datamodule=examples["Checkerboards"](batch_size=20))
    assert trainer.callback_metrics["val/acc"] > 0.9
    assert 0.2 < trainer.callback_metrics["signs/positive"] < 0.8

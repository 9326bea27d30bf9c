"""Two processes with half the batch each must train the network that one process trains."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = """
import sys
import torch
from lightning.pytorch import Trainer, seed_everything

from bnfree.backbones import ReActNet18
from bnfree.callbacks import AdaptiveGradientClipping
from bnfree.datamodules import DigitsDataModule
from bnfree.lightning_modules import ImageClassifier

processes, precision, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
seed_everything(3)
network = ReActNet18(10, in_channels=1, width=8)
module = ImageClassifier(network, optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3))
trainer = Trainer(
    accelerator="cpu", devices=processes, precision=precision, strategy="ddp" if processes > 1 else "auto",
    max_epochs=1, limit_train_batches=5, logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False, callbacks=[AdaptiveGradientClipping(clip_factor=0.02)],
)
trainer.fit(module, datamodule=DigitsDataModule(batch_size=32 // processes))
metrics = {key: value.item() for key, value in trainer.callback_metrics.items()}
if trainer.is_global_zero:
    torch.save({"weights": network.state_dict(), "metrics": metrics, "steps": trainer.global_step}, path)
"""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_two_processes_give_the_weights_and_metrics_of_one(tmp_path, precision):
    (tmp_path / "train.py").write_text(SCRIPT)
    results = []
    for processes in (1, 2):
        out = tmp_path / f"{processes}.pt"
        command = [sys.executable, "train.py", str(processes), precision, str(out)]
        run = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])},
            capture_output=True, text=True, timeout=1200,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr[-2000:]
        results.append(torch.load(out, weights_only=True))
    one, two = results
    assert one["steps"] == two["steps"] == 5
    tolerance = 1e-5 if precision == "32-true" else 1e-9
    for name, value in one["weights"].items():
        torch.testing.assert_close(
            two["weights"][name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
    if precision == "64-true":
        # In float32 the last digit of a weight decides the sign of an activation now and then, which metrics show.
        for name in ("train/loss", "train/acc", "val/loss", "val/acc"):
            assert two["metrics"][name] == pytest.approx(one["metrics"][name], rel=1e-6), name

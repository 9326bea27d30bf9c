"""What a run prints of a checkpoint is what `bnfree test` says of the file, whoever averages weights."""

import re

import pytest

from bnfree.import_names import folder

SMALL = (
    "--data.limit_train=320", "--trainer.max_epochs=3", "--model.backbone.width=4", "--data.val_split=64",
    "--trainer.enable_model_summary=false",
)  # fmt: skip
CALLBACKS = {
    "EMAWeightAveraging": ("--trainer.callbacks.decay=0.9",),
    "WeightAveraging": (),
    "StochasticWeightAveraging": ("--trainer.callbacks.swa_lrs=1e-3", "--trainer.callbacks.swa_epoch_start=1"),
}


@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.slow
def test_the_accuracy_after_a_fit_is_that_of_the_file(bnfree, project, name):
    config = folder("configs") / "quickstart.yaml"
    averaging = (f"--trainer.callbacks+=lightning.pytorch.callbacks.{name}", *CALLBACKS[name])
    code, out, stderr = bnfree("fit", "--config", config, *SMALL, *averaging, "--run_dir=run")
    assert code == 0, stderr
    (printed,) = re.findall(r"test/acc: ([\d.]+ %) \(best checkpoint\)", out)
    code, out, stderr = bnfree("test", "--ckpt_path=run/checkpoints/best.ckpt")
    assert code == 0, stderr
    assert re.findall(r"test/acc: ([\d.]+ %)", out) == [printed]

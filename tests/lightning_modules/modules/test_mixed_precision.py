import pytest
import torch
from lightning.pytorch import Callback

from bnfree.backbones import ReActNet18
from bnfree.binarize import RSign
from bnfree.convolution import BinaryConv2d
from bnfree.lightning_modules import ImageClassifier


class Watcher(Callback):
    """Losses, and what goes into and comes out of every RSign and convolution in training."""

    def __init__(self):
        self.losses, self.signs, self.convolutions = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        # Not before: calibration runs in float32.
        for module in pl_module.backbone.modules() if not self.losses else []:
            if isinstance(module, RSign):
                module.register_forward_hook(self.look_at_sign)
            elif isinstance(module, BinaryConv2d):
                module.register_forward_hook(lambda m, inputs, output: self.convolutions.append(output.dtype))

    def look_at_sign(self, module, inputs, output):
        x, beta = inputs
        self.signs.append((x.detach().clone(), beta.item(), module.shift.detach().clone(), output.detach().clone()))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())


@pytest.mark.slow
def test_bfloat16_trains_with_thresholds_in_float32(corners, make_trainer):
    torch.manual_seed(0)
    watcher = Watcher()
    module = ImageClassifier(ReActNet18(num_classes=4, width=4), optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
    trainer = make_trainer(max_epochs=15, callbacks=[watcher], precision="bf16-mixed")
    trainer.fit(module, datamodule=corners)
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())
    assert set(watcher.convolutions) == {torch.bfloat16}
    assert sum(watcher.losses[-4:]) < 0.5 * sum(watcher.losses[:4])
    assert trainer.callback_metrics["val/acc"] > 0.9
    differing = 0
    for x, beta, shift, output in watcher.signs:
        assert x.dtype == output.dtype == torch.bfloat16
        inside = x.double() * beta + shift.double().view(1, -1, 1, 1)
        # Float32 decides by the exact value, but for what it rounds to nothing.
        decided = inside.abs() > 1e-6
        assert torch.equal(output[decided] > 0, inside[decided] > 0)
        rough = x * beta + shift.bfloat16().view(1, -1, 1, 1)
        differing += int(((rough >= 0) != (output > 0)).sum())
    # In bfloat16 some of them would have been decided otherwise.
    assert differing > 0


@pytest.mark.parametrize("norm", ["batch_norm", "none"])
def test_the_other_networks_train_too(corners, make_trainer, norm):
    torch.manual_seed(0)
    watcher = Watcher()
    module = ImageClassifier(ReActNet18(num_classes=4, width=4, norm=norm))
    watcher.look_at_sign = lambda *_: None
    make_trainer(callbacks=[watcher], precision="bf16-mixed").fit(module, datamodule=corners)
    assert set(watcher.convolutions) == {torch.bfloat16}
    assert all(0 < loss < 10 for loss in watcher.losses)

"""Training by differences of the loss: what moves, by how much, and what is refused."""

import copy

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn import functional as F
from torch.optim import SGD, Adam

from bnfree.affine import affine_parameters
from bnfree.backbones import NFResNet18, ReActNet18, ReActNetA
from bnfree.callbacks import AdaptiveGradientClipping
from bnfree.errors import InputError
from bnfree.lightning_modules.modules.zeroth_order_classifier import ZerothOrderClassifier, chain_of

STEP = {"optimizer": lambda p: SGD(p, lr=0.5), "lr_scheduler": None, "calibration": "none"}


def network(**options):
    torch.manual_seed(0)
    return ReActNet18(**{"num_classes": 4, "width": 2, "blocks_per_stage": [1, 1, 1, 1], **options})


@pytest.mark.parametrize("kind", [ReActNet18, ReActNetA])
def test_the_chain_is_the_network(kind):
    torch.manual_seed(0)
    backbone = kind(num_classes=4, width=4, **({"attention": True} if kind is ReActNet18 else {"stem": "cifar"}))
    x = y = torch.randn(2, 3, 8, 8)
    for piece in chain_of(backbone):
        y = piece(y)
    torch.testing.assert_close(y, backbone(x))


@pytest.mark.parametrize("lean", [True, False])
def test_a_step_is_along_differences_of_the_whole_network_and_latent_weights_stay(corners, make_trainer, lean):
    backbone = network(lean=lean)
    plain = copy.deepcopy(backbone)
    module = ZerothOrderClassifier(backbone, sparsity=0.8, **STEP)
    trainer = make_trainer(limit_train_batches=1, limit_val_batches=0)
    trainer.fit(module, datamodule=corners)
    images, labels = corners.dataset.tensors[0][:16], corners.dataset.tensors[1][:16]
    trained = {id(p) for p in [*affine_parameters(plain), *plain.classifier.parameters()]}
    moved = 0
    with torch.no_grad():
        base = F.cross_entropy(plain(images), labels)
        assert trainer.callback_metrics["train/loss"].item() == pytest.approx(base.item(), rel=1e-5)
        for ours, p in zip(backbone.parameters(), plain.parameters(), strict=True):
            if id(p) not in trained:
                assert torch.equal(ours, p)
                assert not ours.requires_grad
                continue
            gradient, flat = ((p - ours) / 0.5).flatten(), p.view(-1)
            assert (gradient != 0).sum() <= max(1, round(0.2 * p.numel()))
            for i in gradient.nonzero().flatten().tolist():
                before = flat[i].item()
                flat[i] += 5e-3
                expected = (F.cross_entropy(plain(images), labels) - base) / 5e-3
                flat[i] = before
                assert gradient[i].item() == pytest.approx(expected.item(), abs=2e-3)
                moved += 1
    assert moved > 10


@pytest.mark.slow
def test_the_loss_falls_with_clipping_accumulation_and_autocast_and_a_run_goes_on(corners, make_trainer, tmp_path):
    active = {}

    class Active(Callback):
        """Which coordinates of the head have a gradient, in each epoch."""

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            chosen = pl_module.backbone.classifier.weight.grad != 0
            active[trainer.current_epoch] = active.get(trainer.current_epoch, False) | chosen

    def run(ckpt_path=None):
        keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        trainer = make_trainer(
            callbacks=[AdaptiveGradientClipping(0.2), Active(), keep], accumulate_grad_batches=2,
            precision="bf16-mixed", max_epochs=6, limit_val_batches=0,
        )  # fmt: skip
        options = {"lr_scheduler": None, "calibration_images": 16, "sparsity": 0.75, "redraw_every": 2}
        module = ZerothOrderClassifier(network(), optimizer=lambda p: Adam(p, lr=0.02), **options)
        losses = []
        module.on_train_epoch_end = lambda: losses.append(module.losses["train/loss"].compute().item())
        trainer.fit(module, datamodule=corners, ckpt_path=ckpt_path, weights_only=True)
        return module.state_dict(), losses

    whole, losses = run()
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(active[epoch], active[epoch + 1]) for epoch in (0, 2, 4))
    assert not torch.equal(active[1], active[2])
    resumed, _ = run(tmp_path / "epoch=2.ckpt")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_it_refuses_what_it_cannot_do():
    for options in ({"step": 0.0}, {"sparsity": 1.0}, {"redraw_every": 0}):
        with pytest.raises(InputError, match=next(iter(options))):
            ZerothOrderClassifier(network(), **options)
    with pytest.raises(InputError, match="norm='batch_norm' keeps running statistics"):
        ZerothOrderClassifier(network(norm="batch_norm"))
    with pytest.raises(InputError, match="no chain of units"):
        ZerothOrderClassifier(NFResNet18(num_classes=4, width=4))

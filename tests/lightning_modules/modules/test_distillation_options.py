"""Labels where the teacher errs, and the discriminator, in a training."""

import copy

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import SGD

from bnfree.backbones import ReActNet18
from bnfree.distillation import corrected_distillation_loss
from bnfree.errors import InputError
from bnfree.lightning_modules import DistilledClassifier, ImageClassifier


def network(seed, norm="none"):
    torch.manual_seed(seed)
    return ReActNet18(num_classes=4, width=4, norm=norm)


def test_labels_correct_the_teacher_less_and_less(corners, make_trainer):
    teacher, student = network(1), network(0)
    module = DistilledClassifier(student, teacher, correct_teacher=True, optimizer=lambda p: SGD(p, lr=0.0))
    trainer = make_trainer(limit_train_batches=2, limit_val_batches=0)
    trainer.fit(module, datamodule=corners)
    images, labels = (tensor[:32].split(16) for tensor in corners.dataset.tensors)
    with torch.no_grad():
        # Of two steps the first is corrected wholly, the second by half.
        losses = [
            corrected_distillation_loss(student.eval()(x), teacher.eval()(x).softmax(1), y, share)
            for x, y, share in zip(images, labels, (1.0, 0.5), strict=True)
        ]
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(sum(losses).item() / 2, rel=1e-4)


def test_the_discriminator_trains_apart_and_stays_out_of_the_backbone(corners, make_trainer, tmp_path):
    def run(**options):
        save = ModelCheckpoint(tmp_path, filename=f"{len(options)}")
        module = DistilledClassifier(
            network(0), network(1), optimizer=lambda p: SGD(p, lr=0.01), lr_scheduler=None, **options
        )
        before = copy.deepcopy(module.discriminator)
        trainer = make_trainer(limit_train_batches=2, limit_val_batches=0, callbacks=[save])
        trainer.fit(module, datamodule=corners)
        return module, before, trainer

    module, before, trainer = run(discriminator_weight=1.0, discriminator_lr=0.5, adversarial=True)
    assert trainer.optimizers[0].param_groups[-1]["lr"] == 0.5
    weights = [m.layers[0].weight for m in (before, module.discriminator)]
    assert not torch.equal(*weights)
    assert trainer.callback_metrics["train/discriminator_loss"] > 0
    # The student of a run without it differs, and its checkpoint starts a plain classifier.
    alone, _, _ = run()
    assert not torch.equal(alone.backbone.stem.convolution.weight, module.backbone.stem.convolution.weight)
    fresh = ImageClassifier(
        network(3), init_from=str(tmp_path / "3.ckpt"), optimizer=lambda p: SGD(p, lr=0.0), lr_scheduler=None
    )
    make_trainer(limit_train_batches=1, limit_val_batches=0).fit(fresh, datamodule=corners)
    assert torch.equal(fresh.backbone.stem.convolution.weight, module.backbone.stem.convolution.weight)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"discriminator_weight": -1.0}, "discriminator_weight=-1.0 must be"),
        ({"discriminator_weight": 1.0, "discriminator_lr": 0.0}, "discriminator_lr=0.0 must be"),
        ({"adversarial": True}, "adversarial=True has no discriminator"),
    ],
)
def test_mistakes(options, sentence):
    with pytest.raises(InputError, match=sentence):
        DistilledClassifier(network(0), network(1), **options)

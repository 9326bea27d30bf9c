"""The penalty in a training: its gradient is added once a step, whatever is accumulated."""

import copy

import pytest
import torch
from lightning.pytorch import Trainer
from torch.optim import SGD

from bnfree.backbones import ReActNet18
from bnfree.callbacks import WeightShape
from bnfree.datamodules import DigitsDataModule
from bnfree.errors import InputError
from bnfree.lightning_modules import ImageClassifier
from bnfree.weight_shape import layers_with_shape, weight_shape_penalty


def train(tmp_path, accumulate, *callbacks):
    torch.manual_seed(0)
    network = ReActNet18(num_classes=10, in_channels=1, width=2, norm="none")
    start = copy.deepcopy(network)
    module = ImageClassifier(network, optimizer=lambda p: SGD(p, lr=0.5), lr_scheduler=None)
    Trainer(
        accelerator="cpu", max_epochs=1, limit_train_batches=2, limit_val_batches=0, logger=False,
        accumulate_grad_batches=accumulate, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=tmp_path, callbacks=list(callbacks),
    ).fit(module, datamodule=DigitsDataModule(batch_size=8))  # fmt: skip
    return start, network


def test_its_gradient_is_added_once_a_step(tmp_path):
    start, without = train(tmp_path, 2)
    _, shaped = train(tmp_path, 2, WeightShape(skewness=2.0, kurtosis=0.1))
    layers = layers_with_shape(start)
    penalty, _ = weight_shape_penalty(layers, False, 2.0, 0.1)
    gradients = torch.autograd.grad(penalty, [layer.weight for layer in layers.values()])
    for name, gradient in zip(layers, gradients, strict=True):
        expected = without.get_submodule(name).weight - 0.5 * gradient
        torch.testing.assert_close(shaped.get_submodule(name).weight, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"weights": "signs"}, "weights='signs' is not known"), ({"target": 0.5}, "target=0.5 at least 1")],
)
def test_mistakes(options, sentence):
    with pytest.raises(InputError, match=sentence):
        WeightShape(**options)

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from bnfree.backbones import ReActNet18
from bnfree.callbacks import CollapseCheck
from bnfree.lightning_modules import ImageClassifier


def loader(batches=24):
    images = torch.randn(4 * batches, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(images, torch.arange(len(images)) % 10), 4)


def said(make_trainer, module, batches=24, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer(CollapseCheck(), **options).fit(module, loader(batches), loader(2))
    return [text for text in (str(warning.message) for warning in caught) if text.startswith("epoch ")]


def adam(rate):
    return lambda module: torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=rate)


@pytest.fixture
def network():
    return ReActNet18(width=8)


def test_a_sound_training_hears_nothing(classifier, make_trainer, network):
    assert said(make_trainer, classifier(network, adam(5e-3)), max_epochs=2) == []


def test_layers_of_equal_signs_are_named_once(classifier, make_trainer, network):
    for index in (0, 1):
        network.body[1][index].rsign.shift.data.fill_(1e3)
    lines = said(make_trainer, classifier(network, adam(1e-3)), max_epochs=2)
    assert len(lines) == 1
    assert lines[0].startswith("epoch 0: body.1.0 (and 1 more layers) gives the same signs for all of 4 images")
    assert "calibrate" in lines[0]


def test_dead_filters_and_pruned_ones(classifier, make_trainer, network):
    layer = network.body[0][1].convolution
    mask = torch.ones(layer.weight.shape, dtype=torch.bool)
    mask[2] = False
    layer.set_mask(mask)
    assert said(make_trainer, classifier(network, adam(1e-3)), batches=2) == []
    layer.gain.data[1] = 0
    layer.gain.requires_grad_(False)
    (line,) = said(make_trainer, classifier(network, adam(1e-3)), batches=2)
    assert line.startswith("epoch 0: body.0.1.convolution has filters that are 0 without being pruned")


def test_weights_that_do_not_move(classifier, make_trainer, network):
    (line,) = said(make_trainer, classifier(network, adam(1e-12)))
    assert "has not changed the sign of a single weight in an epoch: raise the learning rate" in line
    # Frozen on purpose.
    for module in network.modules():
        if hasattr(module, "set_mask"):
            module.weight.requires_grad_(False)
    assert said(make_trainer, classifier(network, adam(1e-12))) == []


def test_a_loss_that_is_worse_than_guessing(classifier, make_trainer, network):
    class Logged(classifier):
        def validation_step(self, batch, batch_idx):
            self.log("val/loss", torch.tensor(30.0), batch_size=4)

    (line,) = said(make_trainer, Logged(network, adam(1e-3)), batches=2, max_epochs=2)
    assert line.startswith("epoch 0: val/loss is 30, where guessing among 10 classes gives 2.30: training diverges")
    assert "lower the learning rate" in line


@pytest.mark.parametrize(("after", "what"), [(1.5, "steps are too large, though val/loss has come back to 1.5"),
                                             (2.5, "training diverges")])  # fmt: skip
def test_a_loss_of_training_is_told_in_its_own_epoch(classifier, make_trainer, network, after, what):
    class Logged(classifier):
        def training_step(self, batch, batch_idx):
            self.log("train/loss", torch.tensor(7.9), on_step=False, on_epoch=True, batch_size=4)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            self.log("val/loss", torch.tensor(after), batch_size=4)

    (line,) = said(make_trainer, Logged(network, adam(1e-3)), batches=2)
    guessing = "where guessing among 10 classes gives 2.30"
    assert line.startswith(f"epoch 0: train/loss is 7.9, {guessing}: {what}; lower the learning rate")


def test_a_loss_of_training_is_not_called_in_a_sound_training(make_trainer, network):
    class Counted(ImageClassifier):
        def loss_of_guessing(self):
            raise AssertionError

    assert said(make_trainer, Counted(network, calibration="none"), batches=2) == []


@pytest.mark.parametrize(("scale", "lines"), [(4, 0), (1, 1)])
def test_a_loss_of_training_is_compared_with_its_own_loss_of_guessing(make_trainer, network, scale, lines):
    class Scaled(ImageClassifier):
        def training_loss(self, images, logits, labels):
            return 9.0 + 0 * logits.sum()

        def loss_of_guessing(self):
            return scale * super().loss_of_guessing()

    heard = said(make_trainer, Scaled(network, calibration="none"), batches=2)
    assert len([line for line in heard if "train/loss is 9" in line]) == lines


@pytest.mark.parametrize(
    ("width", "norm", "optimizer", "rate", "warned"),
    [
        (64, "bn_free", torch.optim.Adam, 5e-3, "0.005 is high for a BN-free network of width 64"),
        (64, "bn_free", torch.optim.AdamW, 5e-3, "0.001 suits this width as 5e-3 suits 16"),
        (64, "bn_free", torch.optim.Adam, 1e-3, None),
        (64, "batch_norm", torch.optim.Adam, 5e-3, None),
        (64, "bn_free", torch.optim.SGD, 0.1, None),
        (16, "bn_free", torch.optim.Adam, 5e-3, None),
        (32, "bn_free", torch.optim.Adam, 5e-3, None),
    ],
)
def test_a_rate_that_is_high_for_the_width(width, norm, optimizer, rate, warned):
    with torch.device("meta"):
        network = ReActNet18(width=width, norm=norm)
    module = SimpleNamespace(backbone=network)
    trainer = SimpleNamespace(optimizers=[optimizer(network.parameters(), lr=rate)], global_step=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        CollapseCheck().on_train_start(trainer, module)
        trainer.global_step = 1
        CollapseCheck().on_train_start(trainer, module)
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == (warned is not None)
    assert warned is None or warned in texts[0]


def test_it_changes_nothing(classifier, make_trainer):
    modules = []
    for callbacks in ((), (CollapseCheck(),)):
        torch.manual_seed(0)
        modules.append(classifier(None, adam(1e-2)))
        make_trainer(*callbacks, max_epochs=2).fit(modules[-1], loader(4), loader(2))
    assert all(map(torch.equal, modules[0].state_dict().values(), modules[1].state_dict().values()))

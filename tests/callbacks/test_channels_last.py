import copy

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.calibration import calibrate
from bnfree.callbacks import AdaptiveGradientClipping, ChannelsLast
from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError


def network(kind=ReActNet18, **options):
    torch.manual_seed(0)
    return kind(num_classes=10, width=4, **options)


def is_channels_last(tensor):
    return tensor.is_contiguous(memory_format=torch.channels_last)


class Formats(Callback):
    """Which modules hand on a tensor in another format than channels last."""

    def __init__(self):
        self.others = set()

    def on_train_start(self, trainer, pl_module):
        for name, module in pl_module.backbone.named_modules():
            module.register_forward_hook(lambda m, i, output, name=name: self.look(name, output))

    def look(self, name, output):
        if output.dim() == 4 and not is_channels_last(output):
            self.others.add(name)


def trained(classifier, make_trainer, make_loader, backbone, *callbacks, ckpt_path=None, **options):
    module = classifier(backbone)
    trainer = make_trainer(*callbacks, precision="64-true", **options)
    trainer.fit(module, make_loader(), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize("norm", ["bn_free", "batch_norm"])
@pytest.mark.parametrize("kind", [ReActNet18, ReActNetA])
def test_trains_the_same_network_in_the_format_throughout(classifier, make_trainer, make_loader, kind, norm):
    weights, formats = [], Formats()
    for callbacks in ([], [ChannelsLast(), formats]):
        backbone = network(kind, stem="cifar", norm=norm)
        layer = next(m for m in backbone.body.modules() if isinstance(m, BinaryConv2d))
        layer.set_mask(torch.arange(layer.weight.numel()).reshape(layer.weight.shape) % 3 > 0)
        callbacks = [*callbacks, AdaptiveGradientClipping(0.02)]
        trained(classifier, make_trainer, make_loader, backbone, *callbacks, max_epochs=2)
        weights.append(backbone.state_dict())
    assert all(is_channels_last(value) for value in weights[1].values() if value.dim() == 4)
    assert formats.others == set()
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_a_run_goes_on_with_it_from_a_checkpoint_without_it(classifier, make_trainer, make_loader, tmp_path):
    def run(name, *callbacks, **options):
        checkpoint = ModelCheckpoint(tmp_path / name, filename="last")
        options = {"enable_checkpointing": True, **options}
        trainer = trained(classifier, make_trainer, make_loader, network(), checkpoint, *callbacks, **options)
        return trainer.lightning_module.backbone

    run("first", max_epochs=1)
    plain = run("plain", max_epochs=2, ckpt_path=tmp_path / "first" / "last.ckpt")
    converted = run("converted", ChannelsLast(), max_epochs=2, ckpt_path=tmp_path / "first" / "last.ckpt")
    assert all(is_channels_last(p) for p in converted.parameters() if p.dim() == 4)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(converted.state_dict()[name], value, rtol=1e-9, atol=1e-9)
    fresh = network().double()
    content = torch.load(tmp_path / "converted" / "last.ckpt", weights_only=True)["state_dict"]
    fresh.load_state_dict({key.removeprefix("backbone."): value for key, value in content.items()})
    assert all(p.is_contiguous() for p in fresh.parameters())
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(fresh(images), converted(images), rtol=1e-9, atol=1e-9)


def test_calibration_gives_the_same_and_keeps_the_format(classifier, make_trainer):
    plain, module = network().double(), classifier(network().double())
    images = torch.randn(16, 3, 8, 8, dtype=torch.float64)
    before = copy.deepcopy(plain.state_dict())
    ChannelsLast().setup(make_trainer(), module, "fit")
    calibrate(plain, images, full=True)
    calibrate(module.backbone, images, full=True)
    assert any(not torch.equal(before[name], value) for name, value in plain.state_dict().items())
    for name, value in module.backbone.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-9, atol=1e-9)
    assert all(is_channels_last(p) for p in module.backbone.parameters() if p.dim() == 4)


def test_afterwards_images_are_left_as_they_come(classifier, make_trainer, make_loader):
    module, seen = classifier(network()), []
    make_trainer(ChannelsLast()).fit(module, make_loader())
    module.backbone.stem.register_forward_pre_hook(lambda stem, inputs: seen.append(inputs[0].is_contiguous()))
    module(torch.randn(2, 3, 8, 8))
    make_trainer(ChannelsLast()).validate(module, make_loader(), verbose=False)
    assert seen[0] is True
    assert not any(seen[1:])


def test_a_module_without_a_backbone_is_refused(make_trainer, make_loader, classifier):
    class Bare(classifier):
        def __init__(self):
            super().__init__(nn.Identity())
            del self.backbone
            self.first, self.second = nn.Linear(1, 1), nn.Linear(1, 1)

    with pytest.raises(InputError, match="Bare has no module backbone"):
        make_trainer(ChannelsLast()).fit(Bare(), make_loader())

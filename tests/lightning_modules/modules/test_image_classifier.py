import copy
import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

from bnfree import tickets
from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.calibration import calibrate
from bnfree.datamodules import DigitsDataModule
from bnfree.errors import InputError
from bnfree.lightning_modules import ImageClassifier


def network(**kwargs):
    torch.manual_seed(0)
    return ReActNet18(**{"num_classes": 4, "width": 4, **kwargs})


class Recorder(Callback):
    """Learning rates of the steps taken, and the weights when training starts."""

    def __init__(self):
        self.rates, self.start, self.metrics = [], None, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        if self.start is None:
            self.start = copy.deepcopy(pl_module.backbone.state_dict())

    def on_train_epoch_end(self, trainer, pl_module):
        self.metrics.append({k: v.item() for k, v in trainer.callback_metrics.items()})


def test_learns_and_reports_under_the_public_names(corners, make_trainer):
    trainer = make_trainer(max_epochs=20)
    module = ImageClassifier(network(), optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
    trainer.fit(module, datamodule=corners)
    assert {"train/loss", "train/acc", "val/loss", "val/acc"} <= set(trainer.callback_metrics)
    assert trainer.callback_metrics["val/acc"] > 0.9
    (result,) = trainer.test(module, datamodule=corners, verbose=False)
    with torch.no_grad():
        images, labels = corners.dataset.tensors
        logits = module.eval()(images)
    assert result["test/acc"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert result["test/loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


def test_top_1_and_top_5_accuracy_equal_a_sort_of_the_logits(make_trainer):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(50, 3, 8, 8, generator=generator)
    module = ImageClassifier(network(num_classes=100)).eval()
    with torch.no_grad():
        order = module(images).sort(descending=True).indices
    # Labels at chosen places, among them the fifth and the sixth.
    places = torch.arange(50) % 9
    labels = order[torch.arange(50), places]
    # The last batch is smaller: the mean is over images and not over batches.
    loader = DataLoader(TensorDataset(images, labels), batch_size=16)
    trainer = make_trainer()
    for run, stage in ((trainer.validate, "val"), (trainer.test, "test")):
        (result,) = run(module, loader, verbose=False)
        assert result[f"{stage}/acc"] == pytest.approx((places < 1).float().mean().item())
        assert result[f"{stage}/acc5"] == pytest.approx((places < 5).float().mean().item())


def test_top_5_accuracy_from_100_classes_on():
    assert "test/acc5" in ImageClassifier(network(num_classes=100)).accuracies
    assert "test/acc5" not in ImageClassifier(network(num_classes=99)).accuracies


@pytest.mark.parametrize(("interval", "expected"), [("step", [1 - k / 12 for k in range(12)]), ("epoch", None)])
def test_the_learning_rate_is_positive_in_every_step(corners, make_trainer, interval, expected):
    recorder = Recorder()
    trainer = make_trainer(max_epochs=3, callbacks=[recorder])
    trainer.fit(ImageClassifier(network(), optimizer=lambda p: SGD(p, lr=1.0), interval=interval), datamodule=corners)
    expected = expected or [1 - (k // 4) / 3 for k in range(12)]
    assert recorder.rates == pytest.approx(expected)
    assert min(recorder.rates) > 0


def test_a_schedule_of_torch_can_be_given(corners, make_trainer):
    recorder = Recorder()
    trainer = make_trainer(max_epochs=2, callbacks=[recorder])
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR
    trainer.fit(ImageClassifier(network(), optimizer=lambda p: SGD(p, lr=1.0), lr_scheduler=cosine), datamodule=corners)
    assert recorder.rates[4] == pytest.approx(0.5)


def test_a_run_without_an_end_has_no_schedule(corners, make_trainer):
    with pytest.raises(InputError, match="max_epochs=-1"):
        make_trainer(max_epochs=-1).fit(ImageClassifier(network()), datamodule=corners)


def test_label_smoothing_is_for_training_alone(corners, make_trainer):
    module = ImageClassifier(network(), label_smoothing=0.3)
    batch = tuple(t[:16] for t in corners.dataset.tensors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "log", lambda *args, **kwargs: None)
        loss = module.training_step(batch, 0).item()
    logits = module(batch[0]).detach().double()
    target = F.one_hot(batch[1], 4).double() * 0.7 + 0.3 / 4
    assert loss == pytest.approx(-(target * logits.log_softmax(1)).sum(1).mean().item(), rel=1e-5)
    (result,) = make_trainer().validate(module, datamodule=corners, verbose=False)
    with torch.no_grad():
        plain = F.cross_entropy(module(corners.dataset.tensors[0]), corners.dataset.tensors[1])
    assert result["val/loss"] == pytest.approx(plain.item(), rel=1e-5)


@pytest.mark.parametrize("calibration", ["full", "beta_and_shift"])
def test_a_fresh_run_starts_calibrated(corners, make_trainer, calibration):
    recorder = Recorder()
    module = ImageClassifier(network(), calibration=calibration, calibration_images=48)
    expected = copy.deepcopy(module.backbone)
    calibrate(expected, corners.dataset.tensors[0][:48], full=calibration == "full")
    make_trainer(callbacks=[recorder]).fit(module, datamodule=corners)
    for name, value in expected.state_dict().items():
        assert torch.equal(recorder.start[name], value), name


@pytest.mark.parametrize(
    "options", [{"norm": "batch_norm"}, {"norm": "none"}, {"reference": True}, {"calibration": "none"}]
)
def test_nothing_else_is_calibrated(corners, make_trainer, options):
    recorder = Recorder()
    calibration = options.pop("calibration", "full")
    module = ImageClassifier(network(**options), calibration=calibration)
    before = copy.deepcopy(module.backbone.state_dict())
    make_trainer(callbacks=[recorder], limit_train_batches=1).fit(module, datamodule=corners)
    assert all(torch.equal(recorder.start[name], value) for name, value in before.items())


def fit_alone(make_trainer, data, backbone, lr, **options):
    """A fit of a LightningModule of its own, and the weights that it started from."""
    recorder = Recorder()
    module = ImageClassifier(backbone, optimizer=lambda p: torch.optim.Adam(p, lr=lr), **options)
    make_trainer(callbacks=[recorder]).fit(module, datamodule=data)
    return recorder.start


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("calibrated_by", ["hand", "fit"])
def test_a_rewound_network_keeps_every_tensor_in_the_next_fit(corners, make_trainer, calibrated_by):
    backbone = network(width=8)
    if calibrated_by == "hand":
        calibrate(backbone, corners.dataset.tensors[0], full=True)
        start = tickets.take_snapshot(backbone)
        fit_alone(make_trainer, corners, backbone, lr=0.01)
    else:
        start = fit_alone(make_trainer, corners, backbone, lr=0.01)
    assert not equal(start, dict(backbone.state_dict()))
    masks = tickets.prune(backbone, density=0.2, score="standardized", scope="global")
    tickets.rewind(backbone, start, masks)
    rewound = copy.deepcopy(backbone.state_dict())
    fit_alone(make_trainer, corners, backbone, lr=0.0)
    assert equal(rewound, backbone.state_dict())


def test_a_second_fit_goes_on_from_what_the_first_has_trained(corners, make_trainer):
    backbone = network()
    fit_alone(make_trainer, corners, backbone, lr=0.01)
    trained = copy.deepcopy(backbone.state_dict())
    assert equal(trained, fit_alone(make_trainer, corners, backbone, lr=0.01))


def test_weights_that_a_fresh_network_has_loaded_are_not_calibrated_again(corners, make_trainer, tmp_path):
    trained = network()
    fit_alone(make_trainer, corners, trained, lr=0.01, calibration="none")
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    backbone = network()
    backbone.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert equal(trained.state_dict(), fit_alone(make_trainer, corners, backbone, lr=0.01))


def test_a_network_rewound_to_before_its_calibration_is_calibrated(corners, make_trainer):
    backbone = network()
    start = tickets.take_snapshot(backbone)
    fit_alone(make_trainer, corners, backbone, lr=0.01)
    tickets.rewind(backbone, start)
    expected = copy.deepcopy(backbone)
    calibrate(expected, corners.dataset.tensors[0], full=True)
    assert equal(expected.state_dict(), fit_alone(make_trainer, corners, backbone, lr=0.01))


@pytest.mark.parametrize("start", ["same network", "init_from"])
def test_calibrating_again_is_asked_for(corners, make_trainer, tmp_path, start):
    backbone = network()
    fit_alone(make_trainer, corners, backbone, lr=0.01)
    expected = copy.deepcopy(backbone)
    calibrate(expected, corners.dataset.tensors[0], full=True)
    options = {}
    if start == "init_from":
        torch.save(backbone.state_dict(), tmp_path / "weights.pt")
        backbone, options = network(), {"init_from": str(tmp_path / "weights.pt")}
    found = fit_alone(make_trainer, corners, backbone, lr=0.01, recalibrate=True, **options)
    assert equal(expected.state_dict(), found)


class StopAfter(Callback):
    def __init__(self, epochs):
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_resumed_run_equals_an_uninterrupted_one(corners, make_trainer, tmp_path, stop_after):
    def run(name, epochs=3, ckpt_path=None):
        recorder = Recorder()
        checkpoint = ModelCheckpoint(tmp_path / name, monitor=None, filename="last")
        trainer = make_trainer(max_epochs=3, callbacks=[recorder, checkpoint, StopAfter(epochs)])
        module = ImageClassifier(network())
        trainer.fit(module, datamodule=corners, ckpt_path=ckpt_path)
        return module, recorder

    whole, seen = run("whole")
    run("stopped", epochs=stop_after)
    resumed, seen_after = run("resumed", ckpt_path=tmp_path / "stopped" / "last.ckpt")
    assert seen_after.rates == seen.rates[4 * stop_after :]
    assert seen_after.metrics == seen.metrics[stop_after:]
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_the_loss_of_an_evaluation_is_the_mean_over_images_however_they_are_batched(make_trainer):
    module = ImageClassifier(ReActNet18(num_classes=10, in_channels=1, width=4))
    torch.nn.init.normal_(module.backbone.classifier.weight)
    options = [{"batch_size": size, "val_split": 33} for size in (33, 16, 7)]
    whole, *others = (
        make_trainer().validate(module, datamodule=DigitsDataModule(**given), verbose=False)[0]["val/loss"]
        for given in options
    )
    assert others == pytest.approx([whole, whole], rel=1e-4)


def test_checkpoints_hold_primitives_and_load_safely(corners, make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.fit(ImageClassifier(network(), label_smoothing=0.1), datamodule=corners)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert content["hyper_parameters"]["label_smoothing"] == 0.1
    assert all(name.startswith("backbone.") for name in content["state_dict"])
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "a.ckpt", backbone=network())
    assert loaded.label_smoothing == 0.1
    images = corners.dataset.tensors[0]
    assert torch.equal(loaded.eval()(images), trainer.lightning_module.eval()(images))


def test_init_from_takes_the_weights_and_nothing_else(corners, make_trainer, tmp_path):
    first = make_trainer()
    first.fit(ImageClassifier(network(binary_weights=False)), datamodule=corners)
    first.save_checkpoint(tmp_path / "step1.ckpt")
    recorder = Recorder()
    module = ImageClassifier(network(), optimizer=lambda p: SGD(p, lr=0.5), init_from=str(tmp_path / "step1.ckpt"))
    second = make_trainer(callbacks=[recorder])
    second.fit(module, datamodule=corners)
    for name, value in first.lightning_module.backbone.state_dict().items():
        assert torch.equal(recorder.start[name], value), name
    assert second.global_step == 4
    assert recorder.rates[0] == 0.5


def test_init_from_reads_a_plain_state_dict_with_masks(corners, make_trainer, tmp_path):
    pruned = network()
    layer = pruned.body[0][0].convolution
    layer.set_mask(torch.arange(layer.weight.numel()).reshape(layer.weight.shape) % 2 == 0)
    torch.save(pruned.state_dict(), tmp_path / "ticket.pt")
    module = ImageClassifier(network(), init_from=str(tmp_path / "ticket.pt"))
    make_trainer(limit_train_batches=1).fit(module, datamodule=corners)
    assert torch.equal(module.backbone.body[0][0].convolution.mask, layer.mask)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lambda: network(width=8).state_dict(), "in another shape"),
        (lambda: network(norm="none").state_dict(), "lacks"),
        (lambda: network(norm="batch_norm").state_dict(), "lacks|in addition"),
        (lambda: ReActNetA(4, width=4).state_dict(), "lacks"),
        (lambda: [1, 2], "holds no state dict"),
        (lambda: {"epoch": 3}, "holds no state dict"),
    ],
)
def test_init_from_something_else_is_refused(corners, make_trainer, tmp_path, content, sentence):
    torch.save(content(), tmp_path / "other.pt")
    module = ImageClassifier(network(), init_from=str(tmp_path / "other.pt"))
    before = copy.deepcopy(module.backbone.state_dict())
    with pytest.raises(InputError, match=sentence) as caught:
        make_trainer().fit(module, datamodule=corners)
    assert "init_from=" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in module.backbone.state_dict().items())


def test_init_from_a_damaged_or_missing_file_is_refused(corners, make_trainer, tmp_path):
    path = tmp_path / "step1.pt"
    with pytest.raises(InputError, match="is not a file"):
        make_trainer().fit(ImageClassifier(network(), init_from=str(path)), datamodule=corners)
    torch.save(network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        make_trainer().fit(ImageClassifier(network(), init_from=str(path)), datamodule=corners)


@pytest.mark.parametrize(("option", "value"), [("num_classes", 5), ("in_channels", 1)])
def test_a_backbone_that_does_not_fit_the_data_is_refused(corners, make_trainer, option, value):
    module = ImageClassifier(network(**{option: value}))
    with pytest.raises(InputError, match=f"backbone.{option}={value} does not fit BrightCorners"):
        make_trainer().fit(module, datamodule=corners)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"interval": "batch"}, "interval='batch'"),
        ({"calibration_images": 0}, "calibration_images=0"),
        ({"calibration": "beta"}, "calibration='beta'"),
        ({"calibration": "none", "recalibrate": True}, "recalibrate=True contradicts calibration='none'"),
        ({"weight_decay_on": "gains"}, "weight_decay_on='gains'"),
        ({"backbone": torch.nn.Linear(2, 2)}, "num_classes"),
    ],
)
def test_values_out_of_range_are_named(options, sentence):
    with pytest.raises(InputError, match=sentence):
        ImageClassifier(**{"backbone": network(), **options})


def as_public_reactnet18(backbone):
    """The state dict of one of our networks under the names of the public code."""
    names = {
        "rsign.shift": "move0.bias", "rprelu.shift_in": "move1.bias", "rprelu.slope": "prelu.weight",
        "rprelu.shift_out": "move2.bias", "projection": "downsample.1", "convolution": "binary_conv",
    }  # fmt: skip
    public = {}
    for key, value in backbone.state_dict().items():
        if key.endswith(".beta"):
            continue
        if key.startswith("body."):
            _, stage, block, rest = key.split(".", 3)
            ours = next(name for name in names if rest.startswith(name))
            shape = (1, -1, 1, 1) if "shift" in rest else value.shape
            public[f"module.layer{int(stage) + 1}.{block}.{rest.replace(ours, names[ours])}"] = value.reshape(shape)
        else:
            new = key.replace("stem.convolution", "conv1").replace("classifier", "fc")
            public[f"module.{new}"] = value
    return public


def test_init_from_reads_a_public_checkpoint_into_a_network_that_computes_the_same(corners, make_trainer, tmp_path):
    recorder = Recorder()
    source = network(reference=True)
    torch.save({"epoch": 3, "state_dict": as_public_reactnet18(source)}, tmp_path / "model_best.pth.tar")
    path = str(tmp_path / "model_best.pth.tar")
    # The images of this test are not normalised, to which the stem would be fitted.
    module = ImageClassifier(network(alpha=0.2, binary_shortcut=True), init_from=path, calibrate_init_from="none")
    make_trainer(callbacks=[recorder]).fit(module, datamodule=corners)
    loaded = network(alpha=0.2, binary_shortcut=True)
    loaded.load_state_dict(recorder.start)
    images = corners.dataset.tensors[0]
    torch.testing.assert_close(loaded.eval()(images), source.eval()(images))


def test_a_fast_mode_that_does_not_work_is_refused_before_training(corners, make_trainer, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    module = ImageClassifier(network(fast=["half_forward"]))
    with pytest.raises(InputError, match="fast='half_forward' does not work here: it needs a GPU"):
        make_trainer().fit(module, datamodule=corners)
    module.backbone.lean = False
    module.setup("fit")


@pytest.mark.parametrize("options", [{"alpha": 0.5, "binary_shortcut": True}, {"alpha": 0.2, "binary_shortcut": False}])
def test_init_from_a_public_checkpoint_that_would_compute_something_else_is_refused(
    corners, make_trainer, tmp_path, options
):
    torch.save({"state_dict": as_public_reactnet18(network(reference=True))}, tmp_path / "public.tar")
    module = ImageClassifier(network(**options), init_from=str(tmp_path / "public.tar"))
    with pytest.raises(InputError, match="alpha to 0.2|binary_shortcut to true"):
        make_trainer().fit(module, datamodule=corners)


def test_a_network_that_torch_has_pruned_in_vain_is_refused(corners, make_trainer):
    module = ImageClassifier(ReActNet18(num_classes=4, width=4))
    prune.l1_unstructured(module.backbone.body[0][0].convolution, "weight", 0.5)
    with pytest.raises(InputError, match="nothing is pruned; prune with bnfree.callbacks.LotteryTicket"):
        make_trainer().fit(module, datamodule=corners)


def test_a_network_pruned_by_torch_can_be_trained_where_that_prunes_something(corners, make_trainer):
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    prune.l1_unstructured(backbone[0], "weight", 0.5)
    # What a forward pass leaves is no leaf, which torch does not copy.
    backbone(torch.zeros(1, 3, 8, 8))
    module = ImageClassifier(backbone, weight_decay_on="all")
    assert "backbone" not in module.hparams
    assert module.hparams.calibration == "full"
    make_trainer(limit_val_batches=1).fit(module, datamodule=corners)
    assert int((backbone[0].weight == 0).sum()) >= 108


def test_classes_are_those_of_the_output_where_the_network_does_not_say(corners, make_trainer):
    backbone = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    before, random = backbone[1].running_mean.clone(), torch.random.get_rng_state()
    module = ImageClassifier(backbone, weight_decay_on="all")
    assert (module.accuracies["val/acc"].num_classes, backbone.training) == (5, True)
    assert torch.equal(backbone[1].running_mean, before)
    assert torch.equal(torch.random.get_rng_state(), random)
    with pytest.raises(InputError, match="backbone.num_classes=5 does not fit BrightCorners, whose num_classes is 4"):
        make_trainer().fit(module, datamodule=corners)
    grey = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InputError, match=r"backbone.in_channels=1 does not fit BrightCorners, .* take a network with"):
        make_trainer().fit(ImageClassifier(grey, weight_decay_on="all"), datamodule=corners)
    with pytest.raises(InputError, match="Linear has no integer attribute num_classes, and gives no logits"):
        ImageClassifier(nn.Linear(2, 2), weight_decay_on="all")


def test_a_head_or_loss_of_other_numbers_than_it_should_give_is_refused():
    batch = torch.randn(2, 3, 8, 8), torch.tensor([0, 3])
    module = ImageClassifier(network(width=2, head=lambda features, classes: nn.Linear(features, classes + 1)))
    for step in (module.training_step, module.validation_step):
        with pytest.raises(InputError, match=r"gives \(2, 5\) in place of logits \(2, 4\)"):
            step(batch, 0)

    def unreduced(logits, labels):
        return F.cross_entropy(logits, labels, reduction="none")

    with pytest.raises(InputError, match=r"of 2 images is of shape \(2,\), .* model.loss \(unreduced\)"):
        ImageClassifier(network(width=2), loss=unreduced).training_step(batch, 0)
    with pytest.raises(InputError, match="of 2 images is a float, in place of a tensor"):
        ImageClassifier(network(width=2), loss=lambda logits, labels: 1.0).training_step(batch, 0)


@pytest.mark.parametrize("classes", [3, 101])
def test_torchvisions_networks_are_backbones_as_they_are(classes):
    module = ImageClassifier(resnet18(num_classes=classes))
    assert ("val/acc5" in module.accuracies) == (classes > 100)


def test_what_guessing_costs_in_a_loss_of_ones_own_and_in_any_precision():
    loss = torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 4.0]))
    module = ImageClassifier(ReActNet18(num_classes=3, width=4), loss=loss)
    assert module.loss_of_guessing() == pytest.approx(math.log(3))
    assert module.to(torch.bfloat16).loss_of_guessing() == pytest.approx(math.log(3), rel=1e-2)

"""Plugins together: what does not go together is refused in a sentence."""

from functools import partial

import pytest
import torch
from built_callbacks import built
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

import bnfree.callbacks
from bnfree.backbones import ReActNet18
from bnfree.errors import InputError
from bnfree.lightning_modules import ImageClassifier
from bnfree.plugins import BUILT_IN, imported, names, resolve
from bnfree.tickets.key_files import write_owner_key
from bnfree.tickets.keyed import new_key

SMALL = {"num_classes": 3, "in_channels": 1, "width": 4, "blocks_per_stage": [1, 1, 1, 1]}
# What has to say no to a run of the kind below.
REFUSED = {
    "ScheduleFree": "optimizer=Adam has no train",
    "ForgettingScores": "is none of bnfree.datamodules",
}
# Ask for a network that gives logits, and for nothing more.
FOR_ANY_NETWORK = {"attacked_accuracy", "corrupted_accuracy"}
ADAM = partial(torch.optim.Adam, lr=1e-2)
# One needs a compiler, and is one of the first things that its own test asks; the other does nothing without a bar.
ELSEWHERE = {"CompiledBackbone", "TrainingBar"}
CALLBACKS = [name for name in bnfree.callbacks.__all__ if name not in ELSEWHERE]


def images(count=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 1, 16, 16, generator=generator), torch.arange(count) % 3


def loader(batch_size):
    return DataLoader(TensorDataset(*images()), batch_size)


@pytest.mark.parametrize("norm", names("normalizer"))
def test_every_estimator_goes_with_every_normaliser(norm):
    """Forward and backward, signs and weights with the same estimator."""
    x, labels = images(2)
    for estimator in names("sign_estimator"):
        torch.manual_seed(0)
        network = ReActNet18(**SMALL, norm=norm, estimator=estimator, weight_estimator=estimator)
        torch.nn.functional.cross_entropy(network(x), labels).backward()
        without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert not without, (estimator, norm)
        assert network.body[0][0].convolution.weight.grad.abs().sum() > 0, (estimator, norm)


@pytest.mark.parametrize("transform", names("weight_transform"))
def test_every_transform_goes_with_every_normaliser(transform):
    x, labels = images(2)
    for norm in names("normalizer"):
        torch.manual_seed(0)
        network = ReActNet18(**SMALL, norm=norm, weight_transform=transform)
        torch.nn.functional.cross_entropy(network(x), labels).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters()), norm
        assert network.body[0][0].convolution.weight.grad.abs().sum() > 0, norm


def run(callbacks, network, directory, ckpt_path=None, optimizer=ADAM, **options):
    """Two epochs of two steps from four batches each, in bfloat16 autocast, with gradient clipping."""
    torch.manual_seed(0)
    module = ImageClassifier(ReActNet18(**{**SMALL, **network}), optimizer, calibration_images=4)
    keep = ModelCheckpoint(directory, filename="{epoch}", save_top_k=-1, every_n_epochs=1)
    clipping = [] if any(type(c) is bnfree.callbacks.AdaptiveGradientClipping for c in callbacks) else [clip()]
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, precision="bf16-mixed", accumulate_grad_batches=2, logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=directory,
        callbacks=[*callbacks, *clipping, keep], **options,
    )  # fmt: skip
    trainer.fit(module, loader(2), loader(2), ckpt_path=ckpt_path, weights_only=ckpt_path is not None)
    return module.state_dict()


def clip():
    return bnfree.callbacks.AdaptiveGradientClipping(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.filterwarnings("ignore")
def test_every_callback_goes_with_clipping_autocast_accumulation_and_resumption(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "OwnershipTriggers":
        write_owner_key(new_key(), tmp_path / "owner.key")
    if name in REFUSED:
        with pytest.raises(InputError, match=REFUSED[name]):
            run([built(name)[0]], built(name)[1], tmp_path / "whole")
        return
    callback, network = built(name)
    whole = run([callback], network, tmp_path / "whole")
    assert all(value.isfinite().all() for value in whole.values() if value.is_floating_point())
    resumed = run([built(name)[0]], network, tmp_path / "again", tmp_path / "whole" / "epoch=0.ckpt")
    differing = [key for key, value in whole.items() if not torch.equal(value, resumed[key])]
    assert not differing


class SameEverywhere(Callback):
    """Both processes end with the same weights and the same place in the schedule."""

    def on_train_end(self, trainer, pl_module):
        values = [p.detach().double().sum() for p in pl_module.parameters()]
        values += [module.estimator_progress.double() for module in pl_module.modules() if scheduled(module)]
        everywhere = pl_module.all_gather(torch.stack(values))
        assert len(everywhere) == 2
        assert torch.equal(everywhere[0], everywhere[1])
        assert len(values) > 20


def scheduled(module):
    return getattr(module, "estimator_progress", None) is not None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_all_that_go_together_go_on_two_processes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    together = (
        "EstimatorSchedule", "EstimatorIndicators", "SilentWeightDecay", "FlipSchedule", "LatentSphere", "FreezeSigns",
        "GradientWindows", "WeightDynamics", "SignalPropagation", "WeightStandardizationCheck", "CollapseCheck",
        "NonFiniteStop", "Throughput",
    )  # fmt: skip
    network = {"estimator": "reste", "weight_estimator": "reste"}
    callbacks = [getattr(bnfree.callbacks, name)() for name in together]
    run([*callbacks, SameEverywhere()], network, tmp_path, devices=2, strategy="ddp_fork")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_flips_without_latent_weights_go_on_two_processes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    callbacks = [bnfree.callbacks.Bop(gamma=0.1), SameEverywhere()]
    run(callbacks, {"norm": "sandwich_affine"}, tmp_path, devices=2, strategy="ddp_fork")


class DifferentImages(Callback):
    """Each process has its own, and yet all have the same gradients."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        sums = pl_module.all_gather(batch[0].sum())
        assert sums[0] != sums[1]

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        sums = pl_module.all_gather(torch.stack([p.grad.double().sum() for p in pl_module.parameters()]))
        assert torch.equal(sums[0], sums[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamp", "sgdp"])
@pytest.mark.filterwarnings("ignore")
def test_projected_steps_are_the_same_in_two_processes(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    optimizer = partial(resolve("optimizer", name), lr=1e-2, weight_decay=1e-2)
    run([DifferentImages(), SameEverywhere()], {}, tmp_path, optimizer=optimizer, devices=2, strategy="ddp_fork")


@pytest.mark.parametrize("name", [name for name in BUILT_IN["callback"] if not name.startswith("schedule_free")])
def test_every_callback_says_no_to_a_network_that_is_not_for_it(name):
    """In a sentence, or it has nothing against it."""
    from lightning.pytorch import LightningModule

    class Plain(LightningModule):
        def __init__(self):
            super().__init__()
            self.backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 3))

        def training_step(self, batch, batch_idx):
            return torch.nn.functional.cross_entropy(self.backbone(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    kind = imported(BUILT_IN["callback"][name], "callback")
    trainer = Trainer(
        accelerator="cpu", fast_dev_run=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[kind()],
    )  # fmt: skip
    if name in FOR_ANY_NETWORK:
        trainer.fit(Plain(), loader(4))
        return
    with pytest.raises(InputError, match=r"^.{30,300}$"):
        trainer.fit(Plain(), loader(4))

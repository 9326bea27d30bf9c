import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader

from bnfree.backbones import ReActNet18
from bnfree.callbacks import AdaptiveGradientClipping, MultiPrizeTicket
from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError
from bnfree.tickets import checksum, current_masks, load_ticket, prunable_layers


def latents(network):
    return {name: layer.weight.detach().clone() for name, layer in prunable_layers(network).items()}


def images():
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(5))


class Masks(Callback):
    """The share of survivors in each layer, and a checksum of the masks, before each step and after the last."""

    def __init__(self):
        self.densities, self.checksums, self.norms = [], [], []

    def record(self, pl_module):
        masks = current_masks(pl_module.backbone)
        self.densities.append({name: mask.float().mean().item() for name, mask in masks.items()})
        self.checksums.append(checksum(masks))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.record(pl_module)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        layer = next(iter(prunable_layers(pl_module.backbone).values()))
        rows = [tensor.detach().flatten(1).norm(dim=1) for tensor in (layer.score.grad, layer.score)]
        self.norms.append((rows[0] / rows[1]).max().item())

    def on_train_end(self, trainer, pl_module):
        self.record(pl_module)


def test_trains_masks_and_leaves_the_weights(classifier, make_trainer, make_loader, tmp_path):
    module, masks = classifier(), Masks()
    before = latents(module.backbone)
    callback = MultiPrizeTicket(density=0.3, ramp=0)
    logger = CSVLogger(tmp_path, name="", version="")
    save = ModelCheckpoint(tmp_path, filename="last")
    trainer = make_trainer(callback, masks, save, max_epochs=3, logger=logger, enable_checkpointing=True)
    trainer.fit(module, make_loader())
    assert all(torch.equal(weight, before[name]) for name, weight in latents(module.backbone).items())
    assert len(set(masks.checksums)) == 7
    for densities in masks.densities:
        for name, density in densities.items():
            assert density == pytest.approx(int(0.3 * before[name].numel() + 0.5) / before[name].numel())
    with (tmp_path / "metrics.csv").open(newline="") as file:
        logged = [float(row["ticket/density"]) for row in csv.DictReader(file) if row["ticket/density"]]
    assert logged == pytest.approx([0.3] * 3, abs=1e-4)
    # What is left behind is a plain network, and the ticket and the checkpoint are plain networks too.
    assert all(type(layer) is BinaryConv2d for layer in prunable_layers(module.backbone).values())
    expected = module(images())
    ticket = load_ticket(tmp_path / "ticket.pt")
    assert (ticket.score, ticket.scope, ticket.density) == ("multi_prize", "layer", 0.3)
    assert ticket.checksum == masks.checksums[-1]
    weights = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    for state in (ticket.start(), {name.removeprefix("backbone."): value for name, value in weights.items()}):
        plain = ReActNet18(width=4)
        plain.load_state_dict(state)
        assert torch.equal(plain(images()), expected)


def test_density_falls_on_the_ramp_and_stays(classifier, make_trainer, make_loader):
    masks = Masks()
    callback = MultiPrizeTicket(density=0.2, initial_density=0.8, ramp=0.5, scope="global")
    make_trainer(callback, masks, max_epochs=4).fit(classifier(), make_loader())
    weights = {name: weight.numel() for name, weight in latents(ReActNet18(width=4)).items()}
    found = [sum(row[n] * weights[n] for n in weights) / sum(weights.values()) for row in masks.densities]
    expected = [0.2 + 0.6 * (1 - step / 4) ** 3 for step in range(4)] + [0.2] * 5
    assert found == pytest.approx(expected, abs=1e-4)


def test_initial_density_below_the_density_is_no_ramp(classifier, make_trainer, make_loader):
    masks = Masks()
    make_trainer(MultiPrizeTicket(density=0.9), masks).fit(classifier(), make_loader())
    assert all(row["body.3.3.convolution"] == pytest.approx(0.9, abs=1e-3) for row in masks.densities)


def test_control_trains_everything_but_the_scores(classifier, make_trainer, make_loader, tmp_path):
    outputs = []
    for train_scores in (True, False):
        torch.manual_seed(0)
        module, masks = classifier(), Masks()
        gain = module.backbone.body[0][0].convolution.gain.detach().clone()
        masks.on_before_optimizer_step = lambda *_: None
        callback = MultiPrizeTicket(density=0.3, ramp=0, train_scores=train_scores)
        make_trainer(callback, masks, max_epochs=2).fit(module, make_loader())
        assert (len(set(masks.checksums)) == 1) is not train_scores
        assert not torch.equal(module.backbone.body[0][0].convolution.gain, gain)
        outputs.append(masks.checksums[0])
    assert outputs[0] == outputs[1]


def test_signed_constant_weights(classifier, make_trainer, make_loader, tmp_path):
    module = classifier()
    before = latents(module.backbone)
    make_trainer(MultiPrizeTicket(density=0.5, weights="signed_constant")).fit(module, make_loader())
    for name, weight in latents(module.backbone).items():
        assert weight.abs().unique().numel() == 1
        assert torch.equal(weight >= 0, before[name] >= 0)


def test_scores_are_clipped_like_any_parameter(classifier, make_trainer, make_loader):
    ratios = []
    for clipping in ([], [AdaptiveGradientClipping(clip_factor=1e-4, log_fraction=False)]):
        torch.manual_seed(0)
        masks = Masks()
        make_trainer(MultiPrizeTicket(density=0.5), *clipping, masks).fit(classifier(), make_loader())
        ratios.append(max(masks.norms))
    assert ratios[0] > 2e-4
    assert ratios[1] == pytest.approx(1e-4, rel=1e-4)


@pytest.mark.parametrize("saving", [{"every_n_train_steps": 4}, {"every_n_train_steps": 3}, {"every_n_epochs": 1}])
@pytest.mark.parametrize("weights", ["drawn", "signed_constant"])
def test_resumed_run_ends_as_an_uninterrupted_one(classifier, make_trainer, make_loader, tmp_path, saving, weights):
    # Each batch is the same, so that it does not matter where a plain loader starts again.
    data = DataLoader(ConcatDataset([make_loader(4).dataset] * 3), 4)

    def fit(directory, seed, ckpt_path=None):
        torch.manual_seed(seed)
        callback, masks = MultiPrizeTicket(density=0.2, ramp=0.9, weights=weights), Masks()
        save = ModelCheckpoint(directory, filename="{step}", save_top_k=-1, **saving)
        module = classifier(make_optimizer=lambda m: torch.optim.Adam(m.parameters(), lr=0.01))
        trainer = make_trainer(
            callback, masks, save, max_epochs=3, enable_checkpointing=True, default_root_dir=directory
        )
        trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
        last = max(directory.glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))
        scores = torch.load(last, weights_only=True)["callbacks"]["MultiPrizeTicket"]["scores"]
        return masks.checksums, module.state_dict(), scores, load_ticket(directory / "ticket.pt")

    checksums, state, scores, ticket = fit(tmp_path / "whole", 1)
    first = min((tmp_path / "whole").glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))
    resumed_checksums, resumed_state, resumed_scores, resumed_ticket = fit(tmp_path / "resumed", 2, first)
    assert len(resumed_checksums) < len(checksums)
    assert resumed_checksums == checksums[-len(resumed_checksums) :]
    assert all(torch.equal(resumed_state[name], value) for name, value in state.items())
    assert all(torch.equal(resumed_scores[name], value) for name, value in scores.items())
    assert resumed_ticket.checksum == ticket.checksum


def test_mistakes_are_said(classifier, make_trainer, make_loader, tmp_path):
    for options, message in (
        ({"density": 0}, "density=0 must be above 0"),
        ({"density": 0.5, "initial_density": 2}, "density=2 must be above 0"),
        ({"density": 0.5, "ramp": 2}, "ramp=2 must be between 0 and 1"),
        ({"density": 0.5, "scope": "filter"}, "scope='filter' is not known"),
        ({"density": 0.5, "weights": "ones"}, "weights='ones' is not known"),
        ({"density": 0.5, "learned": "gains"}, "learned='gains' is not known"),
        ({"density": 0.5, "filename": ""}, "filename=''"),
    ):
        with pytest.raises(InputError, match=message):
            MultiPrizeTicket(**options)

    def fit(module=None, **options):
        make_trainer(MultiPrizeTicket(**options)).fit(module or classifier(), make_loader())

    with pytest.raises(InputError, match="density=0.001 leaves"):
        fit(density=0.001)
    with pytest.raises(InputError, match="include='head' fits no convolution"):
        fit(density=0.5, include=["head"])
    with pytest.raises(InputError, match="network=Sequential has no BinaryConv2d"):
        fit(classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 10))), density=0.5)
    with pytest.raises(InputError, match="EMAWeightAveraging averages weights over steps"):
        make_trainer(MultiPrizeTicket(density=0.5), EMAWeightAveraging()).fit(classifier(), make_loader())
    pruned = classifier()
    layer = pruned.backbone.body[0][0].convolution
    layer.set_mask(torch.rand(layer.weight.shape) < 0.5)
    with pytest.raises(InputError, match=r"'body.0.0.convolution' is pruned already"):
        fit(pruned, density=0.5)


def test_a_run_goes_on_with_its_own_settings_only(classifier, make_trainer, make_loader, tmp_path):
    save = ModelCheckpoint(tmp_path, filename="first")
    make_trainer(MultiPrizeTicket(density=0.5), save, enable_checkpointing=True).fit(classifier(), make_loader())
    with pytest.raises(InputError, match=r"density=0.4 of MultiPrizeTicket was 0.5 when"):
        make_trainer(MultiPrizeTicket(density=0.4), max_epochs=2).fit(
            classifier(), make_loader(), ckpt_path=tmp_path / "first.ckpt", weights_only=True
        )
    # Evaluating the checkpoint needs neither scores nor the same settings.
    make_trainer(MultiPrizeTicket(density=0.4)).validate(
        classifier(), make_loader(), ckpt_path=tmp_path / "first.ckpt", weights_only=True, verbose=False
    )


SCRIPT = """
import sys
import torch
from lightning.pytorch import Trainer, seed_everything

from bnfree.backbones import ReActNet18
from bnfree.tickets import checksum, current_masks
from bnfree.callbacks import MultiPrizeTicket
from bnfree.datamodules import DigitsDataModule
from bnfree.lightning_modules import ImageClassifier

processes, directory = int(sys.argv[1]), sys.argv[2]
seed_everything(3)
network = ReActNet18(10, in_channels=1, width=4)
module = ImageClassifier(network, optimizer=lambda p: torch.optim.SGD(p, lr=0.2), calibration_images=32)
trainer = Trainer(
    accelerator="cpu", devices=processes, precision="64-true", strategy="ddp" if processes > 1 else "auto",
    max_epochs=2, limit_train_batches=3, limit_val_batches=1, default_root_dir=directory, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    callbacks=[MultiPrizeTicket(density=0.3, ramp=0, scope=sys.argv[3])],
)
firsts = []
trainer.callbacks[0].on_train_start = lambda *_: firsts.append(checksum(current_masks(network)))
trainer.fit(module, datamodule=DigitsDataModule(batch_size=32 // processes))
assert firsts != [checksum(current_masks(network))]
assert abs(float(trainer.callback_metrics["ticket/density"]) - 0.3) < 1e-3
with open(f"{directory}/rank{trainer.global_rank}", "w") as file:
    file.write(checksum(current_masks(network)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_two_processes_find_the_masks_of_one(tmp_path, scope):
    (tmp_path / "train.py").write_text(SCRIPT)
    found = {}
    for processes in (1, 2):
        directory = tmp_path / str(processes)
        directory.mkdir()
        run = subprocess.run(
            [sys.executable, "train.py", str(processes), str(directory), scope], cwd=tmp_path, capture_output=True,
            text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}, timeout=1200,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr[-2000:]
        sums = [(directory / f"rank{rank}").read_text() for rank in range(processes)]
        assert set(sums) == {load_ticket(directory / "ticket.pt").checksum}
        found[processes] = sums[0]
    assert found[1] == found[2]

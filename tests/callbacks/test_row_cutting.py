"""Rows that are cut in the middle of a training, by MaskSparsity and by LayerThresholds."""

import copy
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader, TensorDataset

from bnfree.backbones import ReActNet18
from bnfree.callbacks import (
    AdaptiveGradientClipping,
    Bop,
    CollapseCheck,
    LayerThresholds,
    MaskSparsity,
    WeightDynamics,
    WeightStandardizationCheck,
)
from bnfree.compression import count_rows, remove_rows, row_layers
from bnfree.errors import InputError
from bnfree.lightning_modules import ImageClassifier

CUTS = {
    "ratio": partial(MaskSparsity, ratio=0.5, threshold=float("inf")),
    "global": partial(MaskSparsity, ratio=None, strength=0.5, threshold=1.2, dense_epochs=1, mask_epochs=2),
    "thresholds": partial(LayerThresholds, target=0.6),
}
# Epochs whose end is the start of a phase, or lies in one.
PHASES = {"ratio": [0, 2], "global": [0, 1, 3], "thresholds": [1, 2]}
ADAM = partial(Adam, lr=1e-2)


def loader(count=16, batch_size=2):
    generator = torch.Generator().manual_seed(0)
    return DataLoader(
        TensorDataset(torch.randn(count, 1, 16, 16, generator=generator), torch.arange(count) % 3), batch_size
    )


def train(directory, callbacks, epochs=4, optimizer=ADAM, ckpt_path=None, data=None, **options):
    """The module after a training, and its trainer."""
    torch.manual_seed(0)
    network = ReActNet18(
        num_classes=3, in_channels=1, width=4, blocks_per_stage=[1, 1, 1, 1], **options.pop("network", {})
    )
    module = ImageClassifier(network, optimizer, calibration_images=4, init_from=options.pop("init_from", None))
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, default_root_dir=directory, callbacks=callbacks,
        **{"enable_checkpointing": False, **options},
    )  # fmt: skip
    data = data or loader()
    trainer.fit(module, data, data, ckpt_path=ckpt_path, weights_only=ckpt_path is not None)
    return module, trainer


def test_the_penalty_is_on_marked_gains_alone_and_not_clipped(tmp_path):
    runs = {}
    for name, callbacks in (("without", []), ("with", [MaskSparsity(0.5, 0.125, dense_epochs=0, regularise_epochs=1)])):
        clipping = AdaptiveGradientClipping(1e-4)
        module, _ = train(
            tmp_path, [*callbacks, clipping], 2, partial(SGD, lr=0.5), data=loader(4), accumulate_grad_batches=2,
            limit_train_batches=2, max_steps=1, limit_val_batches=0,
        )  # fmt: skip
        runs[name] = row_layers(module.backbone)
    for name, layer in runs["without"].items():
        # A step is too small to change which gains are the smallest, and no gain is negative.
        order = layer.gain.flatten().argsort()
        pull = torch.zeros(len(order))
        pull[order[: len(order) // 2]] = 0.5 * 0.125
        torch.testing.assert_close(runs["with"][name].gain.flatten(), layer.gain.flatten() - pull, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["ratio", "thresholds"])
@pytest.mark.filterwarnings("ignore")
def test_a_cut_changes_no_output_and_training_goes_on(name, tmp_path):
    """Between the end of an epoch and the first batch of the next."""

    class Watch(Callback):
        def look(self, trainer, pl_module):
            with torch.no_grad():
                self.outputs.append(copy.deepcopy(pl_module.backbone).eval()(next(iter(loader()))[0]))
            self.rows.append(count_rows(pl_module.backbone)[0])

        def on_train_epoch_end(self, trainer, pl_module):
            state = trainer.callbacks[0].state_dict()
            if name == "ratio" and not state["cut"]:
                for layer, rows in state["marked"].items():
                    pl_module.backbone.get_submodule(layer).gain.data[rows] = 0
            self.outputs, self.rows = [], []
            self.look(trainer, pl_module)

        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                self.look(trainer, pl_module)
                assert self.rows[1] < self.rows[0] == 60
                torch.testing.assert_close(self.outputs[0], self.outputs[1], rtol=0, atol=1e-5)
                self.seen = True

    cut = {"ratio": partial(CUTS["ratio"], dense_epochs=0, regularise_epochs=1), "thresholds": CUTS["thresholds"]}
    watch = Watch()
    checks = [WeightDynamics(), WeightStandardizationCheck(action="raise"), CollapseCheck()]
    module, trainer = train(tmp_path, [cut[name](), *checks, watch], 2)
    assert watch.seen
    states = trainer.optimizers[0].state
    for layer in row_layers(module.backbone).values():
        assert states[layer.weight]["exp_avg"].shape == layer.weight.shape
        assert states[layer.gain]["step"] == 16
    # A freshly built network takes the checkpoint, without the callback.
    fresh = ReActNet18(num_classes=3, in_channels=1, width=4, blocks_per_stage=[1, 1, 1, 1])
    fresh.load_state_dict(module.backbone.state_dict())
    assert count_rows(fresh) == count_rows(module.backbone)


@pytest.mark.slow
@pytest.mark.parametrize("name", CUTS)
@pytest.mark.filterwarnings("ignore")
def test_a_run_goes_on_exactly_in_every_phase(name, tmp_path):
    options = {"precision": "bf16-mixed", "accumulate_grad_batches": 2, "enable_checkpointing": True, "epochs": 6}
    clip = partial(AdaptiveGradientClipping, 0.02)
    every = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    best = ModelCheckpoint(tmp_path, "best", monitor="val/acc", mode="max")
    module, _ = train(tmp_path, [CUTS[name](), clip(), every, best], **options)
    whole = module.state_dict()
    assert count_rows(module.backbone)[0] < 60
    # What is best is chosen anew after the cut.
    assert any(key.endswith("kept_rows") for key in torch.load(best.best_model_path, weights_only=True)["state_dict"])
    for epoch in PHASES[name]:
        again = train(tmp_path, [CUTS[name](), clip()], ckpt_path=tmp_path / f"epoch={epoch}.ckpt", **options)[0]
        state = again.state_dict()
        assert state.keys() == whole.keys()
        assert not [key for key, value in whole.items() if not torch.equal(value, state[key])], epoch


class SameEverywhere(Callback):
    """Both processes end with the same, smaller weights."""

    def on_train_end(self, trainer, pl_module):
        assert count_rows(pl_module.backbone)[0] < 60
        sums = pl_module.all_gather(torch.stack([p.detach().double().sum() for p in pl_module.parameters()]))
        assert torch.equal(sums[0], sums[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ratio", "thresholds"])
@pytest.mark.filterwarnings("ignore")
def test_two_processes_cut_the_same(name, tmp_path):
    train(tmp_path, [CUTS[name](), SameEverywhere()], 5, devices=2, strategy="ddp_fork")


@pytest.mark.parametrize("cut", [MaskSparsity, LayerThresholds])
@pytest.mark.parametrize(
    ("callbacks", "network", "sentence"),
    [
        ([Bop()], {}, "trainer.callbacks=Bop keeps something of every filter"),
        ([EMAWeightAveraging()], {}, "trainer.callbacks=EMAWeightAveraging keeps something of every filter"),
        ([StochasticWeightAveraging(1e-3)], {}, "trainer.callbacks=StochasticWeightAveraging keeps something of every"),
        ([], {"norm": "batch_norm"}, "backbone=ReActNet18 has no trained gains"),
        ([], {"group_size": 2}, "has no residual units of one group"),
    ],
)
def test_what_does_not_go_together(cut, callbacks, network, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence):
        train(tmp_path, [cut(), *callbacks], network=network)


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        (lambda: MaskSparsity(ratio=1.0), "ratio=1.0 must be greater than 0 and less than 1"),
        (lambda: MaskSparsity(strength=0), "strength=0 and threshold=0.01 must be greater than 0"),
        (lambda: MaskSparsity(regularise_epochs=0), "regularise_epochs=0 must be at least 1"),
        (lambda: MaskSparsity(mask_epochs=2), "mask_epochs=2 is for ratio=null"),
        (lambda: LayerThresholds(target=1), "target=1 must be greater than 0 and less than 1"),
        (lambda: LayerThresholds(epochs=0), "epochs=0 must be at least 1"),
        (lambda: LayerThresholds(speed=0), "speed=0 must be a finite number greater than 0"),
        (lambda: LayerThresholds(end_temperature=0.6), "end_temperature=0.6 must be"),
    ],
)
def test_mistakes(mistake, sentence):
    with pytest.raises(InputError, match=sentence):
        mistake()


def test_a_cut_needs_epochs_after_it(tmp_path):
    with pytest.raises(InputError, match="epochs=4 of LayerThresholds leaves none of the 4 epochs"):
        train(tmp_path, [LayerThresholds(epochs=4)])


@pytest.mark.parametrize("first", [MaskSparsity, LayerThresholds])
def test_two_that_cut_do_not_go_together(first, tmp_path):
    with pytest.raises(InputError, match="both cut rows; remove one"):
        train(tmp_path, [first(), LayerThresholds() if first is MaskSparsity else MaskSparsity()])


@pytest.mark.parametrize("cut", [MaskSparsity, LayerThresholds])
@pytest.mark.filterwarnings("ignore")
def test_a_run_that_ends_before_its_cut_says_so(cut, tmp_path, caplog):
    with caplog.at_level("INFO"):
        train(tmp_path, [cut()], 1, limit_train_batches=1, limit_val_batches=0)
    assert f"{cut.__name__} has cut nothing: the run ended after 1 epochs, and rows are cut after 1." in caplog.text


@pytest.mark.filterwarnings("ignore")
def test_averages_of_a_network_that_has_lost_rows(tmp_path):
    network = ReActNet18(num_classes=3, in_channels=1, width=4, blocks_per_stage=[1, 1, 1, 1])
    remove_rows(network, {"body.0.0.convolution": [0]})
    network.body[1][0].convolution.set_mask(torch.rand(8, 4, 3, 3) < 0.5)
    torch.save(network.state_dict(), tmp_path / "start.pt")
    options = {"init_from": tmp_path / "start.pt", "limit_train_batches": 2, "epochs": 1}
    with pytest.raises(InputError, match="EMAWeightAveraging averages all buffers, and those that say which rows"):
        train(tmp_path, [EMAWeightAveraging(decay=0.9)], **options)
    module, _ = train(tmp_path, [EMAWeightAveraging(decay=0.9, use_buffers=False)], **options)
    layers = row_layers(module.backbone)
    assert layers["body.0.0.convolution"].kept_rows.tolist() == [1, 2, 3]
    assert torch.equal(layers["body.1.0.convolution"].mask, network.body[1][0].convolution.mask)

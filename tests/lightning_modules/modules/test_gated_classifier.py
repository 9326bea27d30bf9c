"""Training of gates beside their network: the two losses, the cool-down, what is logged, and from where it starts."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader, TensorDataset

from bnfree.backbones import ReActNet18
from bnfree.backbones.gated_unit import GatedUnit
from bnfree.errors import InputError
from bnfree.lightning_modules.modules.gated_classifier import GatedClassifier

SIZES = {"num_classes": 3, "width": 4, "in_channels": 1, "blocks_per_stage": [1, 1, 1, 1]}


class Watch(Callback):
    """Gradients of the predictors, step by step."""

    def __init__(self):
        self.moved = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        units = [module for module in pl_module.modules() if isinstance(module, GatedUnit)]
        self.moved.append(any(bool(p.grad.any()) for unit in units for p in unit.gate.parameters()))


def loader():
    images = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(images, torch.arange(8) % 3), 4)


@pytest.mark.filterwarnings("ignore")
def test_gates_learn_until_the_cool_down_from_a_network_without_gates(tmp_path):
    torch.manual_seed(0)
    plain = ReActNet18(**SIZES)
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    network = ReActNet18(**SIZES, gating=True)
    module = GatedClassifier(
        network, mass=0.3, mask_weight=300, cool_down=0.25, init_from=tmp_path / "plain.pt", calibration="none",
        optimizer=partial(torch.optim.SGD, lr=0.5),
    )  # fmt: skip
    watch = Watch()
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=[watch],
    )  # fmt: skip
    trainer.fit(module, loader(), loader())
    assert watch.moved == [True, True, True, False]
    units = [unit for unit in network.modules() if isinstance(unit, GatedUnit)]
    found = trainer.callback_metrics
    every = sum(unit.ops[0] for unit in units)
    predictors = sum(unit.gate.predictor.weight.numel() for unit in units)
    # With so large a weight three steps are enough to switch something off.
    assert 0 < found["val/active_share"] < 0.9
    assert predictors < found["val/active_ops"] < every + predictors
    assert all(unit.gate.loss is None for unit in units)


@pytest.mark.parametrize(
    ("options", "said"), [({"mass": 0}, "mass=0"), ({"cool_down": 1}, "cool_down=1"), ({"mask_weight": -1}, "mask_w")]
)
def test_values_out_of_range_are_named(options, said):
    with pytest.raises(InputError, match=f"^{said}"):
        GatedClassifier(ReActNet18(**SIZES, gating=True), **options)


def test_a_network_without_gates_is_refused():
    with pytest.raises(InputError, match="backbone=ReActNet18 has no gates; set .*gating to true"):
        GatedClassifier(ReActNet18(**SIZES))

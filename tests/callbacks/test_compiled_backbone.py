"""Compilation in place: the same names, the same arithmetic."""

import copy

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from bnfree.backbones.residual import ReActNet, ResidualUnit, Stem, Variant
from bnfree.callbacks import CompiledBackbone
from bnfree.errors import InputError
from bnfree.lightning_modules import ImageClassifier


class TwoUnits(ReActNet):
    """The smallest network with all kinds of layers: what compiles it compiles the larger ones."""

    def __init__(self):
        variant = Variant("bn_free", True, binary_shortcut=False, alpha=0.5, reference=False, estimator="approx")
        stem = Stem(3, 2, 3, 1, False, variant)
        body = torch.nn.Sequential(
            ResidualUnit(2, 2, 3, stride=1, projection=False, beta=1.0, variant=variant),
            ResidualUnit(2, 4, 3, stride=2, projection=True, beta=0.9, variant=variant),
        )
        super().__init__(4, variant, stem, body)


def trained(callbacks, **options):
    torch.manual_seed(0)
    module = ImageClassifier(TwoUnits(), calibration="none").double()
    images = torch.randn(8, 3, 8, 8, dtype=torch.float64)
    loader = DataLoader(TensorDataset(images, torch.arange(8) % 4), batch_size=4)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", callbacks=callbacks, precision="64-true", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(module, loader)
    return module


@pytest.fixture
def compilations(monkeypatch):
    """Counts what is compiled, in place of the C++ compiler."""
    calls = []

    def compile(self, *arguments, **options):
        calls.append(options)
        forward = torch.compile(self._call_impl, backend="aot_eager", fullgraph=options["fullgraph"])
        self._compiled_call_impl = forward

    monkeypatch.setattr(torch.nn.Module, "compile", compile)
    return calls


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_training_is_the_same_and_so_are_the_names(compilations):
    compiled, plain = trained([CompiledBackbone(fullgraph=True)]), trained([])
    assert len(compilations) == 1
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[key], value, rtol=1e-9, atol=1e-12)
    assert copy.deepcopy(compiled.backbone)._compiled_call_impl is None


@pytest.mark.slow
def test_options_reach_torch(compilations):
    trained([CompiledBackbone(mode="default", dynamic=False)])
    assert compilations == [{"mode": "default", "fullgraph": False, "dynamic": False}]


def test_unknown_mode_is_refused():
    with pytest.raises(InputError, match="mode='fastest' is not known to torch.compile; choose one of default"):
        CompiledBackbone(mode="fastest")


def test_module_without_backbone_is_refused():
    with pytest.raises(InputError, match="LightningModule has no module backbone"):
        CompiledBackbone().setup(Trainer(logger=False, accelerator="cpu"), LightningModule(), "fit")

"""No training step asks the device for a value: a GPU computes one step while the process prepares the next."""

from functools import partial

import pytest
import torch
from built_callbacks import built
from meta_device import META, three_steps
from torch.nn import functional as F

import bnfree.callbacks
from bnfree.backbones import NFResNet18, ReActNet18, ReActNetA
from bnfree.callbacks import AdaptiveGradientClipping, NonFiniteStop, Throughput, TrainingBar
from bnfree.clipping import adaptive_clip_grad_
from bnfree.lightning_modules import DistilledClassifier, ImageClassifier
from bnfree.plugins import BUILT_IN, imported, names, resolve
from bnfree.tickets.key_files import write_owner_key
from bnfree.tickets.keyed import new_key

SMALL = {"num_classes": 3, "in_channels": 1, "width": 4, "blocks_per_stage": [1, 1, 1, 1]}
NETWORKS = [
    *({"norm": name} for name in names("normalizer")),
    *({"estimator": name, "weight_estimator": name, "lean": lean}
      for name in names("sign_estimator") for lean in (True, False)),
    *({"weight_transform": name} for name in names("weight_transform")),
    *({"head": name} for name in names("head")),
    *({"fast": [name]} for name in ("int8_forward", "bf16_backward", "half_saved")),
    {"reference": True}, {"binary_weights": False}, {"binary_shortcut": True}, {"slopes": "power_of_two"},
    {"gating": True}, {"attention": True}, {"group_size": 4},
]  # fmt: skip
# They read values before the first step or between two epochs; NonFiniteStop has a way of its own on CUDA devices.
READ_VALUES = {
    "Calibration", "EarlyBird", "LayerThresholds", "MaskSparsity", "MultiPrizeTicket", "NonFiniteStop",
    "SignalPropagation", "WeightStandardizationCheck",
}  # fmt: skip
# Not for a run of this kind, see tests/test_composition.py; the bar has a test below.
ELSEWHERE = {"CompiledBackbone", "ForgettingScores", "ScheduleFree", "TrainingBar"}


def classifier(kind=ImageClassifier, network=(), **options):
    return kind(ReActNet18(**{**SMALL, **dict(network)}), calibration="none", **options)


def step(network, optimizer=torch.optim.Adam, channels=1):
    network.to(META).train()
    update = optimizer(network.parameters(), lr=1e-3)
    if hasattr(update, "train"):
        update.train()
    images, labels = torch.empty(2, channels, 16, 16, device=META), torch.zeros(2, dtype=torch.long, device=META)
    for _ in range(2):
        F.cross_entropy(network(images), labels).backward()
        adaptive_clip_grad_(list(network.parameters()), clip_factor=0.02)
        update.step()
    network.eval()
    with torch.no_grad():
        assert network(images).device == META
    assert {p.grad.device for p in network.parameters() if p.grad is not None} == {META}


@pytest.mark.slow
@pytest.mark.parametrize("options", NETWORKS, ids=str)
def test_networks(options):
    step(ReActNet18(**{**SMALL, **options}))


@pytest.mark.slow
@pytest.mark.parametrize(
    "network",
    [partial(NFResNet18, 3, width=4), partial(NFResNet18, 3, width=4, norm="batch_norm"), partial(ReActNetA, 3)],
)
def test_other_backbones(network):
    step(network(in_channels=3), channels=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", names("optimizer"))
def test_optimizers(name):
    if name == "schedule_free":
        pytest.importorskip("schedulefree")
    step(ReActNet18(**SMALL), resolve("optimizer", name))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in bnfree.callbacks.__all__ if name not in READ_VALUES | ELSEWHERE])
@pytest.mark.filterwarnings("ignore")
def test_callbacks(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "OwnershipTriggers":
        write_owner_key(new_key(), tmp_path / "owner.key")
    callback, network = built(name)
    three_steps(classifier(network=network), callback)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BUILT_IN["model"] if name != "zeroth_order"])
@pytest.mark.filterwarnings("ignore")
def test_classifiers(name, monkeypatch):
    place = "bnfree.lightning_modules.modules.robust_classifiers.normalization_of"
    monkeypatch.setattr(place, lambda trainer: ([0.5], [0.5]))
    kind = imported(BUILT_IN["model"][name], "model")
    three_steps(classifier(kind, {"gating": True} if name == "channel_gating" else {}))


@pytest.mark.filterwarnings("ignore")
def test_the_default_training_and_a_taught_one():
    three_steps(classifier(), AdaptiveGradientClipping(0.02, log_fraction=True), Throughput())
    teacher = ReActNet18(**SMALL).to(META)
    three_steps(classifier(DistilledClassifier, teacher=teacher, temperature=2.0, hard_label_weight=0.1))


@pytest.mark.filterwarnings("ignore")
def test_what_waits_is_found():
    with pytest.raises(RuntimeError, match="item"):
        three_steps(classifier(), NonFiniteStop())


@pytest.mark.filterwarnings("ignore")
def test_the_bar_of_the_command_does_not_wait_either(capsys):
    three_steps(classifier(), Throughput(), TrainingBar(refresh_rate=4), enable_progress_bar=True)
    # Lightning's own does, and one that is drawn.
    for bars in ([], [TrainingBar(refresh_rate=1)]):
        with pytest.raises(RuntimeError, match="item"):
            three_steps(classifier(), *bars, enable_progress_bar=True)

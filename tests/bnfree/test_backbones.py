"""The networks: sizes, promises of the BN-free form, stems, betas, refusals."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.backbones.residual import ResidualUnit
from bnfree.errors import InputError

NORMS = ["bn_free", "batch_norm", "none"]
NETWORKS = [pytest.param(ReActNet18, 8, id="18"), pytest.param(ReActNetA, 4, id="A")]
PARAMETERS = [
    (ReActNet18, "bn_free", 1000, "imagenet", 11_699_624),
    (ReActNet18, "batch_norm", 1000, "imagenet", 11_704_424),
    (ReActNet18, "none", 1000, "imagenet", 11_694_824),
    (ReActNet18, "bn_free", 10, "cifar", 11_184_074),
    (ReActNet18, "batch_norm", 10, "cifar", 11_188_874),
    (ReActNet18, "none", 10, "cifar", 11_179_274),
    (ReActNetA, "bn_free", 1000, "imagenet", 29_332_648),
    (ReActNetA, "batch_norm", 1000, "imagenet", 29_343_592),
    (ReActNetA, "none", 1000, "imagenet", 29_321_704),
    (ReActNetA, "bn_free", 10, "cifar", 28_317_898),
    (ReActNetA, "bn_free", 100, "cifar", 28_410_148),
]


def small(kind: type[nn.Module], channels: int, seed: int = 0, **options: object) -> nn.Module:
    torch.manual_seed(seed)
    return kind(**{"num_classes": 10, "width": channels, "stem": "cifar", **options})


def images(count: int, size: int = 32, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


def units(network: nn.Module) -> list[ResidualUnit]:
    return [module for module in network.modules() if isinstance(module, ResidualUnit)]


@pytest.mark.parametrize(("kind", "norm", "num_classes", "stem", "count"), PARAMETERS)
@pytest.mark.parametrize("binary_weights", [True, False])
def test_parameter_counts_of_the_published_networks(kind, norm, num_classes, stem, count, binary_weights):
    with torch.device("meta"):
        network = kind(num_classes=num_classes, norm=norm, stem=stem, binary_weights=binary_weights)
    assert sum(p.numel() for p in network.parameters()) == count


# ---- what the absence of batch statistics promises ------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "width"), NETWORKS)
@pytest.mark.parametrize("binary_weights", [True, False])
def test_an_image_does_not_see_its_neighbours_nor_the_mode(kind, width, binary_weights):
    network = small(kind, width, binary_weights=binary_weights)
    batch = images(64)
    with torch.no_grad():
        together = network(batch)
        assert torch.equal(network.eval()(batch), together)
        # PyTorch rounds a convolution differently for one image and for 64. In float32 that moves an activation across
        # its threshold in about one image of 64, as in every binary network; float64 shows that nothing else does.
        network, batch = network.double(), batch.double()
        together = network(batch)
        alone = torch.cat([network(image[None]) for image in batch])
        assert (together - alone).abs().max() <= 1e-10 * together.abs().max()


@pytest.mark.parametrize(("kind", "width"), NETWORKS)
@pytest.mark.parametrize("binary_weights", [True, False])
def test_float32_moves_few_images_across_a_threshold(kind, width, binary_weights):
    network = small(kind, width, binary_weights=binary_weights).eval()
    batch = images(64)
    with torch.no_grad():
        together = network(batch)
        alone = torch.cat([network(image[None]) for image in batch])
    moved = (together - alone).abs().amax(1) > 1e-5 * together.abs().max()
    assert int(moved.sum()) <= 3


def test_the_batch_norm_twin_does_see_them():
    network = small(ReActNet18, 8, norm="batch_norm")
    batch = images(8)
    assert not torch.allclose(network(batch)[:4], network(batch[:4]), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("kind", "width"), NETWORKS)
def test_accumulated_micro_batches_give_the_gradient_of_the_whole(kind, width):
    network = small(kind, width).double()
    batch, targets = images(32).double(), torch.arange(32) % 10
    F.cross_entropy(network(batch), targets).backward()
    whole = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    for part, labels in zip(batch.chunk(4), targets.chunk(4), strict=True):
        (F.cross_entropy(network(part), labels) / 4).backward()
    for (name, parameter), expected in zip(network.named_parameters(), whole, strict=True):
        assert expected.norm() > 0, name
        assert (parameter.grad - expected).norm() <= 1e-9 * expected.norm(), name


@pytest.mark.parametrize(("kind", "width"), NETWORKS)
@pytest.mark.parametrize("norm", ["bn_free", "none"])
def test_no_module_normalises(kind, width, norm):
    normalising = (
        nn.modules.batchnorm._NormBase,
        nn.GroupNorm,
        nn.LayerNorm,
        nn.RMSNorm,
        nn.LocalResponseNorm,
        nn.CrossMapLRN2d,
    )
    assert not [m for m in small(kind, width, norm=norm).modules() if isinstance(m, normalising)]
    assert [m for m in small(kind, width, norm="batch_norm").modules() if isinstance(m, normalising)]


# ---- two steps, one state dict --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "width"), NETWORKS)
@pytest.mark.parametrize("norm", NORMS)
def test_step_two_loads_step_one_strictly(kind, width, norm):
    real, binary = (small(kind, width, seed=b, norm=norm, binary_weights=bool(b)) for b in (0, 1))
    shapes = [{key: value.shape for key, value in n.state_dict().items()} for n in (real, binary)]
    assert shapes[0] == shapes[1]
    assert list(shapes[0]) == list(shapes[1])
    binary.load_state_dict(real.state_dict(), strict=True)
    batch = images(2)
    assert not torch.allclose(binary.eval()(batch), real.eval()(batch), rtol=1e-3)


def test_a_pruned_network_loads_into_a_fresh_one_and_copies():
    network = small(ReActNet18, 4)
    network.body[1][0].convolution.set_mask(torch.rand(8, 4, 3, 3) < 0.5)
    fresh = small(ReActNet18, 4, seed=1)
    fresh.load_state_dict(network.state_dict(), strict=True)
    batch = images(2)
    assert torch.equal(fresh(batch), network(batch))
    assert torch.equal(copy.deepcopy(network)(batch), network(batch))


@pytest.mark.parametrize("shortcut", [None, True, False])
@pytest.mark.parametrize("reference", [True, False])
def test_the_shortcut_convolution_is_binary_on_request(shortcut, reference):
    network = small(ReActNet18, 4, binary_shortcut=shortcut, reference=reference)
    expected = reference if shortcut is None else shortcut
    projections = [unit.projection for unit in units(network) if unit.projection is not None]
    assert [p.binary_weights for p in projections] == [expected] * 3
    assert not network.stem.convolution.binary_weights


# ---- shapes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "width"), NETWORKS)
def test_stems(kind, width):
    cifar, imagenet = small(kind, width), small(kind, width, stem="imagenet")
    assert cifar.stem(images(1)).shape[2:] == (32, 32)
    assert imagenet.stem(images(1)).shape[2:] == ((8, 8) if kind is ReActNet18 else (16, 16))
    assert cifar.stem.convolution.weight.shape == (width, 3, 3, 3)
    assert imagenet.stem.convolution.weight.shape[2:] == ((7, 7) if kind is ReActNet18 else (3, 3))


@pytest.mark.parametrize(("kind", "width"), NETWORKS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("size", [(8, 8), (33, 45), (50, 31), (1, 1)])
def test_images_of_any_size(kind, width, norm, stem, size):
    network = small(kind, width, norm=norm, stem=stem, num_classes=3, in_channels=1)
    x = torch.randn(2, 1, *size)
    y = network(x)
    assert y.shape == (2, 3)
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


# ---- initialisation, training, tracing ------------------------------------------------------------------------------


def test_reference_starts_with_positive_binary_weights():
    convolution = small(ReActNet18, 4, reference=True).body[0][0].convolution
    assert convolution.weight.min() >= 0
    assert convolution.weight.max() <= 1e-3
    assert small(ReActNet18, 4).body[0][0].convolution.weight.min() < 0


@pytest.mark.parametrize(("kind", "width"), NETWORKS)
@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_a_few_steps_fit_a_few_images(kind, width, norm):
    network = small(kind, width, norm=norm)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    batch, targets = images(16, 32), torch.arange(16) % 10
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(batch), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < (0.85 if norm == "none" else 0.75) * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "width"), NETWORKS)
def test_torch_compile_and_export(kind, width):
    torch._dynamo.reset()
    network = small(kind, width).double()
    batch = images(2, 16).double()
    gradients = []
    for forward in (network, torch.compile(network, fullgraph=True, backend="aot_eager")):
        network.zero_grad()
        forward(batch).square().sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
    for eager, traced in zip(*gradients, strict=True):
        torch.testing.assert_close(eager, traced)
    exported = torch.export.export(network.eval(), (batch,)).module()
    torch.testing.assert_close(exported(batch), network(batch))


@pytest.mark.parametrize(("kind", "width"), NETWORKS)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"norm": "weird"}, "norm='weird'.*bn_free.*batch_norm.*none"),
        ({"norm": "layer"}, "norm='layer'.*'layer_norm'"),
        ({"head": "linar"}, "head='linar'.*'linear'"),
        ({"stem": "tiny"}, "stem='tiny'.*cifar.*imagenet"),
        ({"estimator": "magic"}, "estimator='magic'.*approx"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"width": 0}, "width=0"),
        ({"in_channels": -1}, "in_channels=-1"),
        ({"alpha": 0}, "alpha=0"),
        ({"alpha": float("nan")}, "alpha=nan"),
    ],
)
def test_wrong_arguments(kind, width, options, words):
    with pytest.raises(InputError, match=words) as caught:
        small(kind, width, **options)
    assert "\n" not in str(caught.value)

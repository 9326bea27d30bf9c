"""The importer against an independent implementation of the public networks: values, gradients, refusals."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.reference import load_checkpoint

from .public_networks import NORMS, Conv, Public18, PublicA
from .public_weights import estimate_statistics, public_file, randomized

TWELVE = [
    pytest.param(arch, norm, binary, id=f"{arch}-{norm}-{'both' if binary else 'activations'}")
    for arch in ("18", "A")
    for norm in NORMS
    for binary in (True, False)
]
OUR_NORM = {"bn": "batch_norm", "none": "none", "bf": "bn_free"}
BOUND = 1e-9
# The expected gradients pass through the importer, which rounds them to float32.
GRADIENT_BOUND = 1e-6
SMALL = {"18": {"width": 8, "num_classes": 7}, "A": {"width": 4, "num_classes": 7}}
PARAMETERS = {
    ("18", "bn"): 11_704_424,
    ("18", "none"): 11_694_824,
    ("18", "bf"): 11_699_624,
    ("A", "bn"): 29_343_592,
    ("A", "none"): 29_321_704,
    ("A", "bf"): 29_332_648,
}
TENSORS = {
    ("18", "bn"): 186,
    ("18", "none"): 86,
    ("18", "bf"): 106,
    ("A", "bn"): 298,
    ("A", "none"): 138,
    ("A", "bf"): 170,
}


def saved(network: nn.Module, folder: Path) -> Path:
    path = folder / "model_best.pth.tar"
    torch.save(public_file(network), path)
    return path


def images(size: int, count: int = 6, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, channels, size, size, generator=generator, dtype=torch.float64)


def run(network: nn.Module, batch: Tensor) -> Tensor:
    network.zero_grad()
    logits = network(batch)
    # A fixed direction instead of a loss: cross-entropy saturates on the large logits of the network without norm.
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2)).to(logits.dtype)
    (logits * direction).sum().backward()
    return logits.detach()


def in_our_names(public: nn.Module, binary: bool, stem: str) -> dict[str, Tensor]:
    """The public network's gradients under our names, carried there by the importer as if they were weights."""
    gradients = {key: value.clone() for key, value in public.state_dict().items()}
    gradients |= {key: p.grad for key, p in public.named_parameters()}
    return load_checkpoint(gradients, binary_weights=binary, stem=stem).double().state_dict()


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm().clamp(min=1e-30)).item()


def same_logits(ours: nn.Module, public: nn.Module, batch: Tensor) -> bool:
    return relative(ours.double()(batch), public.double()(batch)) <= BOUND


def compare(public: nn.Module, ours: nn.Module, binary: bool, stem: str, batch: Tensor) -> None:
    # In float64: in float32, rounding moves one activation in about 10^7 across its threshold, and the logits with it.
    public.double(), ours.double()
    expected, got = run(public, batch), run(ours, batch)
    assert (got - expected).abs().max() <= BOUND * expected.abs().max()
    gradients = in_our_names(public, binary, stem)
    for name, parameter in ours.named_parameters():
        assert gradients[name].norm() > 0, f"{name} has no gradient: nothing would be compared"
        assert relative(parameter.grad.double(), gradients[name]) <= GRADIENT_BOUND, name


@pytest.mark.parametrize(("arch", "norm", "binary"), TWELVE)
@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_values_and_gradients_match_the_public_network(arch, norm, binary, stem, tmp_path):
    public = randomized(arch, norm, binary, imagenet=stem == "imagenet", **SMALL[arch])
    path = saved(public, tmp_path)
    given = stem if arch == "A" else None
    ours = load_checkpoint(path, binary_weights=binary, stem=given)
    assert type(ours) is {"18": ReActNet18, "A": ReActNetA}[arch]
    assert (ours.norm, ours.num_classes, ours.in_channels) == (OUR_NORM[norm], 7, 3)
    size = 64 if stem == "imagenet" else 32
    compare(public.eval(), ours.eval(), binary, stem, images(size))
    if norm == "bn":
        compare(public.train(), ours.train(), binary, stem, images(size))
        after = load_checkpoint(public.state_dict(), binary_weights=binary, stem=stem).double().state_dict()
        for name, value in ours.state_dict().items():
            torch.testing.assert_close(value, after[name], rtol=1e-6, atol=1e-6, check_dtype=False, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "norm", "binary"), TWELVE)
def test_published_sizes(arch, norm, binary, tmp_path):
    public = randomized(arch, norm, binary)
    ours = load_checkpoint(saved(public, tmp_path), binary_weights=binary)
    assert sum(p.numel() for p in ours.parameters()) == PARAMETERS[arch, norm]
    compare(public.eval(), ours.eval(), binary, "imagenet", images(64, count=2))


@pytest.mark.parametrize(("arch", "norm", "binary"), TWELVE)
def test_parameter_and_tensor_counts_of_the_published_networks(arch, norm, binary):
    with torch.device("meta"):
        public = {"18": Public18, "A": PublicA}[arch](norm, binary)
    assert sum(p.numel() for p in public.parameters()) == PARAMETERS[arch, norm]
    assert len(public.state_dict()) == TENSORS[arch, norm]


def test_three_published_sizes_load_with_their_counts():
    for norm, count in (("bf", 11_184_074), ("bn", 11_188_874), ("none", 11_179_274)):
        ours = load_checkpoint(Public18(norm, True, num_classes=10, imagenet=False).state_dict())
        assert sum(p.numel() for p in ours.parameters()) == count


def test_any_width_and_image_channels():
    public = randomized("18", "bf", True, width=4, in_channels=1, num_classes=3, imagenet=False).eval()
    ours = load_checkpoint(public.state_dict())
    assert ours.in_channels == 1
    batch = images(16, channels=1)
    assert same_logits(ours, public, batch)


def test_alpha_is_the_published_one_unless_given():
    weights = randomized("18", "bf", True, imagenet=False, **SMALL["18"]).state_dict()
    assert load_checkpoint(weights).body[0][0].alpha == 0.2
    network = load_checkpoint(weights, alpha=0.25)
    assert network.body[0][0].alpha == 0.25
    assert network.body[0][2].beta.item() == pytest.approx((1 + 0.25**2) ** -0.5)


def test_loading_changes_neither_the_dict_nor_the_random_generator():
    weights = randomized("A", "bn", True, **SMALL["A"]).state_dict()
    weights["feature.1.binary_3x3.weights"] = weights.pop("feature.1.binary_3x3.weight").view(-1, 1)
    copies = {key: value.clone() for key, value in weights.items()}
    state = torch.get_rng_state()
    network = load_checkpoint(weights)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert list(weights) == list(copies)
    assert all(torch.equal(weights[key], copies[key]) for key in copies)
    assert network.training


# ---- liuzechun/ReActNet ---------------------------------------------------------------------------------------------


def flattened(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Binary weights as (numel, 1) under `weights`, as liuzechun's ReActNet-A stores step 2."""
    return OrderedDict(
        (key + "s", value.reshape(-1, 1)) if ".binary_" in key and key.endswith(".weight") else (key, value)
        for key, value in weights.items()
    )


def make_binary(network: nn.Module) -> None:
    with torch.no_grad():
        for name, module in network.named_modules():
            if isinstance(module, Conv) and "binary_" in name:
                module.weight.copy_(torch.where(module.weight >= 0, 1.0, -1.0))
    estimate_statistics(network, torch.Generator().manual_seed(3))
    network.eval()


@pytest.mark.parametrize("arch", ["18", "A"])
@pytest.mark.parametrize("weights", ["latent", "already binary"])
@pytest.mark.parametrize("binary", [True, False])
def test_flattened_weights(arch, weights, binary, tmp_path):
    real_shortcut = {"binary_downsample": False} if arch == "18" else {}
    public = randomized(arch, "bn", binary, **SMALL[arch], **real_shortcut).eval()
    if weights == "already binary":
        make_binary(public)
    path = tmp_path / "model_best.pth.tar"
    torch.save({"state_dict": flattened({f"module.{k}": v for k, v in public.state_dict().items()})}, path)
    ours = load_checkpoint(path, binary_weights=binary).eval()
    compare(public, ours, binary, "imagenet", images(64))


def test_four_dimensional_weights_under_the_old_name():
    public = randomized("18", "bn", True, **SMALL["18"], binary_downsample=False).eval()
    renamed = {k + "s" if k.endswith("binary_conv.weight") else k: v for k, v in public.state_dict().items()}
    ours = load_checkpoint(renamed).eval()
    assert same_logits(ours, public, images(64))


def test_already_binary_weights_keep_their_real_shortcut_and_have_scale_one():
    public = randomized("18", "bn", True, **SMALL["18"], binary_downsample=False).eval()
    make_binary(public)
    ours = load_checkpoint(public.state_dict()).eval()
    assert same_logits(ours, public, images(64))
    convolution = ours.body[0][0].convolution
    assert convolution.binary_weights
    assert torch.equal(convolution.effective_weight(), convolution.weight)


@pytest.mark.parametrize("shortcut", [True, False])
def test_the_argument_decides_about_the_shortcut_of_latent_weights(shortcut):
    public = randomized("18", "bn", True, **SMALL["18"], binary_downsample=shortcut).eval()
    batch = images(64)
    ours = load_checkpoint(public.state_dict(), binary_shortcut=shortcut).eval()
    assert same_logits(ours, public, batch)
    other = load_checkpoint(public.state_dict(), binary_shortcut=not shortcut).eval()
    assert relative(other.double()(batch), public(batch)) > 0.01
    default = load_checkpoint(public.state_dict())
    assert default.body[1][0].projection.binary_weights


def test_the_readme_reads_a_published_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(randomized("18", "bf", True, **SMALL["18"]), tmp_path)
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (code,) = [text for text in readme.split("```python\n")[1:] if text.startswith("from bnfree.reference")]
    names: dict[str, object] = {}
    exec(code.partition("```")[0], names)
    assert isinstance(names["network"], ReActNet18)

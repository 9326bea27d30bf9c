"""What the importer recognises and what it refuses: one sentence each, and no code of a file ever runs."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.errors import InputError
from bnfree.reference import is_public_checkpoint, load_checkpoint

from .public_weights import public_file, randomized

SMALL = {"18": {"width": 8, "num_classes": 7}, "A": {"width": 4, "num_classes": 7}}


def test_public_checkpoints_are_recognised_by_their_keys():
    public = randomized("18", "none", True, **SMALL["18"])
    assert is_public_checkpoint(public.state_dict())
    assert is_public_checkpoint(public_file(public))
    assert is_public_checkpoint(public_file(randomized("A", "bf", True, **SMALL["A"]))["state_dict"])
    assert is_public_checkpoint({"module.layer1.0.prelu.L_alpha": torch.zeros(8)})
    ours = ReActNet18(width=4).state_dict()
    assert not is_public_checkpoint(ours)
    assert not is_public_checkpoint({"state_dict": {f"backbone.{key}": value for key, value in ours.items()}})
    assert not is_public_checkpoint({"conv1.weight": torch.zeros(1), "layer1.0.conv1.weight": torch.zeros(1)})
    assert not is_public_checkpoint({})


def refused(argument: object, *words: str, **options: object) -> None:
    with pytest.raises(InputError) as caught:
        load_checkpoint(argument, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    # One sentence: no full stop followed by another one.
    assert ". " not in message
    for word in words:
        assert word in message


def small(arch: str = "18", norm: str = "bf") -> dict[str, Tensor]:
    return dict(randomized(arch, norm, True, imagenet=False, **SMALL[arch]).state_dict())


class Payload:
    """A pickle that writes a file when it is opened without care."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("way", ["torch.save", "old torch.save", "pickle"])
def test_a_pickle_with_code_does_not_run(way, tmp_path):
    path, marker = tmp_path / "evil.pth.tar", tmp_path / "ran"
    content = {**public_file(randomized("18", "bf", True, **SMALL["18"])), "best_top1_acc": Payload(marker)}
    if way == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": {"conv1.weight": Payload(marker)}}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=way == "torch.save")
    refused(path, "path_or_dict=", "evil.pth.tar")
    assert not marker.exists()
    if way == "pickle":
        pickle.loads(path.read_bytes())
        assert marker.exists(), "the payload would not have run anyway, so that the test proves nothing"


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("new_format", [True, False])
def test_truncated_files(share, new_format, tmp_path):
    buffer = io.BytesIO()
    torch.save(
        public_file(randomized("18", "bf", True, **SMALL["18"])), buffer, _use_new_zipfile_serialization=new_format
    )
    content = buffer.getvalue()[: int(share * buffer.getbuffer().nbytes)]
    path = tmp_path / "cut.pth.tar"
    path.write_bytes(content)
    refused(path, "cut.pth.tar", "damaged")
    assert path.read_bytes() == content


def test_files_in_the_old_format_are_read(tmp_path):
    torch.save(
        public_file(randomized("A", "none", True, **SMALL["A"])), tmp_path / "old", _use_new_zipfile_serialization=False
    )
    assert isinstance(load_checkpoint(str(tmp_path / "old")), ReActNetA)


def test_things_that_are_no_checkpoint(tmp_path):
    refused(tmp_path / "absent.pth.tar", "absent.pth.tar", "not a file")
    refused(tmp_path, "not a file")
    refused(None, "NoneType")
    refused([torch.zeros(1)], "list")
    refused({}, "no state dict")
    refused({"epoch": 3}, "'epoch'")
    refused({"state_dict": None}, "no state dict")
    refused({"state_dict": {3: torch.zeros(1)}}, "3")
    for name, content in (("tensor", torch.zeros(3)), ("list", [1, 2]), ("number", 3)):
        torch.save(content, tmp_path / name)
        refused(tmp_path / name, "no state dict", name)
    (tmp_path / "text").write_text("top-1 92.08\n")
    refused(tmp_path / "text", "text")


def test_unknown_architectures():
    refused(
        {"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.weight": torch.zeros(10, 512)}, "neither", "layer1.0.move0.bias"
    )
    refused(ReActNet18(width=4).state_dict(), "neither")


def test_ab_bnn():
    weights = small()
    for key in [key for key in weights if key.endswith("prelu.weight")]:
        weights[key.replace("prelu.weight", "prelu.L_alpha")] = weights.pop(key)
    del weights["layer2.0.prelu.L_alpha"]
    refused(weights, "lacks key 'layer2.0.prelu.L_alpha'")
    large = small("A")
    large["feature.1.prelu1.L_alpha"] = large.pop("feature.1.prelu1.weight")
    refused({"state_dict": {f"module.{key}": value for key, value in large.items()}}, "lacks key", "L_alpha")


@pytest.mark.parametrize(
    ("arch", "norm", "key"),
    [
        ("18", "bf", "conv1.weight"),
        ("18", "bf", "fc.weight"),
        ("18", "bf", "fc.bias"),
        ("18", "bf", "layer3.0.downsample.1.gain"),
        ("18", "bn", "layer4.3.bn1.num_batches_tracked"),
        ("18", "none", "layer2.1.move2.bias"),
        ("A", "bf", "feature.2.binary_pw_down2.weight"),
        ("A", "bf", "feature.2.binary_pw_down2.gain"),
        ("A", "bn", "feature.13.bn2.running_mean"),
        ("A", "bn", "feature.12.bn2_1.bias"),
        ("A", "none", "feature.5.binary_pw.weight"),
    ],
)
def test_missing_and_misshapen_keys_are_named(arch, norm, key):
    weights = small(arch, norm)
    value = weights.pop(key)
    refused(weights, key, "lacks")
    refused({**weights, key: value.new_zeros(*value.shape, 2)}, key, "shape")


def test_unexpected_keys_are_named():
    refused({**small(), "layer1.4.move0.bias": torch.zeros(1, 8, 1, 1)}, "unexpected", "layer1.4.move0.bias")
    weights = small("A", "bn")
    refused({**weights, "feature.1.extra": torch.zeros(1)}, "unexpected", "feature.1.extra")
    both = {**weights, "feature.1.binary_3x3.weights": weights["feature.1.binary_3x3.weight"]}
    refused(both, "unexpected", "feature.1.binary_3x3.weights")


def test_arguments_that_contradict_the_weights():
    refused(small(), "stem='imagenet'", "3x3", stem="imagenet")
    assert load_checkpoint(small(), stem="cifar").stem.pool is None
    refused(small("A"), "stem='tiny'", stem="tiny")
    refused(small(), "alpha=-1", alpha=-1)
    refused({**small(), "conv1.weight": torch.zeros(8, 3, 5, 5)}, "conv1.weight", "(8, 3, 5, 5)")
    refused({**small(), "fc.weight": torch.zeros(0, 64)}, "fc.weight")

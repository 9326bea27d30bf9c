"""The pretrained networks that come with bnfree."""

from __future__ import annotations

import re

import pytest
import torch

from bnfree.errors import InputError
from bnfree.packing import is_packed, load, pretrained_names, pretrained_path, zoo


@pytest.mark.parametrize("name", pretrained_names())
def test_every_network_says_what_is_needed_to_use_it(name):
    path = pretrained_path(name)
    assert is_packed(path)
    network = load(path, "torch")
    info = network.info
    assert None not in (info.mean, info.std, info.image_shape, info.class_names, info.accuracy, info.source_run)
    assert network(torch.zeros(1, *info.image_shape)).shape == (1, network.num_classes)
    number, unit = re.search(r"_([\d.]+)(kB|MB)$", name).groups()
    assert path.stat().st_size / {"kB": 1e3, "MB": 1e6}[unit] == pytest.approx(float(number), rel=0.01)
    table = (zoo.FOLDER / "README.md").read_text()
    row = next(line for line in table.splitlines() if f"`{name}`" in line)
    assert f"{100 * info.accuracy:.2f} %" in row
    assert "bnfree fit" in row or "bnfree recipe" in row


def test_the_beginning_of_a_name_is_enough_if_it_is_the_only_one(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    for name in ("cifar_a_10kB", "cifar_b_20kB", "digits_5kB"):
        (tmp_path / f"{name}.safetensors").touch()
    assert pretrained_names() == ["cifar_a_10kB", "cifar_b_20kB", "digits_5kB"]
    assert pretrained_path("digits") == tmp_path / "digits_5kB.safetensors"
    assert pretrained_path("cifar_b_20kB") == tmp_path / "cifar_b_20kB.safetensors"
    with pytest.raises(InputError, match="model='cifar' could be cifar_a_10kB or cifar_b_20kB"):
        pretrained_path("cifar")
    for unknown in ("imagenet", ""):
        with pytest.raises(InputError, match="is neither a file nor .* one of cifar_a_10kB, cifar_b_20kB, digits_5kB"):
            pretrained_path(unknown)


def test_other_files_are_not_packed(tmp_path):
    for content in (b"", b"\xff" * 8, b"\x04" + b"\0" * 7 + b"{}  "):
        (tmp_path / "file").write_bytes(content)
        assert not is_packed(tmp_path / "file")
    assert not is_packed(tmp_path / "missing")

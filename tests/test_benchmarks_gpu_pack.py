"""`benchmarks/gpu_pack.py` rehearsed on a CPU at toy size."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from bnfree.packing import load

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks/gpu_pack.py"


@pytest.fixture
def gpu_data(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gpu_data

    return gpu_data


def run(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.slow
def test_every_part_runs_and_nothing_is_wrong(tmp_path):
    done = run("--output", tmp_path, "--toy", "--device", "cpu", "--minutes", 30)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "gpu_pack.jsonl").read_text().splitlines()]
    assert [line for line in lines if "error" in line or line.get("ok") is False] == []
    assert {line["part"] for line in lines} == {"run", "correctness", "speed", "recipe", "screens", "controls"}
    assert lines[-1]["name"] == "done"
    judged = {line["name"] for line in lines if "ok" in line}
    assert {"adaptive clipping", "fused Adam", "resume, lean", "ReActNetA, 64 pixels, density 0.2: lean"} <= judged
    assert load(tmp_path / "cifar10.safetensors")(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.slow
def test_images_are_named_before_anything_runs(tmp_path):
    done = run("--output", tmp_path / "output", "--device", "cpu", "--archive", tmp_path / "none.tar")
    assert done.returncode == 2
    assert "none.tar" in done.stderr
    assert not (tmp_path / "output").exists()


def test_the_archive_gives_the_last_images_of_every_class_to_the_test(tmp_path, gpu_data):
    with tarfile.open(tmp_path / "images.tar.xz", "w:xz") as archive:
        for label, name in enumerate(("b", "a")):
            for number in (10, 9, 1):
                buffer = io.BytesIO()
                Image.new("RGB", (8, 8), (number, 255, label)).save(buffer, "PNG")
                member = tarfile.TarInfo(f"train/{name}/{number}.png")
                member.size = buffer.tell()
                buffer.seek(0)
                archive.addfile(member, buffer)
    train, test, names = gpu_data.read_archive(tmp_path / "images.tar.xz", 2)
    assert names == ["a", "b"]
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 0, 1, 1], [0, 1])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (gpu_data.MEAN, gpu_data.STD))
    pixels = [((images * std + mean) * 255).round()[:, 0, 0, 0].tolist() for images in (train.images, test.images)]
    assert pixels == [[1, 9, 1, 9], [10, 10]]


def test_batches_are_shifted_and_in_turn_mirrored_images(gpu_data):
    images = gpu_data.Images(torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(6))
    batches = gpu_data.Batches(images, 2)
    mirrored = []
    for _ in range(4):
        epoch = list(batches)
        labels = torch.cat([labels for _, labels in epoch])
        assert sorted(labels.tolist()) == list(range(6))
        found = [None] * 6
        for image, label in zip(torch.cat([b for b, _ in epoch]), labels.tolist(), strict=True):
            padded = torch.nn.functional.pad(images.images[label : label + 1], [4] * 4, mode="reflect")[0]
            crops = [padded[:, i : i + 16, j : j + 16] for i in range(9) for j in range(9)]
            assert any(torch.equal(image, crop if not flip else crop.flip(-1)) for crop in crops for flip in (0, 1))
            found[label] = not any(torch.equal(image, crop) for crop in crops)
        mirrored.append(found)
    assert mirrored[0] == mirrored[2]
    assert mirrored[1] == mirrored[3]
    assert [a != b for a, b in zip(mirrored[0], mirrored[1], strict=True)] == [True] * 6

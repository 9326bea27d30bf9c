"""Pictures through a packed network, also in a process that has torch, numpy, safetensors and Pillow alone."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bnfree.errors import InputError
from bnfree.packing import load, pretrained_path

ALONE = """
import sys
TAKEN_AWAY = {"lightning", "pytorch_lightning", "torchmetrics", "tensorboard", "matplotlib", "sklearn", "jsonargparse",
              "torchvision", "yaml", "torchcodec", "scipy", "pandas", "onnx"}
class NotThere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in TAKEN_AWAY:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, NotThere())
from bnfree.packing import load, pretrained_path
network = load(pretrained_path("cifar10_reactnet18_w16"), sys.argv[2])
for guess in network.predict(sys.argv[1], top=3):
    print(guess.label, f"{guess.probability:.6f}")
assert "torch._dynamo" not in sys.modules
assert not {"bnfree.datamodules", "bnfree.lightning_modules", "bnfree.callbacks"} & set(sys.modules)
"""


@pytest.fixture
def network():
    return load(pretrained_path("cifar10_reactnet18_w16"), "torch")


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)


@pytest.mark.parametrize("engine", ["torch", pytest.param("numba", marks=pytest.mark.slow)])
def test_prediction_needs_no_framework(network, pixels, tmp_path, engine):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    words = [sys.executable, "-c", ALONE, str(tmp_path / "a.png"), engine]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    said = [line.split() for line in done.stdout.splitlines()]
    expected = network.predict(pixels, top=3)
    assert [label for label, _ in said] == [guess.label for guess in expected]
    assert [float(p) for _, p in said] == pytest.approx([guess.probability for guess in expected], abs=1e-4)


def test_files_pictures_arrays_and_tensors_are_the_same(network, pixels, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(pixels).save("a.png")
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    given = ["a.png", Path("a.png"), Image.fromarray(pixels), pixels, tensor, np.dstack([pixels, pixels[..., :1]])]
    images = network.preprocess(given)
    assert images.shape == (6, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert all(torch.equal(image, images[0]) for image in images)
    assert torch.equal(network.preprocess("a.png"), images[:1])
    predictions = network.predict(given, top=2)
    for found in (*predictions, network.predict("a.png", top=2)):
        assert [guess[::2] for guess in found] == [guess[::2] for guess in predictions[0]]
        assert [guess.probability for guess in found] == pytest.approx([p.probability for p in predictions[0]])
    logits = network(images[:1]).softmax(1)[0]
    assert [guess.number for guess in network.predict(pixels, top=99)] == logits.argsort(descending=True).tolist()
    assert predictions[0][0].probability == pytest.approx(logits.max().item())


def test_grey_pictures_have_their_value_in_every_colour(network):
    grey = np.full((32, 32), 77, np.uint8)
    for picture in (grey, grey[..., None], torch.from_numpy(grey), Image.fromarray(grey)):
        assert network.preprocess(picture).unique().tolist() == [77]


def test_pictures_stand_upright(network, pixels):
    picture = Image.fromarray(pixels)
    picture.getexif()[0x0112] = 6
    turned = picture.transpose(Image.Transpose.ROTATE_270)
    assert torch.equal(network.preprocess(picture), network.preprocess(np.array(turned)))


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        ("nowhere.png", "image 'nowhere.png' does not exist"),
        (np.zeros((4, 4, 3)), r"shape \(4, 4, 3\) and float64 is no picture"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), r"shape \(2, 4, 4\) and uint8"),
        (np.zeros((1, 4, 4, 3), np.uint8), "is no picture"),
        (3.5, "a float is no picture"),
    ],
)
def test_what_is_no_picture_is_refused(network, picture, said):
    with pytest.raises(InputError, match=said):
        network.predict(picture)
    with pytest.raises(InputError, match="top=0 must be at least 1"):
        network.predict(np.zeros((4, 4, 3), np.uint8), top=0)

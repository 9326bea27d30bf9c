"""`bnfree predict` on photographs with a checkpoint, whatever its weights, and with its packed file."""

import json
import shutil

import pytest
import torch
from PIL import Image
from small_data import write_image

from bnfree.datamodules.augmentation import IMAGENET_MEAN, IMAGENET_STD, normalize
from bnfree.datamodules.image_files import read_image
from bnfree.packing import load

NAMES = ["ape", "bee", "cow", "dog", "eel", "fox"]
FIT = [
    "fit", "--model=ImageClassifier", "--model.backbone=ReActNet18", "--model.backbone.width=4", "--run_dir=run",
    "--model.calibration_images=4", "--data=ImageFolderDataModule", "--data.data_dir=photos", "--data.image_size=32",
    "--data.num_workers=0", "--data.batch_size=4", "--trainer.accelerator=cpu", "--trainer.max_epochs=1",
    "--trainer.callbacks+=AdaptiveGradientClipping", "--trainer.logger=false",
]  # fmt: skip


@pytest.fixture(params=["real", "binary"])
def checkpoint(request, project, bnfree):
    for label, name in enumerate(NAMES):
        for number in range(3):
            write_image(project / "photos" / name / f"{number}.png", 40, 60, 10 * label + number)
    binary = f"--model.backbone.binary_weights={str(request.param == 'binary').lower()}"
    assert bnfree(*FIT, binary)[0] == 0
    path = project / "run" / "checkpoints" / "last.ckpt"
    return path


def trained_network(checkpoint, kind):
    from bnfree.backbones import ReActNet18

    network = ReActNet18(6, width=4, binary_weights=kind == "binary").eval()
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    network.load_state_dict({k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")})
    return network


def expected(network, path):
    """On the pixels that evaluation in training sees, which the tests of the data compare with torchvision's."""
    pixels = read_image(path, 32, 37)[None]
    return network(normalize(pixels, IMAGENET_MEAN, IMAGENET_STD)).softmax(1)[0].detach()


def test_photographs_are_predicted_without_the_data(checkpoint, request, project, bnfree):
    kind = request.node.callspec.params["checkpoint"]
    (project / "photos").rename(project / "elsewhere")
    photo = project / "elsewhere" / "cow" / "1.png"
    code, out, err = bnfree("predict", "elsewhere/cow/1.png", "--ckpt_path", checkpoint, "--top", "5", "--json")
    assert (code, err) == (0, "")
    [found] = json.loads(out)
    assert found["image"] == "elsewhere/cow/1.png"
    probabilities = expected(trained_network(checkpoint, kind), photo)
    best = probabilities.topk(5)
    assert [guess["number"] for guess in found["classes"]] == best.indices.tolist()
    assert [guess["class"] for guess in found["classes"]] == [NAMES[k] for k in best.indices]
    assert [guess["probability"] for guess in found["classes"]] == pytest.approx(best.values.tolist(), abs=1e-5)
    code, out, _ = bnfree("predict", f"--ckpt_path={checkpoint}", "elsewhere/*/0.png", "elsewhere/dog")
    assert [line.split()[0].split("/", 1)[1] for line in out.splitlines()] == [
        *(f"{name}/0.png" for name in NAMES), "dog/0.png", "dog/1.png", "dog/2.png",
    ]  # fmt: skip
    if kind == "binary":
        assert bnfree("export", checkpoint, "--data.data_dir=elsewhere", "--classifier_precision=float32")[0] == 0
        guesses = load(checkpoint.with_suffix(".safetensors"), "torch").predict(photo, top=9)
        assert [guess.number for guess in guesses] == probabilities.argsort(descending=True).tolist()


@pytest.mark.slow
def test_run_and_table_and_orientation(checkpoint, project, bnfree):
    photo = Image.open(project / "photos" / "ape" / "0.png").convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save("lying.png", exif=exif)
    photo.transpose(Image.Transpose.ROTATE_270).save("upright.png")
    shutil.rmtree("photos")
    for source in ("run", "best"):
        words = ("predict", "--ckpt_path", source, *(["--run_dir=run"] if source == "best" else []))
        code, out, _ = bnfree(*words, "lying.png", "upright.png")
        assert code == 0
        lying, upright = (line.split()[1:] for line in out.splitlines())
        assert lying == upright
    out = bnfree(*words, "lying.png", "upright.png", "--exif_orientation=false", "--top=6")[1]
    lying, upright = out.split("upright.png")
    assert lying.split()[1:] != upright.split()
    assert bnfree(*words, "lying.png", "--output=out.csv", "--top=2")[0] == 0
    assert len((project / "out.csv").read_text().splitlines()) == 3


def test_options_that_nobody_knows_are_refused(project, trained, complaint):
    checkpoint = trained / "checkpoints" / "best.ckpt"
    assert "option '--tops=2' is not known" in complaint("predict", "a.png", f"--ckpt_path={checkpoint}", "--tops=2")
    assert "does not say its mean, std, image_shape" in complaint("predict", "a.png", f"--ckpt_path={checkpoint}")

"""`bnfree predict` and `bnfree test` on packed files, and which of the two kinds a command line means."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from packable_networks import random_network
from PIL import Image

from bnfree.datamodules import DigitsDataModule
from bnfree.datamodules.augmentation import normalize
from bnfree.lightning_modules.command.packed import names_packed_network
from bnfree.lightning_modules.training import evaluate
from bnfree.packing import NetworkInfo, engines, load, pack, zoo

NAMES = ("zero", "one", "two", "three", "four")
COLOUR = NetworkInfo(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), image_shape=(3, 8, 8), class_names=NAMES)


def save(path, info=COLOUR, **options):
    network = random_network(0, width=4, in_channels=info.image_shape[0], **options)
    pack(network, "float32", info=info, engine="torch").save(path)
    return path


def write_images(folder, count, size=8):
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    pixels = [random.integers(0, 256, (size, size, 3), np.uint8) for _ in range(count)]
    for index, values in enumerate(pixels):
        Image.fromarray(values).save(folder / f"{index}.png")
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


@pytest.fixture
def packed(project):
    return save(project / "network.safetensors")


@pytest.mark.parametrize("form", [["FILE"], ["--model=FILE"], ["--ckpt_path", "FILE"]])
def test_predictions_are_those_of_the_network(bnfree, packed, project, form):
    pixels = write_images(project / "images", 3)
    given = [part.replace("FILE", str(packed)) for part in form]
    code, out, err = bnfree("predict", *given, project / "images", "--engine=torch")
    assert (code, err) == (0, "")
    logits = load(packed, "torch")(normalize(pixels, COLOUR.mean, COLOUR.std))
    probability, label = logits.softmax(1).max(1)
    for index, line in enumerate(out.splitlines()):
        name, text, share = line.split()
        assert name == str(project / "images" / f"{index}.png")
        assert text == NAMES[label[index]]
        assert float(share) == pytest.approx(probability[index].item(), abs=6e-5)


def test_predictions_go_into_a_table(bnfree, packed, project):
    write_images(project / "images" / "deeper", 66)
    code, out, _ = bnfree("predict", packed, "images", "--output", project / "out.csv", "--engine=torch")
    assert code == 0
    assert "out.csv" in out
    with (project / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 66
    assert set(rows[0]) == {"image", "class", "probability"}
    assert {row["class"] for row in rows} <= set(NAMES)


def test_colours_become_grey_as_in_pillow(bnfree, project):
    info = NetworkInfo(mean=(0.4,), std=(0.3,), image_shape=(1, 8, 8))
    path = save(project / "grey.safetensors", info)
    write_images(project / "images", 1)
    with Image.open(project / "images" / "0.png") as file:
        grey = torch.from_numpy(np.array(file.convert("L")))[None, None]
    label = load(path, "torch")(normalize(grey, info.mean, info.std)).argmax().item()
    out = bnfree("predict", path, "images", "--engine=torch")[1]
    # Without names the number stands for the class.
    assert out.split()[1] == str(label)


def test_larger_images_are_resized_and_cropped_as_in_evaluation(bnfree, project):
    from bnfree.datamodules.image_files import read_image

    info = NetworkInfo(mean=(0.5,) * 3, std=(0.2,) * 3, image_shape=(3, 8, 8), resize=11)
    path = save(project / "network.safetensors", info)
    write_images(project / "images", 1, size=32)
    image = read_image(project / "images" / "0.png", 8, 11)[None]
    probability = load(path, "torch")(normalize(image, info.mean, info.std)).softmax(1).max().item()
    out = bnfree("predict", path, "images", "--engine=torch")[1]
    assert float(out.split()[2]) == pytest.approx(probability, abs=6e-5)


@pytest.mark.parametrize(
    ("trained", "option", "upright"),
    [
        (None, [], True),
        (False, [], False),
        (None, ["--exif_orientation=false"], False),
        (False, ["--exif_orientation", "true"], True),
    ],
)
def test_photographs_stand_upright_unless_the_network_or_the_user_wants_them_lying(
    bnfree, project, trained, option, upright
):
    path = save(project / "network.safetensors", replace(COLOUR, exif_orientation=trained))
    write_images(project / "images", 1)
    lying = Image.open(project / "images" / "0.png")
    lying.load()
    exif = Image.Exif()
    exif[0x0112] = 6
    lying.save(project / "images" / "0.png", exif=exif)
    seen = lying.transpose(Image.Transpose.ROTATE_270) if upright else lying
    pixels = torch.from_numpy(np.array(seen)).permute(2, 0, 1)[None]
    probability = load(path, "torch")(normalize(pixels, COLOUR.mean, COLOUR.std)).softmax(1).max().item()
    out = bnfree("predict", path, "images", "--engine=torch", *option)[1]
    assert float(out.split()[2]) == pytest.approx(probability, abs=6e-5)


@pytest.mark.parametrize("start", ["=", "+", "-", "@"])
def test_a_table_of_predictions_holds_no_formulas(bnfree, project, start):
    info = replace(COLOUR, class_names=(f"{start}1+1",) * 5)
    path = save(project / "network.safetensors", info)
    write_images(project / "images", 1)
    assert bnfree("predict", path, "images", "--output=out.csv", "--engine=torch")[0] == 0
    with (project / "out.csv").open() as file:
        assert [row["class"] for row in csv.DictReader(file)] == [f"'{start}1+1"]


def test_a_pretrained_network_is_called_by_name(bnfree, complaint, project, monkeypatch):
    monkeypatch.setattr(zoo, "FOLDER", project / "zoo")
    (project / "zoo").mkdir()
    save(project / "zoo" / "cats_9kB.safetensors")
    write_images(project / "images", 1)
    for arguments in (["cats", "images"], ["--model", "cats_9kB", "images"], ["images/0.png", "--model=cats"]):
        assert bnfree("predict", *arguments, "--engine=torch")[0] == 0
    message = complaint("predict", "--model=dogs", "images")
    assert "model='dogs' is neither a file nor a pretrained network; give a packed file, or one of cats_9kB" in message


def test_without_numba_it_works_and_says_once_how_to_be_fast(bnfree, packed, project, monkeypatch):
    write_images(project / "images", 2)
    monkeypatch.setattr(engines, "_slow_engine_mentioned", False)
    monkeypatch.setattr(engines, "is_available", lambda name: name == "torch")
    code, out, err = bnfree("predict", packed, "images")
    assert code == 0
    assert len(out.splitlines()) == 2
    assert err.count("pip install 'bnfree[fast]'") == err.count("\n") == 1
    assert bnfree("predict", packed, "images")[2] == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["network.safetensors"], "images are not given"),
        (["network.safetensors", "images/*.jpg"], r"image 'images/\*.jpg' matches no file"),
        (["network.safetensors", "images", "--top=0"], "top=0 must be at least 1"),
        (["network.safetensors", "nowhere.png"], "image 'nowhere.png' does not exist"),
        (["network.safetensors", "empty"], "'empty' has no image in it"),
        (["network.safetensors", "text.png"], "text.png cannot be decoded as an image"),
        (["missing.safetensors", "images"], "model='missing.safetensors' is no file"),
        (["text.png", "images"], "model='text.png' is no packed network"),
        (["damaged.safetensors", "images"], "not a valid packed network|cannot be read|damaged"),
        (["unknown.safetensors", "images"], "does not say its mean, std, which|does not say its mean, std,"),
        (["network.safetensors", "images", "--engine=tpu"], "engine='tpu' is not known"),
        (["network.safetensors", "images", "--threads=0"], "threads=0 must be at least 1"),
        (["network.safetensors", "images", "--threads=x"], "--threads: invalid int value"),
        (["network.safetensors", "images", "--output=x.txt"], "output='x.txt' must be a CSV file"),
        (["network.safetensors", "images", "--json", "--output=x.csv"], "json does not go with output='x.csv', which"),
        (["--ckpt_path=some.ckpt", "--top=3"], "--top goes with image files, and none are given; name them: bnfree"),
        (["network.safetensors", "images", "--tops=3"], "option '--tops=3' is not expected here"),
    ],
)
def test_mistakes_are_one_sentence(complaint, packed, project, arguments, said):
    import re

    write_images(project / "images", 1)
    (project / "empty").mkdir()
    (project / "text.png").write_text("no image")
    content = bytearray(packed.read_bytes())
    content[-1] ^= 1
    (project / "damaged.safetensors").write_bytes(content)
    pack(random_network(0, width=4), engine="torch").save(project / "unknown.safetensors")
    assert re.search(said, complaint("predict", *arguments))


def digits_network(path, **changes):
    info = {"mean": DigitsDataModule.mean, "std": DigitsDataModule.std, "image_shape": (1, 8, 8), **changes}
    torch.manual_seed(0)
    from bnfree.backbones import ReActNet18

    network = ReActNet18(10, width=4, in_channels=1).eval()
    pack(network, "float32", info=NetworkInfo(**info), engine="torch").save(path)
    return network


@pytest.mark.parametrize("form", [["FILE"], ["--ckpt_path=FILE"], ["--model", "FILE"]])
def test_accuracy_is_counted_over_all_test_images(bnfree, project, form):
    network = digits_network(project / "digits.safetensors")
    (project / "data.yaml").write_text("data: {class_path: DigitsDataModule, init_args: {image_size: 8}}\n")
    given = [part.replace("FILE", "digits.safetensors") for part in form]
    code, out, err = bnfree("test", *given, "--config=data.yaml", "--engine=torch")
    assert (code, err) == (0, "")
    data = DigitsDataModule(image_size=8)
    images, labels = (torch.cat(parts) for parts in zip(*data.test_batches(10**6), strict=True))
    logits = network(images).detach()
    said = dict(line.split(": ") for line in out.splitlines())
    share = (logits.argmax(1) == labels).double().mean().item()
    assert said["test/acc"] == f"{100 * share:.2f} %"
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    assert float(said["test/loss"]) == pytest.approx(loss, abs=1e-3)
    assert bnfree("test", *given, "--data=DigitsDataModule", "--data.image_size=8", "--engine=torch")[1] == out


def test_another_normalisation_is_said(bnfree, project):
    digits_network(project / "digits.safetensors", mean=(0.25,))
    out = bnfree("test", "digits.safetensors", "--data=DigitsDataModule", "--data.image_size=8", "--engine=torch")[1]
    assert "normalises with mean (0.3053,), but the network was trained with (0.25,)" in out


def test_data_that_do_not_fit_are_refused(complaint, project, packed):
    digits_network(project / "digits.safetensors")
    assert "data are not given" in complaint("test", "digits.safetensors")
    (project / "run" / "checkpoints").mkdir(parents=True)
    assert "model='run' is a directory; give a packed file, as bnfree export writes it." in complaint("bench", "run")
    (project / "run" / "checkpoints" / "best.ckpt").touch()
    assert "; bnfree test --ckpt_path=run/checkpoints/best.ckpt evaluates" in complaint("bench", "run")
    assert "has 10 classes, the network 5" in complaint("test", packed, "--data=DigitsDataModule")
    assert "is one network too many" in complaint("test", packed, "digits.safetensors", "--data=DigitsDataModule")


def test_checkpoints_still_go_to_the_trainer(trained, packed, project, monkeypatch):
    for arguments in (
        ["--ckpt_path", str(trained / "checkpoints" / "best.ckpt")],
        ["--config=toy.yaml", "--data.batch_size", "4"],
        ["--model", "ImageClassifier"],
        ["--help"],
    ):
        assert not names_packed_network(arguments)
    renamed = project / "network.ckpt"
    renamed.write_bytes(packed.read_bytes())
    for arguments in (["--ckpt_path", str(renamed)], ["--model=digits"], [str(packed), "x.png"], ["--threads=1", "a"]):
        assert names_packed_network(arguments)
    seen = []
    monkeypatch.setattr(evaluate, "evaluate", seen.append)
    from bnfree.lightning_modules.cli import main

    main(["test", "--config=toy.yaml"])
    assert [(settings.part, list(settings.arguments)) for settings in seen] == [("test", ["--config=toy.yaml"])]


def test_help_tells_of_both(bnfree):
    for subcommand in ("predict", "test"):
        code, out, _ = bnfree(subcommand, "--help")
        assert code == 0
        assert f"bnfree {subcommand} --ckpt_path CKPT" in out
        assert "FILE|NAME" in out
    assert "IMAGE" in bnfree("predict", "x", "--help")[1]

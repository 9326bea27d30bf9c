"""A folder of photographs, trained on with the shipped config: what is found is used, and said."""

from types import SimpleNamespace

import pytest
import yaml
from small_data import write_image

from bnfree.backbones import ReActNet18
from bnfree.callbacks import AdaptiveGradientClipping
from bnfree.lightning_modules import FitSettings
from bnfree.lightning_modules.training.notes import CLIPPING, EPOCHS, say_notes
from bnfree.lightning_modules.training.parsed_fit import parse_fit

SHORT = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--model.calibration_images=4")
OPTIONS = (
    *SHORT,
    "--model.backbone.width=4",
    "--data.batch_size=4",
    "--data.num_workers=0",
    "--trainer.accelerator=cpu",
)


def photographs(root, parts, size=(48, 70)):
    for part, count in parts.items():
        for label, name in enumerate(("ape", "bee", "cow")):
            for number in range(count):
                write_image(root / part / name / f"{number}.png", *size, seed=1000 * len(part) + 100 * label + number)
    return root


def test_a_folder_of_classes_is_all_that_is_needed(project, bnfree):
    photographs(project / "photos", {".": 8})
    code, out, _ = bnfree("fit", "--config=image_folder", "--data.data_dir=photos", "--run_dir=run", *OPTIONS)
    assert code == 0
    assert "Data: 3 classes, images of 3x32x32; 20 training, 4 validation, no test images." in out
    assert "test/acc" not in out
    config = yaml.safe_load((project / "run" / "config.yaml").read_text())
    assert config["model"]["init_args"]["backbone"]["init_args"]["num_classes"] == 3
    assert config["data"]["init_args"]["image_size"] == 32


def test_a_test_part_that_is_there_is_used_and_said_to_be(project, bnfree):
    photographs(project / "photos", {"train": 6, "val": 2, "test": 3})
    words = ("fit", "--config=image_folder", "--data.data_dir=photos", *OPTIONS)
    code, out, _ = bnfree(*words)
    assert code == 0
    assert "18 training, 6 validation (val/), 9 test images (test/)." in out
    assert "test/acc" in out
    _, out, _ = bnfree(*words, "--test_after_fit=false")
    assert "test images (test/) for bnfree test." in out
    assert "test/acc" not in out


def effective(*arguments, config="image_folder"):
    settings = parse_fit(FitSettings(config, arguments=arguments)).settings
    return settings["model"]["init_args"]["backbone"]["init_args"], settings["data"]["init_args"]


def test_what_is_given_wins_over_what_the_data_say(project):
    photographs(project / "photos", {"train": 2}, size=(150, 300))
    backbone, data = effective("--data.data_dir=photos")
    assert (backbone["num_classes"], data["image_size"]) == (3, 128)
    backbone, data = effective("--data.data_dir=photos", "--model.backbone.num_classes=7", "--data.image_size=96")
    assert (backbone["num_classes"], data["image_size"]) == (7, 96)
    # Also where it is what would have been taken without data.
    backbone, _ = effective("--data.data_dir=photos", "--model.backbone.num_classes=10")
    assert backbone["num_classes"] == 10


def test_channels_follow_the_data_too(project):
    (project / "digits.yaml").write_text(
        "model: {class_path: ImageClassifier, init_args: {backbone: {class_path: ReActNet18}}}\n"
        "data: {class_path: DigitsDataModule}\n"
    )
    backbone, _ = effective(config="digits.yaml")
    assert (backbone["num_classes"], backbone["in_channels"]) == (10, 1)


def test_a_network_is_counted_where_its_photographs_are_not(bnfree):
    code, out, _ = bnfree("summary", "image_folder", "--data.data_dir=nowhere", "--image_shape=3,64,64")
    assert code == 0
    assert "ReActNet18" in out


@pytest.mark.parametrize(
    ("norm", "options", "said"),
    [
        ("bn_free", {"max_epochs": 3}, [CLIPPING]),
        ("bn_free", {"max_epochs": 3, "callbacks": [AdaptiveGradientClipping()]}, []),
        ("bn_free", {"max_epochs": 3, "gradient_clip_val": 1.0}, []),
        ("batch_norm", {"max_epochs": 3}, []),
        ("batch_norm", {}, [EPOCHS]),
        ("batch_norm", {"max_steps": 100}, []),
        ("batch_norm", {"max_time": "00:01:00:00"}, []),
        ("bn_free", {"max_epochs": None, "max_steps": -1}, [CLIPPING, EPOCHS]),
    ],
)
def test_what_nobody_decided_is_said_once(norm, options, said, capsys):
    say_notes(SimpleNamespace(backbone=ReActNet18(width=4, norm=norm)), options)
    assert capsys.readouterr().out.splitlines() == said


def test_a_composed_run_without_clipping_says_so(project, bnfree):
    photographs(project / "photos", {".": 8})
    compose = ("--model=ImageClassifier", "--model.backbone=ReActNet18", "--data=ImageFolderDataModule")
    options = ("--data.data_dir=photos", "--data.image_size=32", *OPTIONS)
    code, out, _ = bnfree("fit", *compose, *options)
    assert code == 0
    assert out.count(CLIPPING) == 1
    assert "3 classes" in out

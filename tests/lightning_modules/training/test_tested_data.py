"""A test part that cannot be tested on is found before the first training step."""

import shutil

import pytest
from small_data import write_cifar, write_fashion_mnist, write_image

from bnfree.lightning_modules.training import fit as training  # noqa: F401 - logs to the first standard error it meets

MODEL = [
    "--model=ImageClassifier",
    "--model.backbone=ReActNet18",
    "--model.backbone.width=4",
    "--model.optimizer=torch.optim.Adam",
    "--model.calibration_images=4",
    *("--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.enable_model_summary=false"),
    *("--trainer.logger=false", "--run_dir=run"),
]


@pytest.fixture
def folders(project):
    for part, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(("ape", "bee", "cow")):
            for number in range(count):
                seed = 1000 * (part == "test") + 10 * label + number
                write_image(project / "images" / part / name / f"{number}.png", 16, 16, seed)
    return project / "images"


def of_folders(folder, kind="ImageFolderDataModule"):
    data = [f"--data={kind}", f"--data.data_dir={folder}", "--data.val_split=0.25", "--data.image_size=16"]
    return [*MODEL, "--model.backbone.num_classes=3", *data, "--data.batch_size=4", "--data.num_workers=0"]


def no_test(folder):
    shutil.rmtree(folder / "test")


def unlabelled(folder):
    for number, path in enumerate(sorted((folder / "test").glob("*/*.png"))):
        path.rename(folder / "test" / f"{number}.png")
    for name in ("ape", "bee", "cow"):
        (folder / "test" / name).rmdir()


def a_class_missing(folder):
    shutil.rmtree(folder / "test" / "bee")


def a_class_empty(folder):
    for path in (folder / "test" / "bee").iterdir():
        path.unlink()


def a_class_more(folder):
    (folder / "test" / "ape").rename(folder / "test" / "zebra")


def undecodable(folder):
    (folder / "test" / "cow" / "1.png").write_bytes(b"no image")


DAMAGES = {
    no_test: "has no test/: add it",
    unlabelled: "test has no class folders",
    a_class_missing: "test has no bee/",
    a_class_empty: "test/bee has no image",
    a_class_more: "test has no ape/, a foreign zebra/",
    undecodable: "cow/1.png cannot be decoded",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_folders(folders, complaint, bnfree, damage):
    damage(folders)
    options = ["--data.in_memory=true"] if damage is undecodable else []
    assert DAMAGES[damage] in complaint("fit", *of_folders(folders), *options, "--test_after_fit=true")
    assert not list(folders.parent.glob("run/checkpoints/*"))


def test_without_a_test_they_do_not_matter(folders, bnfree):
    no_test(folders)
    assert bnfree("fit", *of_folders(folders))[0] == 0


def test_right_ones_are_loaded_once_and_tested(folders, bnfree):
    code, out, _ = bnfree("fit", *of_folders(folders), "--test_after_fit=true")
    assert code == 0
    assert "test/acc" in out


def test_imagenet(folders, complaint):
    (folders / "test").rename(folders / "val")
    shutil.rmtree(folders / "val" / "bee")
    message = complaint("fit", *of_folders(folders, "ImageNetDataModule"), "--test_after_fit=true")
    assert "val has no bee/" in message


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar(project, complaint, classes):
    write_cifar(project, classes)
    name = "cifar-10-batches-py/test_batch" if classes == 10 else "cifar-100-python/test"
    (project / name).write_bytes((project / name).read_bytes()[:500])
    data = [f"--data=CIFAR{classes}DataModule", f"--data.data_dir={project}", "--data.val_split=0.2"]
    arguments = [*MODEL, f"--model.backbone.num_classes={classes}", *data, "--data.batch_size=4"]
    assert f"{name} is damaged" in complaint("fit", *arguments, "--test_after_fit=true")


@pytest.mark.parametrize("name", ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"])
def test_fashion_mnist(project, complaint, name):
    write_fashion_mnist(project)
    (project / name).write_bytes((project / name).read_bytes()[:-20])
    data = ["--data=FashionMNISTDataModule", f"--data.data_dir={project}", "--data.val_split=0.2"]
    arguments = [*MODEL, "--model.backbone.in_channels=1", *data, "--data.batch_size=4"]
    assert f"{name} cannot be read" in complaint("fit", *arguments, "--test_after_fit=true")


OTHERS = """
from toy_project import ToyData, ToyModule


class Broken(ToyData):
    def setup(self, stage):
        self.stage = stage
        if stage == "test":
            raise FileNotFoundError("no test images")


class Without(ToyData):
    test_dataloader = None


class Keeps(ToyData):
    def setup(self, stage):
        self.stage = stage

    def train_dataloader(self):
        assert self.stage == "fit"
        return super().train_dataloader()

    def test_dataloader(self):
        assert self.stage == "test"
        return super().train_dataloader()


class Untested(ToyModule):
    test_step = None
"""


@pytest.fixture
def others(project):
    content = OTHERS.replace("    test_dataloader = None", "    test_dataloader = LightningDataModule.test_dataloader")
    content = content.replace("    test_step = None", "    test_step = LightningModule.test_step")
    (project / "others.py").write_text(f"from lightning.pytorch import LightningDataModule, LightningModule\n{content}")


@pytest.mark.usefixtures("others")
def test_data_modules_of_others(bnfree, complaint):
    arguments = ["fit", "--config=toy.yaml", "--run_dir=run", "--test_after_fit=true", "--data"]
    code, _, err = bnfree(*arguments, "others.Broken")
    assert code == 1
    assert "no test images" in err
    assert "needs a test_dataloader, which data=Without has not" in complaint(*arguments, "others.Without")
    # Whatever a data module keeps, training gets its own.
    code, out, _ = bnfree(*arguments, "others.Keeps")
    assert code == 0
    assert "test/acc" in out


@pytest.mark.usefixtures("others")
def test_a_module_that_cannot_test(complaint):
    message = complaint("fit", "--config=toy.yaml", "--model=others.Untested", "--run_dir=run", "--test_after_fit=true")
    assert "needs a test_step, which Untested has not" in message

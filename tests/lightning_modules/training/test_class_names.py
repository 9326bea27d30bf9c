"""Classes of the data that are not those a network was trained on: refused by every subcommand, unless allowed."""

import csv
import shutil

import pytest
import torch
from small_data import write_image

from bnfree.backbones import ReActNet18
from bnfree.lightning_modules.cli import main
from bnfree.lightning_modules.experiments.lottery.level_tickets import remembered_by
from bnfree.lightning_modules.training import fit as training  # noqa: F401 - logs to the first standard error it meets
from bnfree.packing import load
from bnfree.tickets import Ticket, apply, load_ticket, prune, save_ticket

MODEL = [
    "--model=ImageClassifier",
    "--model.backbone=ReActNet18",
    "--model.backbone.width=4",
    "--model.backbone.num_classes=3",
    "--model.optimizer=torch.optim.Adam",
    "--model.calibration_images=4",
]
DATA = ["--data.val_split=0.25", "--data.in_memory=true", "--data.image_size=16", "--data.batch_size=4"]
TRAINER = ["--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.enable_model_summary=false"]
FOLDERS = ("ape", "bee", "cow")


def write_folder(folder, classes=FOLDERS):
    for part, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(classes):
            for number in range(count):
                write_image(
                    folder / part / name / f"{number}.png", 16, 16, seed=1000 * (part == "test") + 10 * label + number
                )
    return folder


def train(directory, classes=FOLDERS):
    """Trains for an epoch; returns the checkpoint."""
    folder = write_folder(directory / "images", classes)
    arguments = ["--data=ImageFolderDataModule", f"--data.data_dir={folder}", *DATA, *TRAINER]
    arguments += ["--trainer.max_epochs=1", f"--run_dir={directory / 'run'}"]
    assert main(["fit", *MODEL, *arguments]) == 0
    return directory / "run" / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of a run that stays as it is."""
    return train(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def run(checkpoint, project):
    """A copy of its directory, with its images beside it."""
    shutil.copytree(checkpoint.parents[2] / "run", project / "run")
    shutil.copytree(checkpoint.parents[2] / "images", project / "images")
    return project / "run"


def test_a_checkpoint_remembers_them_as_plain_text(checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    assert content["ImageFolderDataModule"]["class_names"] == list(FOLDERS)


OTHER = {
    "renamed": (("ape", "bee", "dog"), "class 2 was 'cow' and is 'dog' here"),
    "another order": (("bee", "cow", "zebra"), "class 0 was 'ape' and is 'bee' here"),
    "changed case": (("Bee", "ape", "cow"), "class 0 was 'ape' and is 'Bee' here"),
}


@pytest.mark.parametrize(
    ("subcommand", "kind"),
    [
        ("test", "renamed"),
        *(
            pytest.param(subcommand, "renamed", marks=pytest.mark.slow)
            for subcommand in ("fit", "validate", "predict", "export")
        ),
        *(("test", kind) for kind in list(OTHER)[1:]),
    ],
)
def test_every_subcommand_that_reads_a_checkpoint_compares(run, bnfree, complaint, project, subcommand, kind):
    checkpoint, (classes, said) = run / "checkpoints" / "last.ckpt", OTHER[kind]
    other = write_folder(project / "other", classes)
    arguments = [f"--ckpt_path={checkpoint}", f"--data.data_dir={other}"]
    if subcommand != "export":
        arguments += TRAINER
    if subcommand == "fit":
        arguments += ["--trainer.max_epochs=2", f"--run_dir={project / 'again'}"]
    if subcommand == "predict":
        arguments += [f"--run_dir={project / 'predictions'}"]
    message = complaint(subcommand, *arguments)
    assert said in message
    assert "--allow_other_classes" in message
    assert f"ckpt_path='{checkpoint}' was trained on other classes than those of data=ImageFolderDataModule" in message
    assert not (project / "again" / "checkpoints").exists()
    assert not (project / "predictions" / "predictions.csv").exists()
    assert not checkpoint.with_suffix(".safetensors").exists()
    form = "--allow_other_classes" + "=true" * (subcommand == "test")
    assert bnfree(subcommand, *arguments, form)[0] == 0


@pytest.mark.slow
def test_a_folder_that_was_renamed_is_found_on_resuming_and_a_permission_is_not_kept(run, bnfree, complaint, project):
    images, checkpoint = project / "images", run / "checkpoints" / "last.ckpt"
    for part in ("train", "test"):
        (images / part / "ape").rename(images / part / "zebra")
    data = [f"--data.data_dir={images}", *TRAINER]
    arguments = ["fit", f"--ckpt_path={checkpoint}", "--trainer.max_epochs=2", *data]
    assert "class 0 was 'ape' and is 'bee' here" in complaint(*arguments, "--run_dir=again")
    assert bnfree(*arguments, "--run_dir=again", "--allow_other_classes")[0] == 0
    assert "allow_other_classes" not in (project / "again" / "config.yaml").read_text()
    last = project / "again" / "checkpoints" / "last.ckpt"
    # The classes it went on with are remembered now, and the old ones refused.
    assert bnfree("test", f"--ckpt_path={last}", *data)[0] == 0
    for part in ("train", "test"):
        (images / part / "zebra").rename(images / part / "ape")
    assert "class 0 was 'bee' and is 'ape' here" in complaint("test", f"--ckpt_path={last}", *data)


def test_the_same_classes_say_nothing(checkpoint, bnfree):
    for subcommand in ("validate", "test"):
        code, out, err = bnfree(subcommand, f"--ckpt_path={checkpoint}", *TRAINER)
        assert code == 0
        assert "class" not in out + err


def test_packed_files_compare_too_and_hold_the_names_of_the_checkpoint(run, bnfree, complaint, project):
    # Without its data the names come from the checkpoint.
    _, out, _ = bnfree("export", run, "--output=a.safetensors", "--data.data_dir=nowhere")
    assert "The data are not there" in out
    assert load("a.safetensors", "torch").info.class_names == FOLDERS
    config = ["--config", run / "config.yaml"]
    assert bnfree("test", "a.safetensors", *config, f"--data.data_dir={project / 'images'}")[0] == 0
    other = write_folder(project / "other", ("ape", "bee", "dog"))
    message = complaint("test", "a.safetensors", *config, f"--data.data_dir={other}")
    assert "the packed network was trained on other classes" in message
    assert "class 2 was 'cow' and is 'dog' here" in message
    for form in (["--allow_other_classes", "a.safetensors"], ["a.safetensors", "--allow_other_classes=true"]):
        assert bnfree("test", *form, *config, f"--data.data_dir={other}")[0] == 0


@pytest.mark.slow
def test_weights_to_start_from_and_teachers_compare_in_a_fresh_fit(checkpoint, complaint, bnfree, project):
    other = write_folder(project / "other", ("ape", "bee", "dog"))
    for folder, fails in ((other, True), (checkpoint.parents[2] / "images", False)):
        data = ["--data=ImageFolderDataModule", f"--data.data_dir={folder}", *DATA, *TRAINER, "--trainer.max_epochs=1"]
        begin = [*MODEL, f"--model.init_from={checkpoint}"]
        taught = ["--model=DistilledClassifier", *MODEL[1:], f"--model.teacher.weights={checkpoint}"]
        taught += ["--model.teacher=bnfree.lightning_modules.Teacher"]
        for name, model in (("init_from", begin), ("teacher.weights", taught)):
            if not fails:
                assert bnfree("fit", *model, *data)[0] == 0
                continue
            message = complaint("fit", *model, *data)
            assert f"{name}='{checkpoint}' was trained on other classes" in message
            assert "class 2 was 'cow' and is 'dog' here" in message
            assert bnfree("fit", *model, *data, "--allow_other_classes")[0] == 0


@pytest.mark.slow
def test_checkpoints_without_names_and_classes_that_are_numbers_stay_quiet(run, bnfree, project):
    checkpoint = run / "checkpoints" / "last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    for state in (content["ImageFolderDataModule"], {}):
        old = {**content, "ImageFolderDataModule": {k: v for k, v in state.items() if k != "class_names"}}
        torch.save(old, checkpoint)
        other = write_folder(project / "other", ("x", "y", "z"))
        assert bnfree("test", f"--ckpt_path={checkpoint}", f"--data.data_dir={other}", *TRAINER)[0] == 0
    numbered = train(project / "numbered", ("0", "1", "2"))
    assert bnfree("test", f"--ckpt_path={numbered}", f"--data.data_dir={other}", *TRAINER)[0] == 0


def test_data_modules_of_others_are_remembered_as_well(bnfree, complaint, project):
    (module,) = project.glob("*.py")
    named = "\n\nclass NamedData(ToyData):\n    def __init__(self, names: list[str], **options):\n"
    named += "        super().__init__(**options)\n        self.class_names = names\n"
    module.with_name("named.py").write_text(f"from {module.stem} import ToyData{named}")
    base = [f"--model={module.stem}.ToyModule", f"--model.backbone={module.stem}.ToyNet", "--data=named.NamedData"]
    base += TRAINER
    code, _, err = bnfree("fit", *base, "--data.names=[a, b]", "--trainer.max_epochs=1", "--run_dir=toy_run")
    assert code == 0, err
    checkpoint = "--ckpt_path=toy_run/checkpoints/last.ckpt"
    assert bnfree("test", *base, "--data.names=[a, b]", checkpoint)[0] == 0
    assert "class 1 was 'b' and is 'c' here" in complaint("test", *base, "--data.names=[a, c]", checkpoint)
    assert "class 2 was none and is 'c' here" in complaint("test", *base, "--data.names=[a, b, c]", checkpoint)


@pytest.mark.slow
def test_tickets_remember_them_until_their_classifier_is_drawn_fresh(run, bnfree, complaint, project):
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    network = ReActNet18(num_classes=3, width=4)
    network.load_state_dict({k.removeprefix("backbone."): v for k, v in content["state_dict"].items()})
    apply(network, prune(network, density=0.5, scope="global"))
    ticket = Ticket.of(network, score="magnitude", scope="global", density=0.5, config=remembered_by(content))
    save_ticket(ticket, project / "ticket.pt")
    assert load_ticket(project / "ticket.pt").config["class_names"] == list(FOLDERS)
    other = write_folder(project / "other", ("ape", "bee", "dog"))
    config = ["--config", run / "config.yaml"]
    here = [*config, "--ckpt_path=ticket.pt", *TRAINER]
    assert bnfree("test", *here, f"--data.data_dir={project / 'images'}")[0] == 0
    assert "class 2 was 'cow' and is 'dog' here" in complaint("test", *here, f"--data.data_dir={other}")
    assert bnfree("test", *here, f"--data.data_dir={other}", "--allow_other_classes")[0] == 0
    for options, names in (([], None), (["--keep_classifier"], list(FOLDERS))):
        arguments = ["ticket", "transfer", "ticket.pt", "--to", run / "config.yaml", "--output=other.pt", "--overwrite"]
        assert bnfree(*arguments, *options)[0] == 0
        assert load_ticket(project / "other.pt").config.get("class_names") == names
    start = ["fit", *config, "--model.init_from=other.pt", f"--data.data_dir={other}", "--run_dir=again", *TRAINER]
    assert "init_from='other.pt' was trained on other classes" in complaint(*start)


def test_a_packed_file_remembers_how_photographs_were_read(run, bnfree):
    for option, kept in (("true", None), ("false", False)):
        arguments = ["export", run, "--overwrite", "--output=a.safetensors", f"--data.exif_orientation={option}"]
        for place in ("images", "nowhere"):
            assert bnfree(*arguments, f"--data.data_dir={place}")[0] == 0
            assert load("a.safetensors", "torch").info.exif_orientation is kept


def test_predictions_carry_the_names_of_the_data(checkpoint, bnfree, project):
    arguments = ["predict", f"--ckpt_path={checkpoint}", f"--run_dir={project / 'p'}", *TRAINER]
    assert bnfree(*arguments)[0] == 0
    with (project / "p" / "predictions.csv").open() as file:
        assert {row["class"] for row in csv.DictReader(file)} <= set(FOLDERS)

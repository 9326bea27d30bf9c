"""`bnfree export`: what is in the file, and what the check says."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_digits import train_digits

from bnfree.backbones import ReActNet18
from bnfree.datamodules import DigitsDataModule
from bnfree.errors import InputError
from bnfree.lightning_modules import ExportSettings, export
from bnfree.lightning_modules.deployment.check import check
from bnfree.packing import formats, load, pack, pretrained_path
from bnfree.packing.layers import tensors_of
from bnfree.tickets import Ticket, apply, prune, save_ticket

EARLIER = Path(__file__).parents[2] / "data" / "earlier"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run directory of a network on digits; not to be changed."""
    return train_digits(tmp_path_factory.mktemp("recipe") / "run")


@pytest.fixture
def best(run, project):
    """A copy of the run's best checkpoint with its config and metrics."""
    shutil.copytree(run, project / "recipe" / "run")
    return project / "recipe" / "run" / "checkpoints" / "best.ckpt"


def network_of(checkpoint):
    content = torch.load(checkpoint, weights_only=True)["state_dict"]
    network = ReActNet18(10, width=4, in_channels=1)
    network.load_state_dict({k.removeprefix("backbone."): v for k, v in content.items() if k.startswith("backbone.")})
    return network.eval()


def test_the_file_computes_what_the_checkpoint_does_and_says_what_it_is(bnfree, best):
    code, out, err = bnfree("export", best)
    assert (code, err) == (0, "")
    path = best.with_suffix(".safetensors")
    packed, network = load(path, "torch"), network_of(best)
    data = DigitsDataModule(image_size=8)
    images = torch.cat([images for images, _ in data.test_batches(64)])
    assert torch.equal(packed(images), pack(network, engine="torch")(images))
    assert (packed.info.mean, packed.info.std, packed.info.image_shape) == (data.mean, data.std, (1, 8, 8))
    assert packed.info.class_names == tuple("0123456789")
    assert packed.info.source_run == "recipe/run/checkpoints/best.ckpt"
    said = float(next(line for line in (best.parents[1] / "metrics.csv").read_text().splitlines()[::-1] if line)
                 .split(",")[column(best, "test/acc")])  # fmt: skip
    assert packed.info.accuracy == said
    real = sum(parameter.numel() for parameter in network.parameters()) * 4
    assert f"{path.stat().st_size / 1e3:.1f} kB; {real / 1e3:.1f} kB in float32" in out


def column(checkpoint, name):
    header = (checkpoint.parents[1] / "metrics.csv").read_text().splitlines()[0]
    return header.split(",").index(name)


def test_a_file_is_never_replaced_unasked(bnfree, complaint, best):
    path = best.with_suffix(".safetensors")
    path.write_bytes(b"mine")
    assert "exists; give another --output, or --overwrite" in complaint("export", best)
    assert path.read_bytes() == b"mine"
    assert bnfree("export", best, "--overwrite")[0] == 0
    assert load(path, "torch").num_classes == 10


def test_a_run_directory_stands_for_its_last_checkpoint(bnfree, best, project):
    assert bnfree("export", best.parents[1], "--output", project / "last.safetensors")[0] == 0
    packed = load(project / "last.safetensors", "torch")
    assert packed.info.source_run == "recipe/run/checkpoints/last.ckpt"
    # The run has tested another checkpoint.
    assert packed.info.accuracy is None


def test_tickets_are_exported_with_their_masks(bnfree, best, project):
    network = network_of(best)
    apply(network, prune(network, density=0.5, score="standardized", scope="global"))
    config = {"hyper_parameters": torch.load(best, weights_only=True)["hyper_parameters"]}
    ticket = Ticket.of(network, score="standardized", scope="global", density=0.5, config=config)
    save_ticket(ticket, project / "ticket.pt")
    data = ("--data=DigitsDataModule", "--data.image_size=8")
    code, out, err = bnfree("export", project / "ticket.pt", "--masks=digits", *data)
    assert code == 0, err
    assert "50.00% survive" in out
    packed = load(project / "ticket.safetensors", "torch")
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(packed(x), pack(network, engine="torch")(x))
    assert packed.info.mean == DigitsDataModule.mean


def test_the_check_compares_all_test_images_and_passes(bnfree, best):
    code, out, _ = bnfree("export", best, "--check", "--engine=torch", "--classifier_precision=float32")
    assert code == 0
    assert "all test images of DigitsDataModule" in out
    assert "same class      360 of 360 images" in out
    assert "0 by rounded real layers" in out
    assert "0 without a reason" in out
    assert "Check passed." in out


@pytest.mark.slow
def test_without_a_tested_accuracy_the_check_measures_it(bnfree, best, project):
    (best.parents[1] / "metrics.csv").unlink()
    output = project / "out.safetensors"
    assert bnfree("export", best, "--check", "--engine=torch", "--output", output)[0] == 0
    network, data = network_of(best), DigitsDataModule(image_size=8)
    correct = sum(int((network(images).argmax(1) == labels).sum()) for images, labels in data.test_batches(360))
    assert load(output, "torch").info.accuracy == correct / 360
    assert bnfree("export", best, "--check", "--num_images=100", "--engine=torch", "--overwrite")[0] == 0
    assert load(best.with_suffix(".safetensors"), "torch").info.accuracy is None


def test_a_network_that_computes_something_else_is_not_written(bnfree, best, monkeypatch):
    other = ReActNet18(10, width=4, in_channels=1)
    monkeypatch.setattr(formats.PackedFormat, "read", lambda self, path, engine: pack(other, engine="torch"))
    code, out, _ = bnfree("export", best, "--check", "--engine=torch", "--num_images=40")
    assert code == 1
    assert "differ without a reason; nothing was written" in out
    assert not any("safetensors" in path.name for path in best.parent.iterdir())


def test_check_counts_each_difference_under_its_reason():
    network = ReActNet18(4, width=4, in_channels=1).eval()
    network.classifier.weight.data.normal_()
    images, labels = torch.randn(8, 1, 8, 8), torch.arange(8) % 4
    trained = network(images).detach()
    moved = trained.clone()
    moved[:3] += torch.tensor([1.0, 0, 0, 0]) * trained.abs().max()
    same = check(network, lambda x: trained, None, lambda x: trained, [(images, labels)])
    assert (same.images, same.same_class, same.largest_difference, same.passed) == (8, 8, 0, True)
    assert same.accuracy == (trained.argmax(1) == labels).double().mean()
    rounded = check(network, lambda x: moved, lambda x: moved, lambda x: trained, [(images, None)])
    assert (rounded.by_rounding, rounded.unexplained, rounded.passed, rounded.accuracy) == (3, 0, True, None)
    # Nothing was rounded; another network was written; the network was folded wrongly.
    for written, exact in ((None, trained), (trained, trained), (moved, moved)):
        reference = None if written is None else lambda x, written=written: written
        wrong = check(network, lambda x: moved, reference, lambda x, exact=exact: exact, [(images, None)])
        assert (wrong.by_rounding, wrong.by_threshold + wrong.unexplained) == (0, 3)


def test_the_check_takes_a_folder_of_images(bnfree, best, project):
    for index in range(3):
        (project / "images" / str(index)).mkdir(parents=True)
        Image.new("L", (11, 9), 60 * index).save(project / "images" / str(index) / "image.png")
    code, out, _ = bnfree("export", best, "--check", "--engine=torch", f"--images={project / 'images'}")
    assert code == 0
    assert "of 3 images" in out
    assert "trained," not in out


def test_where_the_data_are_missing_the_class_still_tells_the_normalisation(bnfree, complaint, best):
    options = ("--data=bnfree.datamodules.CIFAR10DataModule", "--data.data_dir=nowhere", "--image_shape=1,8,8")
    message = complaint("export", best, *options, "--check")
    assert "check has no images, since data_dir='nowhere'" in message
    assert "mean" in complaint("export", best, *options)
    code, out, _ = bnfree(
        "export",
        best,
        "--data=bnfree.datamodules.FashionMNISTDataModule",
        "--data.data_dir=nowhere",
        "--image_shape=1,8,8",
    )
    assert code == 0
    assert "The data are not there (data_dir='nowhere'" in out
    info = load(best.with_suffix(".safetensors"), "torch").info
    assert (info.mean, info.class_names, info.image_shape) == ((0.2860,), None, (1, 8, 8))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--format=tflite"], "'tflite' is not known; choose from packed, openvino"),
        (["--output=x.bin"], "output='x.bin' must end in .safetensors"),
        (["--output=no/x.safetensors"], "folder that does not exist"),
        (["--format=onnx", "--classifier_precision=int8"], "classifier_precision='int8' goes with the format packed"),
        (["--format=onnx", "--masks=digits"], "masks='digits' goes with the format packed"),
        (["--format=qonnx", "--classifier_precision=float16"], "; qonnx has float32 or int8."),
        (["--check", "--num_images=0"], "num_images=0 must be at least 1"),
        (["--check", "--images=nowhere"], "image 'nowhere' does not exist"),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(complaint, best, options, said):
    before = sorted(best.parent.iterdir())
    assert said in complaint("export", best, *options)
    assert sorted(best.parent.iterdir()) == before


@pytest.mark.slow
def test_step_1_cannot_be_exported(complaint, project):
    train_digits(project / "step1", "--model.backbone.binary_weights=false", "--test_after_fit=false")
    assert "only networks with binary_weights=True" in complaint("export", project / "step1")


def test_nothing_to_export(complaint):
    assert "the checkpoint is not given" in complaint("export", "--format=onnx")


@pytest.mark.parametrize(("name", "package"), [("openvino", "openvino"), ("onnx", "onnxscript")])
def test_a_missing_extra_names_its_installation(complaint, best, monkeypatch, name, package):
    find = formats.importlib.util.find_spec
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda n: None if n == package else find(n))
    message = complaint("export", best, f"--format={name}")
    assert f"needs {package}, which is not installed: pip install 'bnfree[{name}]'" in message


def test_qonnx_needs_its_package_only_to_be_checked(bnfree, complaint, best, monkeypatch):
    onnx = pytest.importorskip("onnx", reason="pip install 'bnfree[qonnx]'")
    find = formats.importlib.util.find_spec
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda n: None if n == "qonnx" else find(n))
    message = complaint("export", best, "--format=qonnx", "--check")
    assert "needs qonnx, which is not installed: pip install 'bnfree[qonnx]'" in message
    assert not best.with_suffix(".onnx").exists()
    code, out, err = bnfree("export", best, "--format=qonnx", "--convolution_precision=int8")
    assert code == 0, err
    assert "behind BipolarQuant" in out
    model = onnx.load(best.with_suffix(".onnx"))
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [1, 1, 8, 8]
    assert {entry.key for entry in model.metadata_props} >= {"bnfree.mean", "bnfree.class_names", "bnfree.layout"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["openvino", "torch_export", "onnx", "qonnx", "qonnx_channels_last"])
def test_every_format_passes_the_check(bnfree, best, name):
    if name.startswith("qonnx"):
        pytest.importorskip("qonnx", reason="pip install 'bnfree[qonnx]'")
    code, out, err = bnfree("export", best, f"--format={name}", "--check", "--num_images=50")
    assert code == 0, err
    assert "same class      50 of 50 images" in out
    assert "0 without a reason" in out
    assert not [path for path in best.parent.iterdir() if "unfinished" in path.name]


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["ReActNet18", "ReActNetA"])
def test_a_trained_network_passes_the_check(bnfree, project, backbone):
    options = ("--trainer.max_epochs=2", "--trainer.limit_train_batches=1.0", "--data.image_size=16")
    network = (f"--model.backbone={backbone}", "--model.backbone.in_channels=1", "--model.backbone.num_classes=10")
    train_digits(project / "run", *options, *network, "--model.backbone.width=8")
    code, out, err = bnfree("export", project / "run", "--check", "--classifier_precision=float32")
    assert code == 0, err
    assert "360 of 360 images" in out
    assert "0 by rounded real layers" in out


@pytest.mark.slow
def test_the_function_writes_what_the_command_does(bnfree, best, project):
    settings = ExportSettings(best, project / "python.safetensors", check=True, num_images=40, engine="torch")
    found = export(settings)
    code, out, err = bnfree(
        "export", best, "--output=command.safetensors", "--check", "--num_images=40", "--engine=torch"
    )
    assert code == 0, err
    assert found.paths == (project / "python.safetensors",)
    content = found.paths[0].read_bytes()
    assert content == (project / "command.safetensors").read_bytes()
    assert (found.size, found.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert found.sha256 in out
    assert found.float32_size == 4 * sum(parameter.numel() for parameter in network_of(best).parameters())
    assert (found.check.images, found.check.passed, found.checked_on) == (40, True, "test images of DigitsDataModule")
    assert f"{found.check.same_class} of 40 images" in out
    assert found.packed.info == load(found.paths[0], "torch").info
    assert found.missing_data == ""
    with pytest.raises(InputError, match="exists; give another"):
        export(settings)
    data = "bnfree.datamodules.FashionMNISTDataModule"
    options = {"data": data, "data.data_dir": "nowhere", "image_shape": "1,8,8"}
    without = export(ExportSettings(best, project / "without.safetensors", options=options))
    assert "data_dir='nowhere'" in without.missing_data
    assert without.check is None


def test_a_failed_check_is_a_result_without_files(best, monkeypatch):
    other = ReActNet18(10, width=4, in_channels=1)
    monkeypatch.setattr(formats.PackedFormat, "read", lambda self, path, engine: pack(other, engine="torch"))
    found = export(ExportSettings(best, check=True, num_images=40, engine="torch"))
    assert (found.paths, found.size, found.sha256, found.check.passed) == ((), 0, "", False)
    assert found.check.unexplained > 0


FORMAT = """
import torch

from bnfree.packing import PackedNetwork, load
from bnfree.packing.formats import ExportFormat
from bnfree.packing.layers import tensors_of


class Constants(ExportFormat):
    suffix = ".pt"
    beside = (".safetensors",)

    def write(self, packed, path, masks):
        torch.save(dict(tensors_of(packed.layers)), path)
        packed.save(path.with_suffix(".safetensors"))


class Readable(Constants):
    suffix = ".pth"

    def read(self, path, engine):
        return load(path.with_suffix(".safetensors"), "torch")


class NoFormat:
    pass
"""


@pytest.mark.slow
def test_a_format_of_the_users_own(bnfree, complaint, best, project):
    (project / "my_formats.py").write_text(FORMAT)
    code, out, err = bnfree("export", best, "--format=my_formats.Constants")
    assert code == 0, err
    assert f"{best.with_suffix('.pt')} and {best.with_suffix('.safetensors')}" in out
    stored = torch.load(best.with_suffix(".pt"))
    packed = load(best.with_suffix(".safetensors"), "torch")
    for name, tensor in tensors_of(packed.layers):
        assert torch.equal(stored[name], tensor)
    best.with_suffix(".safetensors").unlink()
    best.with_suffix(".pt").unlink()
    assert "Constants has no method read" in complaint("export", best, "--format=my_formats.Constants", "--check")
    assert not best.with_suffix(".pt").exists()
    code, out, err = bnfree("export", best, "--format=my_formats.Readable", "--check", "--num_images=20")
    assert code == 0, err
    assert "same class      20 of 20 images" in out
    assert "is no format; give a subclass" in complaint("export", best, "--format=my_formats.NoFormat")
    assert "has no 'Readible'; did you mean 'Readable'?" in complaint("export", best, "--format=my_formats.Readible")
    # In Python, the class itself.
    import my_formats

    found = export(ExportSettings(best, project / "mine.pt", my_formats.Constants))
    assert [path.name for path in found.paths] == ["mine.pt", "mine.safetensors"]


@pytest.mark.slow
def test_a_format_by_its_path_from_a_directory_with_packages_of_the_same_names(tmp_path):
    """In a process of its own, on a run that an earlier version has written."""
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks" / "__init__.py").write_text("MINE = True\n")
    (tmp_path / "my_formats.py").write_text(FORMAT)
    shutil.copytree(EARLIER / "run", tmp_path / "run")
    command = [sys.executable, "-m", "bnfree", "export", "run", "--format=my_formats.Readable", "--output=own.pth"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    assert "as the format has them" in done.stdout
    network = network_of(tmp_path / "run" / "checkpoints" / "last.ckpt")
    images = torch.randn(4, 1, 8, 8)
    exported = load(tmp_path / "own.safetensors", "torch")
    assert torch.equal(exported(images), pack(network, "float32", engine="torch")(images))


def test_help_needs_no_checkpoint(bnfree):
    code, out, _ = bnfree("export", "--help")
    assert code == 0
    for name in ("--format", "--check", "--overwrite", "--classifier_precision", "--data"):
        assert name in out


@pytest.mark.skipif(shutil.which("cc") is None or shutil.which("make") is None, reason="there is no cc or no make")
def test_a_pretrained_network_becomes_c_that_classifies_a_raw_image(bnfree, complaint, project):
    device = project / "device"
    words = ("export", "digits", "--format=c", f"--output={device}")
    assert "ram_limit=20000 is too little: the network takes 20224 bytes" in complaint(*words, "--ram_limit=20000")
    assert not list(project.glob("*device*"))
    assert "c_name goes with the format c" in complaint("export", "digits", "--format=onnx", "--c_name=a")
    assert "c_arithmetic='half' " in complaint(*words, "--c_arithmetic=half")
    assert "c_arithmetic goes with the format c" in complaint("export", "digits", "--c_arithmetic=fixed")
    assert "option '--ram_limt=1' is not known; did you mean '--ram_limit'?" in complaint(*words, "--ram_limt=1")
    assert "real layers of a packed file are rounded already" in complaint(*words, "--classifier_precision=int8")
    code, out, err = bnfree(*words, "--ram_limit=20224")
    assert (code, err) == (0, "")
    assert f"Written to {device}: device.c, device.h, main.c, Makefile, README.md;" in out
    assert "20.2 kB of static memory" in out
    assert [file.name for file in project.glob("*device*")] == ["device"]
    packed = load(pretrained_path("digits"), "torch")
    image = torch.randint(0, 256, (1, *packed.info.image_shape), dtype=torch.uint8)
    (device / "image.raw").write_bytes(image.numpy().tobytes())
    subprocess.run(["make", "-s", "-C", device, "CFLAGS=-O1"], check=True)
    found = subprocess.run([device / "example", device / "image.raw"], capture_output=True, text=True, check=True)
    assert int(found.stdout.split()[0]) == packed(image).argmax()
    assert "exists; give another --output, or --overwrite" in complaint(*words)


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no cc")
def test_the_c_of_a_checkpoint_is_checked_on_the_images_of_its_data(bnfree, best, project):
    code, out, _ = bnfree("export", best, "--format=c", "--check", "--num_images=32")
    assert code == 0
    assert "Check passed" in out
    assert (best.with_suffix("") / "best.c").is_file()

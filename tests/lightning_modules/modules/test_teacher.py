import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from bnfree.backbones import ReActNet18
from bnfree.errors import InputError
from bnfree.lightning_modules import ImageClassifier, Teacher, TorchvisionNetwork


def network(seed=0, **options):
    torch.manual_seed(seed)
    return ReActNet18(**{"num_classes": 4, "width": 4, "norm": "batch_norm", **options})


def images():
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def loaded(*args, **options):
    teacher = Teacher(*args, **options)
    teacher.load(4, (3, 8, 8))
    return teacher


def test_it_is_frozen_in_evaluation_mode_and_gives_no_gradient():
    original = network().train()
    teacher = loaded(original)
    assert not any(module.training for module in teacher.loaded.modules())
    assert not any(parameter.requires_grad for parameter in teacher.loaded.parameters())
    pictures = images().requires_grad_()
    logits = teacher(pictures)
    assert not logits.requires_grad
    assert torch.equal(logits, copy.deepcopy(original).eval()(pictures))
    # The network that was given is left alone: it may be the student.
    assert original.training
    assert all(parameter.requires_grad for parameter in original.parameters())


def test_a_copy_is_itself():
    teacher = loaded(network())
    assert copy.deepcopy(teacher) is teacher
    assert copy.deepcopy([teacher])[0] is teacher


def test_nothing_is_built_before_it_is_loaded_and_nothing_kept_afterwards():
    built = []

    def build():
        built.append(network())
        return built[-1]

    teacher = Teacher(build)
    assert not built
    teacher.load(4)
    assert teacher.loaded is built[0]
    teacher.release()
    with pytest.raises(RuntimeError, match="not loaded"):
        teacher(images())


def test_loading_draws_no_random_number():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    Teacher(lambda: ReActNet18(4, width=4)).load(4, (3, 8, 8))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("content", ["state dict", "checkpoint", "torchvision"])
def test_weights_are_read_from_a_file(tmp_path, content):
    path = str(tmp_path / "weights.pt")
    if content == "torchvision":
        torch.manual_seed(1)
        source = models.mobilenet_v3_small(num_classes=4)
        torch.save(source.state_dict(), path)
        teacher = Teacher(lambda: TorchvisionNetwork("mobilenet_v3_small", 4), path, image_size=32)
        expected = source.eval()(nn.functional.interpolate(images(), (32, 32), mode="bilinear", antialias=True))
    else:
        source = network(seed=1)
        state = source.state_dict()
        torch.save(
            state if content == "state dict" else {"state_dict": {f"backbone.{k}": v for k, v in state.items()}}, path
        )
        teacher = Teacher(network, path)
        expected = source.eval()(images())
    teacher.load(4, (3, 8, 8))
    assert torch.equal(teacher(images()), expected)


def test_a_checkpoint_of_a_run_says_which_network_it_belongs_to(tmp_path):
    source = network(seed=1)
    spec = {"class_path": "bnfree.backbones.ReActNet18", "init_args": {"num_classes": 4, "width": 4}}
    spec["init_args"]["norm"] = "batch_norm"
    state = {f"backbone.{key}": value for key, value in source.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": {"backbone": spec}}, tmp_path / "best.ckpt")
    teacher = loaded(weights=str(tmp_path / "best.ckpt"))
    assert torch.equal(teacher(images()), source.eval()(images()))
    assert teacher.name == "ReActNet18"


def test_images_are_resized_for_it_as_torchvision_resizes_them():
    from torchvision.transforms.v2 import functional

    seen = []

    class Watcher(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.mean((2, 3))

    teacher = Teacher(Watcher(), image_size=12)
    pictures = torch.rand(2, 4, 32, 32)
    teacher.load(4)
    teacher(pictures)
    torch.testing.assert_close(seen[0], functional.resize(pictures, [12, 12], antialias=True))
    teacher(torch.rand(2, 4, 32, 32, dtype=torch.bfloat16))
    assert seen[1].dtype == torch.bfloat16
    small = torch.rand(2, 4, 12, 12)
    teacher(small)
    assert seen[2] is small


def test_a_teacher_of_nothing_is_refused():
    with pytest.raises(InputError, match="neither weights nor network"):
        Teacher()
    with pytest.raises(InputError, match="image_size=0"):
        Teacher(network(), image_size=0)


class Pair(nn.Module):
    def forward(self, x):
        return x, x


def damaged(path):
    torch.save(network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:500])


@pytest.mark.parametrize(
    ("options", "write", "sentence"),
    [
        ({}, lambda path: None, "teacher.weights='.*' is not a file"),
        ({"network": network}, lambda path: None, "teacher.weights='.*' is not a file"),
        ({"network": network}, damaged, "cannot be read as a checkpoint"),
        ({}, lambda path: save_file({"a": torch.zeros(1)}, path), "is a file of safetensors, .* and no checkpoint"),
        ({"network": network}, lambda path: torch.save(network(width=8).state_dict(), path), "in another shape"),
        ({"network": network}, lambda path: torch.save(network(norm="none").state_dict(), path), "lacks"),
        ({}, lambda path: torch.save(network().state_dict(), path), "give teacher.network too"),
        ({"weights": None, "network": lambda: network(num_classes=5)}, None, "knows 5 classes.*num_classes=4"),
        ({"weights": None, "network": lambda: network(in_channels=1)}, None, r"cannot take images of shape \(3, 8, 8"),
        ({"weights": None, "network": lambda: 3}, None, "gives a int"),
        ({"weights": None, "network": Pair}, None, "gives no logits"),
    ],
)
def test_what_cannot_teach_is_refused_in_one_sentence(tmp_path, options, write, sentence):
    path = tmp_path / "teacher.pt"
    if write is not None:
        write(path)
    with pytest.raises(InputError, match=sentence) as caught:
        loaded(**{"weights": str(path), **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("class_path", "sentence"),
    [
        ("os.system", "which is none"),
        ("pathlib.Path", "which is none"),
        ("no_such_module.Net", "cannot be imported"),
        ("bnfree.backbones.ReActNet81", "cannot be imported"),
        ("Net", "cannot be imported"),
    ],
)
def test_a_checkpoint_cannot_name_just_anything_as_its_network(tmp_path, class_path, sentence):
    spec = {"class_path": class_path, "init_args": {}}
    state = {"backbone.weight": torch.zeros(1)}
    torch.save({"state_dict": state, "hyper_parameters": {"backbone": spec}}, tmp_path / "a.ckpt")
    with pytest.raises(InputError, match=sentence):
        loaded(weights=str(tmp_path / "a.ckpt"))


def test_a_run_may_start_from_torchvisions_own_file(tmp_path, corners, make_trainer):
    source = models.squeezenet1_1(num_classes=4)
    torch.save(source.state_dict(), tmp_path / "squeezenet.pth")
    corners.dataset.tensors = (corners.dataset.tensors[0].repeat(1, 1, 4, 4), corners.dataset.tensors[1])
    backbone = TorchvisionNetwork("squeezenet1_1", 4)
    module = ImageClassifier(
        backbone, optimizer=lambda p: torch.optim.SGD(p, lr=1e-30), init_from=str(tmp_path / "squeezenet.pth")
    )
    make_trainer(limit_train_batches=1, limit_val_batches=0).fit(module, datamodule=corners)
    for name, value in source.state_dict().items():
        torch.testing.assert_close(backbone.network.state_dict()[name], value)

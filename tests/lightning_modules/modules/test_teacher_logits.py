import copy
import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD

from bnfree.datamodules import DigitsDataModule
from bnfree.errors import InputError
from bnfree.lightning_modules import DistilledClassifier, Teacher
from bnfree.lightning_modules.modules.teacher_logits import FORMAT, TeacherLogits

IMAGES = 1437 - 1300


class Linear(nn.Module):
    """Answers for an image as it would in every other batch, up to rounding."""

    def __init__(self, seed, classes=10):
        super().__init__()
        torch.manual_seed(seed)
        self.classifier, self.num_classes, self.in_channels = nn.Linear(256, classes), classes, 1

    def forward(self, images):
        return self.classifier(images.flatten(1))


class Counted(Linear):
    """A teacher that counts the images it is shown in a list that survives copies."""

    def __init__(self, seed):
        super().__init__(seed)
        self.seen = Seen()

    def forward(self, images):
        self.seen.append(len(images))
        return super().forward(images)


class Seen(list):
    def __deepcopy__(self, memo):
        return self


def data(**options):
    return DigitsDataModule(batch_size=20, val_split=1300, **{"augmentation_cycle": 2, **options})


def fit(
    make_trainer,
    teacher,
    folder,
    module_options=None,
    max_epochs=4,
    ckpt_path=None,
    callbacks=(),
    precision="64-true",
    **options,
):
    torch.manual_seed(0)
    module = DistilledClassifier(
        Linear(3), teacher, logits_cache=folder and str(folder), optimizer=lambda p: SGD(p, lr=0.05),
        **(module_options or {}),
    )  # fmt: skip
    trainer = make_trainer(max_epochs=max_epochs, callbacks=list(callbacks), precision=precision, limit_val_batches=0)
    trainer.fit(module, data(**options), ckpt_path=ckpt_path)
    return module


def weights(module):
    return module.backbone.classifier.weight.detach()


@pytest.mark.parametrize(
    "options", [{}, {"augment": False, "augmentation_cycle": None}], ids=["cycle", "no augmentation"]
)
def test_training_is_the_same_as_with_a_live_teacher_that_is_asked_once(make_trainer, tmp_path, options):
    live = fit(make_trainer, Counted(1), None, **options)
    teacher = Counted(1)
    cached = fit(make_trainer, teacher, tmp_path / "logits", **options)
    torch.testing.assert_close(weights(cached), weights(live), rtol=1e-10, atol=1e-12)
    variants = 2 if not options else 1
    # The other images are the one that tries the teacher and the thousand that tell its accuracy.
    assert sum(teacher.seen) == 1 + 1000 + variants * IMAGES
    assert len(list((tmp_path / "logits").iterdir())) == variants
    before = len(teacher.seen)
    again = fit(make_trainer, teacher, tmp_path / "logits", **options)
    assert torch.equal(weights(again), weights(cached))
    assert sum(teacher.seen[before:]) == 1 + 1000


def test_files_hold_the_logits_of_the_images_as_they_are_shown(make_trainer, tmp_path):
    teachers = [Linear(1), Linear(2)]
    fit(make_trainer, teachers, tmp_path)
    module = data()
    for variant in range(2):
        logits = load_file(tmp_path / f"variant-{variant:03d}.safetensors")["logits"]
        assert logits.shape == (IMAGES, 2, 10)
        assert logits.dtype == torch.float64
        loader = module.train_dataloader()
        # Two epochs later the images are the same again.
        loader.sampler.set_epoch(variant + 2)
        for batch in loader:
            images, _ = module.on_after_batch_transfer(batch, 0)
            for index, teacher in enumerate(teachers):
                expected = copy.deepcopy(teacher).double()(images.double())
                torch.testing.assert_close(logits[batch.positions, index], expected, rtol=1e-9, atol=1e-9)


class Recorder(Callback):
    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.losses.append(outputs["loss"].item())


def test_the_loss_has_the_temperature_of_the_run_and_both_parts(make_trainer, tmp_path):
    record = Recorder()
    options = {"temperature": 3.0, "hard_label_weight": 0.25}
    fit(make_trainer, Linear(1), tmp_path, max_epochs=1)
    fit(make_trainer, Linear(1), tmp_path, options, max_epochs=1, callbacks=[record])
    module = data()
    images, labels = module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
    student, teacher = Linear(3).double()(images.double()), Linear(1).double()(images.double())
    soft = -(torch.softmax(teacher / 3, 1) * torch.log_softmax(student / 3, 1)).sum(1).mean() * 9
    expected = 0.75 * soft + 0.25 * F.cross_entropy(student, labels)
    assert record.losses[0] == pytest.approx(expected.item(), rel=1e-9)


class Stop(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 9:
            trainer.save_checkpoint(f"{trainer.default_root_dir}/stopped.ckpt")
            raise KeyError("stopped")


def test_a_run_goes_on_in_the_middle_of_an_epoch_to_the_same_bits(make_trainer, tmp_path):
    def run(**options):
        return fit(make_trainer, Linear(1), tmp_path / "logits", precision="32-true", **options)

    whole = run()
    with pytest.raises(KeyError):
        run(callbacks=[Stop()])
    assert torch.equal(weights(run(ckpt_path=tmp_path / "stopped.ckpt")), weights(whole))


def test_a_longer_cycle_takes_over_the_variants_that_are_there(make_trainer, tmp_path):
    fit(make_trainer, Linear(1), tmp_path)
    first = (tmp_path / "variant-000.safetensors").stat().st_mtime_ns
    fit(make_trainer, Linear(1), tmp_path, augmentation_cycle=3)
    assert sorted(path.name for path in tmp_path.glob("variant-*")) == [
        f"variant-00{variant}.safetensors" for variant in range(3)
    ]
    assert (tmp_path / "variant-000.safetensors").stat().st_mtime_ns == first


@pytest.mark.parametrize(
    ("teacher", "options", "words"),
    [
        (lambda: Linear(2), {}, r"other teachers; give another folder, or remove it"),
        (lambda: [Linear(1), Linear(1)], {}, r"other teachers;"),
        (lambda: Teacher(Linear(1), image_size=16), {}, r"other teachers;"),
        (lambda: Linear(1), {"seed": 5}, r"other seed \(0, not 5\)"),
        (lambda: Linear(1), {"augment": False}, r"other (images and kind of )?augmentation"),
        (lambda: Linear(1), {"split_seed": 5}, r"other images and kind of augmentation;"),
        (lambda: Linear(1), {"limit_train": 60}, r"other images \(137, not 60\)"),
    ],
    ids=["weights", "number", "image size", "seed", "augmentation", "images", "fewer images"],
)
def test_a_cache_of_something_else_is_refused(make_trainer, tmp_path, teacher, options, words):
    fit(make_trainer, Linear(1), tmp_path, max_epochs=1)
    with pytest.raises(InputError, match=f"variant-000.safetensors was made with {words}"):
        fit(make_trainer, teacher(), tmp_path, **options)


def test_images_that_never_come_again_are_refused(make_trainer, tmp_path):
    with pytest.raises(
        InputError, match=r"set data.augmentation_cycle to a number of epochs.*or data.augment to false"
    ):
        fit(make_trainer, Linear(1), tmp_path, augmentation_cycle=None)


def test_data_of_others_is_refused(make_trainer, tmp_path, corners):
    module = DistilledClassifier(_flat(), _flat(), logits_cache=str(tmp_path))
    with pytest.raises(InputError, match=r"needs a data module of bnfree.*BrightCorners does not"):
        make_trainer().fit(module, corners)


def _flat():
    network = Linear(1, classes=4)
    network.classifier, network.in_channels = nn.Linear(192, 4), 3
    return network


@pytest.mark.parametrize("content", [b"", b"not a file of logits", None], ids=["empty", "other", "a network"])
def test_a_damaged_file_is_refused(make_trainer, tmp_path, content):
    path = tmp_path / "variant-001.safetensors"
    if content is None:
        from safetensors.torch import save_file

        save_file({"logits": torch.zeros(1)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"variant-001.safetensors (cannot be read|holds no logits)"):
        fit(make_trainer, Linear(1), tmp_path)


def test_nothing_is_left_of_a_pass_that_was_stopped(make_trainer, tmp_path):
    class Fails(Linear):
        def forward(self, images):
            if len(images) == 17:
                raise KeyError("stopped")
            return super().forward(images)

    with pytest.raises(KeyError):
        fit(make_trainer, Fails(1), tmp_path)
    assert not list(tmp_path.glob("variant-*"))


def test_a_checkpoint_says_nothing_of_it(make_trainer, tmp_path):
    saved = ModelCheckpoint(tmp_path / "run", filename="last")
    fit(make_trainer, Linear(1), tmp_path / "logits", max_epochs=1, callbacks=[saved])
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert not [key for key in state["state_dict"] if re.search("logits|teacher", key)]
    with safe_open(tmp_path / "logits" / "variant-000.safetensors", framework="pt") as file:
        made_with = json.loads(file.metadata()["made_with"])
    assert made_with["images"] == IMAGES
    assert made_with["precision"] == "64-true"
    folder, file = tmp_path / "logits", tmp_path / "logits" / "variant-000.safetensors"
    assert file.stat().st_mode & 0o777 == folder.stat().st_mode & 0o666


@pytest.mark.parametrize(
    ("tensors", "made_with"),
    [
        ({"logits": torch.zeros(4, 1, 2)}, "[1"),
        ({"logits": torch.zeros(4, 1, 2)}, None),
        ({"logits": torch.zeros(4, 1, 2)}, "[]"),
        ({"logits": torch.zeros(4, 2)}, "{}"),
        ({"logits": torch.zeros(4, 3, 2)}, "{}"),
        ({"logits": torch.zeros(4, 1, 2, dtype=torch.int8)}, "{}"),
        ({"others": torch.zeros(4, 1, 2)}, "{}"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, tensors, made_with):
    metadata = {"format": FORMAT} | ({} if made_with is None else {"made_with": made_with})
    save_file(tensors, tmp_path / "variant-000.safetensors", metadata=metadata)
    cache = TeacherLogits(str(tmp_path))
    cache._made_with, cache._variants = {"teachers": ["one"]}, 1
    with pytest.raises(InputError, match="is damaged"):
        cache._check(0)


class FirstOfTwo:
    """The strategy of the first of two processes; the other one has written its part, and is ended at any moment."""

    def __init__(self, data, folder):
        self.data, self.folder = data, folder

    def broadcast(self, value):
        return value

    def batch_to_device(self, batch):
        return self.data.on_after_batch_transfer(batch, 0)

    def barrier(self, name):
        (part,) = self.folder.glob(".*.0.unfinished")
        shutil.copy(part, str(part).replace(".0.unfinished", ".1.unfinished"))


def test_the_first_process_leaves_nothing_of_the_others_where_it_cannot_write(make_trainer, tmp_path):
    images, cache = data(), TeacherLogits(str(tmp_path))
    images.setup("fit")
    teacher = Teacher(network=Linear(1))
    teacher.load(10, (1, 16, 16))
    trainer = SimpleNamespace(
        strategy=FirstOfTwo(images, tmp_path), world_size=2, global_rank=0, is_global_zero=True, datamodule=images,
        precision="32-true", precision_plugin=make_trainer().precision_plugin,
    )  # fmt: skip
    module = SimpleNamespace(trainer=trainer, current_epoch=0)
    cache.prepare(module, [teacher])
    (tmp_path / "variant-000.safetensors").mkdir()
    with pytest.raises(InputError, match="cannot be written to"):
        cache.select(module, [teacher])
    assert [path.name for path in tmp_path.iterdir()] == ["variant-000.safetensors"]

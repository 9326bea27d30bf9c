import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision import transforms

from bnfree.datamodules import ImageFolderDataModule
from bnfree.datamodules.augmentation import IMAGENET_MEAN, IMAGENET_STD, normalize, random_resized_crop_box
from bnfree.datamodules.randomness import random_for
from bnfree.errors import InputError


def module(folder, **arguments) -> ImageFolderDataModule:
    return ImageFolderDataModule(
        str(folder), **{"batch_size": 4, "image_size": 16, "num_workers": 0, "val_split": 3, **arguments}
    )


def epoch_of(data, loader, epoch=0):
    loader.sampler.set_epoch(epoch)
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


def test_classes_and_shape_are_known_before_setup(image_folder):
    data = module(image_folder({"train": 4}))
    assert (data.num_classes, data.image_shape, data.class_names) == (3, (3, 16, 16), ["cat", "dog", "eel"])


def assert_same_up_to_a_grey_level(images, files, *steps):
    """Images against Pillow's decoder and filter, whose weights are rounded to another precision."""
    pipeline = transforms.Compose([*steps, transforms.PILToTensor()])
    expected = torch.stack([pipeline(Image.open(file)) for file in files])
    grey_level = 1 / 255 / torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
    assert ((images - normalize(expected, IMAGENET_MEAN, IMAGENET_STD)).abs() < 1.01 * grey_level).all()


@pytest.mark.parametrize("kind", ["png", "jpg"])
@pytest.mark.parametrize(("height", "width"), [(20, 28), (28, 20), (18, 18), (7, 90)])
def test_evaluation_equals_torchvisions_resize_and_central_crop(image_folder, height, width, kind):
    folder = image_folder({"train": 3, "test": 2}, size=(height, width), kind=kind)
    data = module(folder)
    images = torch.cat([images for images, _ in epoch_of(data, data.test_dataloader())])
    files = sorted(folder.glob(f"test/*/*.{kind}"))
    # 18 is 16 * 256 / 224, rounded.
    assert_same_up_to_a_grey_level(images, files, transforms.Resize(18), transforms.CenterCrop(16))
    assert data.predict_image_names == [file.relative_to(folder).as_posix() for file in files]


def test_in_memory_evaluation_resizes_to_the_image_size(image_folder):
    folder = image_folder({"train": 3, "test": 2})
    data = module(folder, in_memory=True)
    images = torch.cat([images for images, _ in epoch_of(data, data.test_dataloader())])
    files = sorted(folder.glob("test/*/*.png"))
    assert_same_up_to_a_grey_level(images, files, transforms.Resize(16), transforms.CenterCrop(16))
    assert data.predict_image_names[0] == "test/cat/000.png"


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_training_equals_torchvisions_crop_and_resize_at_the_drawn_box(image_folder, kind):
    folder = image_folder({"train": 4}, size=(60, 80), kind=kind)
    data = module(folder, lighting=0, val_split=0, batch_size=12)
    loader = data.train_dataloader()
    ((images, labels),) = epoch_of(data, loader, 5)
    (positions,) = loader.sampler
    files = sorted(folder.glob(f"train/*/*.{kind}"))
    for image, label, position in zip(images, labels, positions.tolist(), strict=True):
        index = int(data._parts["train"].indices[position])
        draws = random_for(0, 5, index)
        left, top, right, bottom = random_resized_crop_box(60, 80, draws)
        size = [(bottom - top), (right - left)]
        steps = [lambda i, t=top, x=left, s=size: transforms.functional.resized_crop(i, t, x, *s, [16, 16])]
        steps += [ImageOps.mirror] if draws.random() < 0.5 else []
        assert_same_up_to_a_grey_level(image[None], [files[index]], *steps)
        assert data.class_names[int(label)] == files[index].parent.name


@pytest.mark.parametrize("in_memory", [False, True])
def test_no_global_randomness_is_used(image_folder, in_memory):
    data = module(image_folder({"train": 6}), in_memory=in_memory)
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    data.setup("fit")
    epoch_of(data, data.train_dataloader())
    data.calibration_images(3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


def test_augmentation_follows_seed_epoch_and_image_alone(image_folder):
    folder = image_folder({"train": 6})

    def images(epoch=1, **arguments):
        data = module(folder, batch_size=1, **arguments)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        batches = zip(loader, loader.sampler, strict=True)
        return {int(position): data.on_after_batch_transfer(batch, 0)[0] for batch, position in batches}

    reference, again, other_epoch, other_seed = images(), images(), images(epoch=2), images(seed=1)
    assert all(torch.equal(reference[i], again[i]) for i in reference)
    assert not any(torch.equal(reference[i], other_epoch[i]) for i in reference)
    assert not any(torch.equal(reference[i], other_seed[i]) for i in reference)


def test_workers_change_nothing(image_folder):
    folder = image_folder({"train": 6})
    expected, data = module(folder), module(folder, num_workers=2)
    loader, reference = data.train_dataloader(), expected.train_dataloader()
    before = torch.get_rng_state()
    for epoch in (0, 1):
        ours, theirs = epoch_of(data, loader, epoch), epoch_of(expected, reference, epoch)
        assert len(ours) == 3
        assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(ours, theirs, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_a_trainer_can_send_the_module_to_other_processes(image_folder):
    data = module(image_folder({"train": 6}), num_workers=2)
    data.setup("fit")
    copy = pickle.loads(pickle.dumps(data))
    ours, theirs = (epoch_of(d, d.train_dataloader()) for d in (data, copy))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(ours, theirs, strict=True))
    data.teardown("fit")
    assert len(epoch_of(data, data.train_dataloader())) == 3


@pytest.mark.slow
def test_lighting_shifts_whole_channels_by_a_few_grey_levels(image_folder):
    folder = image_folder({"train": 6})
    plain, lit = module(folder, lighting=0), module(folder, lighting=0.1)
    difference = [
        (b[0].double() - a[0].double()) * torch.tensor(IMAGENET_STD).view(1, 3, 1, 1) * 255
        for epoch in range(20)
        for a, b in zip(
            epoch_of(plain, plain.train_dataloader(), epoch), epoch_of(lit, lit.train_dataloader(), epoch), strict=True
        )
    ]
    shifts = torch.cat(difference)
    assert shifts.flatten(2).std(2).max() < 1e-3
    # Per channel the variance is the sum over components of (0.1 * eigenvalue * vector entry)^2.
    red = 25.5 * np.sqrt((0.2175 * 0.5675) ** 2 + (0.0188 * 0.7192) ** 2 + (0.0045 * 0.4009) ** 2)
    assert 0.8 * red < shifts[:, 0, 0, 0].std() < 1.2 * red


def test_validation_and_test_are_carved_from_train_where_missing(image_folder):
    data = module(image_folder({"train": 10}), val_split=6, test_split=0.2, batch_size=1, augment=False)
    data.setup()
    names = data.predict_image_names
    assert len(names) == 6
    assert all(name.startswith("train/") for name in names)
    sizes = [len(loader) for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())]
    assert sizes == [18, 6, 6]
    parts = [set(data._parts[name].indices.tolist()) for name in ("train", "val", "test")]
    assert set.union(*parts) == set(range(30))
    fresh = module(data.data_dir, val_split=6, test_split=0.2)
    fresh.setup("test")
    assert fresh.predict_image_names == names


def test_stored_parts_are_used_whole(image_folder):
    data = module(image_folder({"train": 5, "val": 2, "test": 3}), batch_size=1, test_split=0.2)
    data.setup()
    assert [len(d) for d in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())] == [15, 6, 9]


def test_without_test_images_the_message_says_what_to_do(image_folder):
    with pytest.raises(InputError, match="no test/: add it or set test_split"):
        module(image_folder({"train": 5})).setup("test")


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_undecodable_file_is_named_in_one_sentence(image_folder, in_memory, num_workers):
    folder = image_folder({"train": 4})
    path = folder / "train" / "dog" / "002.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match="cannot be decoded as an image") as caught:
        list(
            module(folder, val_split=0, in_memory=in_memory, num_workers=num_workers, batch_size=12).train_dataloader()
        )
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_grey_palette_and_transparent_images_become_rgb(image_folder):
    folder = image_folder({"train": 2, "test": 1})
    for mode, name in (("L", "g.png"), ("P", "p.png"), ("RGBA", "t.png"), ("CMYK", "c.jpg")):
        Image.new(mode, (20, 20)).save(folder / "test" / "cat" / name)
    assert sum(len(b.images) for b in module(folder).test_dataloader()) == 7


def test_folders_that_are_wrong_are_named(image_folder, tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        module(tmp_path / "nowhere")
    with pytest.raises(InputError, match="has no train/"):
        module(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match="has no class folders"):
        module(tmp_path)
    folder = image_folder({"train": 3, "val": 1})
    (folder / "train" / "fox").mkdir()
    with pytest.raises(InputError, match="train/fox has no image"):
        module(folder).setup("fit")
    (folder / "train" / "fox").rmdir()
    (folder / "val" / "dog").rename(folder / "val" / "hen")
    with pytest.raises(InputError, match=r"val has no dog/, a foreign hen/: it must have the classes of .*train"):
        module(folder).setup("fit")


@pytest.mark.parametrize(
    ("argument", "value"),
    [("image_size", 0), ("num_workers", -1), ("lighting", -0.1), ("test_split", 1.5), ("normalization", "mnist")],
)
def test_arguments_out_of_range_are_refused(image_folder, argument, value):
    with pytest.raises(InputError, match=f"{argument}={value!r}"):
        module(image_folder({"train": 2}), **{argument: value})


def test_folders_of_classes_alone_are_split_by_seed(image_folder):
    folder = image_folder({".": 10})
    (folder / ".cache").mkdir()
    data = module(folder, val_split=0.2, test_split=6)
    data.setup()
    assert data.class_names == ["cat", "dog", "eel"]
    parts = {name: {part.source.name(i) for i in part.indices.tolist()} for name, part in data._parts.items()}
    assert {name: len(names) for name, names in parts.items()} == {"train": 19, "val": 5, "test": 6}
    assert len(set.union(*parts.values())) == 30
    assert "cat/000.png" in set.union(*parts.values())
    again, other = (
        module(folder, val_split=0.2, test_split=6),
        module(folder, val_split=0.2, test_split=6, split_seed=1),
    )
    assert again.predict_image_names == data.predict_image_names != other.predict_image_names


def test_folders_of_classes_beside_a_part_are_refused(image_folder):
    folder = image_folder({".": 2, "val": 2})
    with pytest.raises(InputError, match="has no train/ beside its val/"):
        module(folder)


@pytest.mark.parametrize(("size", "expected"), [((20, 28), 32), ((64, 90), 64), ((300, 100), 96), ((400, 500), 224)])
def test_size_of_images_is_that_of_the_files(image_folder, size, expected):
    assert module(image_folder({"train": 2}, size=size), image_size=None).image_shape == (3, expected, expected)


def test_workers_follow_the_cores_of_the_process(image_folder, monkeypatch):
    folder = image_folder({"train": 2})
    for cores, expected in ((1, 1), (3, 3), (64, 8)):
        monkeypatch.setattr("os.sched_getaffinity", lambda process, cores=cores: set(range(cores)))
        assert module(folder, num_workers=None).num_workers == expected


def test_it_says_what_it_has_found(image_folder):
    assert module(image_folder({"train": 6})).describe() == (
        "3 classes, images of 3x16x16; 15 training, 3 validation (drawn from train/), no test images."
    )
    data = module(image_folder({"train": 6, "val": 2, "test": 2}), val_split=0)
    assert data.describe().endswith("18 training, 6 validation (val/), test images (test/) for bnfree test.")
    assert module(image_folder({"train": 6}), val_split=0).has_test_images

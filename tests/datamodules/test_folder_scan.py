"""Which files of a folder count: for data modules, and for the images that a packed network predicts."""

import os
import warnings

import pytest
import torch
from PIL import Image
from small_data import write_image

from bnfree.datamodules import ImageFolderDataModule
from bnfree.datamodules.folder_scan import FolderScan
from bnfree.errors import InputError
from bnfree.lightning_modules.deployment.image_batches import find_images

HIDDEN = (".ipynb_checkpoints", "@eaDir", ".git", "__MACOSX", ".AppleDouble", "#recycle", "$RECYCLE.BIN", "lost+found")


def module(folder, **options):
    options = {"batch_size": 1, "val_split": 0, "image_size": 16, "num_workers": 0, **options}
    return ImageFolderDataModule(str(folder), **options)


def count(data):
    return len(data.train_dataloader())


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("below", ["train/cat", "train/cat/more/deeper", "train"])
def test_hidden_folders_are_skipped_at_every_depth(image_folder, hidden, below):
    folder = image_folder({"train": 4, "test": 1})
    write_image(folder / "train" / "cat" / "more" / "deeper" / "a.png", 20, 20, seed=1)
    for place in (hidden, f"{hidden}/inside"):
        write_image(folder / below / place / "000-checkpoint.png", 20, 20, seed=2)
    data = module(folder)
    assert data.class_names == ["cat", "dog", "eel"]
    assert count(data) == 13
    assert len(find_images([str(folder / "train")])) == 13


def test_order_is_that_of_names_with_files_before_folders(image_folder):
    folder = image_folder({"train": 1, "test": 2}, classes=("a",))
    for name in ("b/1.png", "a/2.png", "a/1/3.png", "c.png"):
        write_image(folder / "test" / "a" / name, 20, 20, seed=3)
    expected = ["000.png", "001.png", "c.png", "a/2.png", "a/1/3.png", "b/1.png"]
    assert module(folder).predict_image_names == [f"test/a/{name}" for name in expected]


def link(place, target, absolute):
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target if absolute else os.path.relpath(target, place.parent), target_is_directory=True)


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("target", ["train/cat", "train", ".", ".."])
@pytest.mark.parametrize("place", ["train/cat/up", "train/cat/deep/er/up"])
def test_a_link_to_a_folder_that_holds_it_is_refused(image_folder, place, target, absolute):
    folder = image_folder({"train": 4, "test": 1})
    link(folder / place, (folder / target).resolve(), absolute)
    with pytest.raises(InputError, match=r"up is a link to .*, a folder that holds it: remove the link\.") as caught:
        module(folder).setup("fit")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="a folder that holds it"):
        find_images([str(folder / "train")])


def test_a_class_that_is_a_link_upwards_is_refused(image_folder):
    folder = image_folder({"train": 4})
    link(folder / "train" / "fox", folder, True)
    with pytest.raises(InputError, match="fox is a link to"):
        module(folder).setup("fit")


def test_a_link_back_through_another_link_is_refused(image_folder, tmp_path_factory):
    folder, away = image_folder({"train": 4}), tmp_path_factory.mktemp("away")
    link(folder / "train" / "cat" / "out", away, True)
    link(away / "back", folder / "train", True)
    with pytest.raises(InputError, match="back is a link to"):
        module(folder).setup("fit")


def test_links_that_lead_to_themselves_or_nowhere_end(image_folder):
    folder = image_folder({"train": 4})
    for name in ("train/loop", "train/cat/loop"):
        (folder / name).symlink_to(folder / name)
    (folder / "train" / "cat" / "one").symlink_to(folder / "train" / "cat" / "two")
    (folder / "train" / "cat" / "two").symlink_to(folder / "train" / "cat" / "one")
    (folder / "train" / "gone").symlink_to(folder / "nowhere")
    assert count(module(folder)) == 12


def test_two_folders_that_hold_links_to_each_other_are_read_once(image_folder, tmp_path_factory):
    away = tmp_path_factory.mktemp("away")
    for name in ("x", "y"):
        write_image(away / name / f"{name}.png", 20, 20, seed=5)
    link(away / "x" / "other", away / "y", True)
    link(away / "y" / "other", away / "x", True)
    folder = image_folder({"train": 4})
    link(folder / "train" / "cat" / "away", away / "x", True)
    with pytest.raises(InputError, match="a folder that holds it"):
        module(folder).setup("fit")


def test_a_folder_that_several_links_lead_to_is_read_once(image_folder, tmp_path_factory):
    folder, away = image_folder({"train": 4}), tmp_path_factory.mktemp("away")
    write_image(away / "a.png", 20, 20, seed=5)
    for name in ("one", "two"):
        link(folder / "train" / "cat" / name, away, True)
    data = module(folder)
    assert count(data) == 13
    names = [data._parts["train"].source.name(index) for index in range(13)]
    assert [name for name in names if "one" in name or "two" in name] == ["train/cat/one/a.png"]


def test_images_of_one_folder_are_not_of_two_classes(image_folder):
    folder = image_folder({"train": 4})
    link(folder / "train" / "fox", folder / "train" / "cat", True)
    with pytest.raises(InputError, match=r"train/fox is the same folder as .*train/cat, .* of two classes"):
        module(folder).setup("fit")


@pytest.mark.parametrize("absolute", [True, False])
def test_a_class_or_a_part_that_is_a_link_works(image_folder, tmp_path_factory, absolute):
    folder, away = image_folder({"train": 4, "test": 1}), tmp_path_factory.mktemp("away")
    (folder / "train" / "cat").rename(away / "cats")
    link(folder / "train" / "cat", away / "cats", absolute)
    (folder / "test").rename(away / "held_out")
    link(folder / "test", away / "held_out", absolute)
    data = module(folder)
    assert (count(data), len(data.test_dataloader())) == (12, 3)
    assert len(find_images([str(folder / "train")])) == 12


def test_a_folder_that_cannot_be_read_is_named(image_folder, monkeypatch):
    folder = image_folder({"train": 4})
    (folder / "train" / "dog" / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"dog/closed cannot be read \(Permission denied\)"):
        module(folder).setup("fit")


def test_what_is_no_file_is_left_out(image_folder):
    folder = image_folder({"train": 4})
    os.mkfifo(folder / "train" / "cat" / "pipe.png")
    assert count(module(folder)) == 12
    assert list(FolderScan().images(folder / "train" / "cat")) == [f"{i:03d}.png" for i in range(4)]


def warned(data, *stages):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for stage in stages:
            data.setup(stage)
    return [str(warning.message) for warning in caught if "too much for new images" in str(warning.message)]


@pytest.fixture
def separate(image_folder):
    """Three parts of different images."""
    folder = image_folder({"train": 4})
    for part, seed in (("val", 5), ("test", 6)):
        for number, name in enumerate(("cat", "dog", "eel")):
            write_image(folder / part / name / "000.png", 20, 28, seed=100 * seed + number)
    return folder


@pytest.mark.parametrize("stages", [("fit",), ("test",), ("fit", "test"), ("test", "fit", None)])
@pytest.mark.parametrize("in_memory", [False, True])
def test_images_that_are_in_training_and_test_are_said_once(separate, stages, in_memory):
    for name in ("cat", "eel"):
        content = (separate / "train" / name / "002.png").read_bytes()
        (separate / "test" / "dog" / f"copy of {name}.png").write_bytes(content)
    (line,) = warned(module(separate, in_memory=in_memory), *stages)
    assert "\n" not in line
    assert " has 2 of the images of " in line
    assert "test/dog/copy of cat.png" in line
    assert "train/cat/002.png" in line


def test_so_are_images_of_validation_and_links_into_the_test_part(separate):
    link(separate / "train" / "cat" / "more", separate / "test" / "cat", True)
    content = (separate / "train" / "eel" / "001.png").read_bytes()
    (separate / "val" / "eel" / "x.png").write_bytes(content)
    lines = warned(module(separate), "fit")
    assert len(lines) == 2
    assert "val/eel/x.png" in lines[0]
    assert "test/cat/000.png" in lines[1]


def test_nothing_is_said_of_different_images_of_one_size(separate):
    for number, path in enumerate(sorted(separate.glob("*/*/*.png"))):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(path.with_suffix(".bmp"))
        path.unlink()
    assert len({path.stat().st_size for path in separate.glob("*/*/*.bmp")}) == 1
    assert warned(module(separate), "fit", "test") == []


def test_other_processes_and_large_sets_compare_nothing(separate, on_rank, monkeypatch):
    (separate / "test" / "cat" / "a.png").write_bytes((separate / "train" / "cat" / "000.png").read_bytes())
    assert warned(on_rank(module(separate), 2, 1), "fit") == []
    assert len(warned(on_rank(module(separate), 2, 0), "fit")) == 1
    for limit in ("MOST_FILES", "MOST_BYTES"):
        with monkeypatch.context() as patch:
            patch.setattr(f"bnfree.datamodules.same_images.{limit}", 10)
            assert warned(module(separate), "fit") == []


def test_photographs_stand_upright_unless_asked_otherwise(image_folder):
    """Evaluation, training, memory and caches, against the same pixels stored upright."""
    folder = image_folder({"train": 6, "test": 2}, size=(40, 56))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = folder.parent / "upright"
    for path in sorted(folder.glob("*/*/*.png")):
        image = Image.open(path)
        image.load()
        place = upright / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        image.transpose(Image.Transpose.ROTATE_270).save(place)
        image.save(path, exif=exif)
    lying = folder.parent / "lying"
    for path in sorted(folder.glob("*/*/*.png")):
        place = lying / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(place, exif=b"")

    def seen(root, **options):
        data = module(root, batch_size=6, lighting=0, **options)
        loaders = (data.train_dataloader(), data.test_dataloader())
        return torch.cat([data.on_after_batch_transfer(batch, 0)[0] for loader in loaders for batch in loader])

    for options in ({}, {"in_memory": True}, {"cache": "raw"}, {"cache": "jpeg256"}):
        assert torch.equal(seen(folder, **options), seen(upright, **options))
        assert torch.equal(seen(folder, exif_orientation=False, **options), seen(lying, **options))
        assert not torch.equal(seen(folder, **options), seen(lying, **options))

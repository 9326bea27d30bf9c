import multiprocessing
import os
import pickle
import re
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image
from small_data import write_image
from torchvision import transforms

from bnfree.datamodules import ImageFolderDataModule, ImageNetDataModule, image_store
from bnfree.errors import InputError
from bnfree.images.decoding import decode_image


def module(folder, **options):
    defaults = {"batch_size": 6, "val_split": 0, "image_size": 28, "num_workers": 0}
    return ImageFolderDataModule(str(folder), **{**defaults, **options})


def epoch_of(data, loader, epoch=0):
    loader.sampler.set_epoch(epoch)
    return torch.cat([data.on_after_batch_transfer(batch, 0)[0] for batch in loader])


@pytest.fixture
def folder(image_folder):
    """Images that are larger than the 32 pixels of the evaluation of 28, and some that are smaller."""
    root = image_folder({"train": 4, "test": 3}, size=(60, 81), kind="png")
    write_image(root / "test" / "cat" / "small.png", 20, 30, seed=5)
    write_image(root / "train" / "cat" / "small.png", 20, 30, seed=6)
    return root


def test_evaluation_from_raw_pixels_is_that_from_files(folder):
    plain, cached = module(folder), module(folder, cache="raw")
    assert torch.equal(epoch_of(cached, cached.test_dataloader()), epoch_of(plain, plain.test_dataloader()))
    assert torch.equal(cached.calibration_images(9), plain.calibration_images(9))
    assert cached.predict_image_names == plain.predict_image_names


@pytest.fixture
def picture(image_folder):
    """A picture that is brighter to the right in one colour and to the bottom in another, so that a place shows."""
    root = image_folder({"train": 1, "test": 1}, size=(240, 320))
    rows, columns = torch.meshgrid(torch.arange(240), torch.arange(320), indexing="ij")
    content = torch.stack([rows, columns * 3 // 4, (rows + columns) // 3]).to(torch.uint8)
    for path in root.glob("*/*/*.png"):
        transforms.functional.to_pil_image(content).save(path)
    return root


def test_evaluation_from_jpeg_is_nearly_that_from_files(picture):
    plain, cached = module(picture), module(picture, cache="jpeg256")
    images, expected = (epoch_of(data, data.test_dataloader()) for data in (cached, plain))
    assert not torch.equal(images, expected)
    # Three grey levels of 255 divided by a standard deviation of 0.22.
    assert (images - expected).abs().mean() < 3 / 255 / 0.22


@pytest.mark.parametrize("cache", ["raw", "jpeg256"])
def test_a_crop_of_training_shows_the_same_part_of_the_picture(picture, cache):
    plain, cached = (module(picture, cache=kind, batch_size=3) for kind in ("none", cache))
    for epoch in range(10):
        images, expected = (epoch_of(data, data.train_dataloader(), epoch) for data in (cached, plain))
        # A pixel of the smaller copy is 7.5 of the picture.
        assert (images - expected).abs().mean() < 5 / 255 / 0.22


def test_stored_images_are_the_shorter_side_resized(folder):
    source = module(folder, cache="raw")._required_part("train", "fit").source
    for index in range(4):
        image = source.store.image(index)
        expected = transforms.functional.resize(decode_image(folder / source.name(index)), 32, antialias=True)
        assert image.shape == expected.shape == (3, 32, 43)
        assert (image.int() - expected.int()).abs().max() <= 1
        assert source.store.original_size(index) == (60, 81)


def made(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / ".cache").iterdir() if "lock" not in path.name}


def test_it_is_made_once_and_again_when_files_change(folder):
    module(folder, cache="raw").setup()
    first = made(folder)
    assert set(first) == {f"{part}-raw-32.{kind}" for part in ("train", "test") for kind in ("data", "index.npz")}
    module(folder, cache="raw").setup()
    assert made(folder) == first
    write_image(folder / "train" / "dog" / "001.png", 70, 90, seed=99)
    plain, cached = module(folder), module(folder, cache="raw")
    assert torch.equal(cached.calibration_images(13), plain.calibration_images(13))
    again = made(folder)
    assert again["train-raw-32.data"] != first["train-raw-32.data"]
    assert again["test-raw-32.data"] == first["test-raw-32.data"]
    (folder / "train" / "dog" / "001.png").unlink()
    assert len(module(folder, cache="raw").calibration_images(12)) == 12


def spoil_index(index, damage):
    with np.load(index) as file:
        arrays = dict(file)
    if damage == "bad checksum":
        content = bytearray(index.read_bytes())
        content[content.index(b"NUMPY") + 150] ^= 255
        index.write_bytes(content)
        return
    if damage == "truncated index":
        os.truncate(index, index.stat().st_size * 2 // 3)
        return
    if damage == "an array less":
        del arrays["originals"]
    elif damage == "other type":
        arrays["offsets"] = arrays["offsets"].astype(np.float64)
    elif damage == "objects":
        arrays["shapes"] = np.array([None] * len(arrays["shapes"]))
    elif damage == "other shape":
        arrays["shapes"] = arrays["shapes"][:-1]
    elif damage == "other places":
        arrays["offsets"][1] += 1
    elif damage == "beyond the end":
        arrays["offsets"][1:] += 10**12
    np.savez(index, **arrays)


@pytest.mark.parametrize(
    "damage",
    [
        *("bad checksum", "truncated index", "an array less", "other type", "objects", "other shape"),
        *("other places", "beyond the end"),
    ],
)
def test_a_spoilt_index_is_made_again(folder, damage):
    plain = module(folder)
    module(folder, cache="raw").setup()
    spoil_index(folder / ".cache" / "test-raw-32.index.npz", damage)
    cached = module(folder, cache="raw")
    assert torch.equal(epoch_of(cached, cached.test_dataloader()), epoch_of(plain, plain.test_dataloader()))


def test_pixels_that_have_been_damaged_are_told(folder):
    module(folder, cache="jpeg256").setup()
    data = folder / ".cache" / "test-jpeg256-32.data"
    data.write_bytes(bytes(data.stat().st_size))
    with pytest.raises(InputError, match=r"test-jpeg256-32.data is damaged: remove it, and it is made again"):
        epoch_of(spoilt := module(folder, cache="jpeg256"), spoilt.test_dataloader())


def test_a_damaged_size_is_told_before_its_pixels_take_memory(folder, monkeypatch):
    module(folder, cache="jpeg256").setup()
    data = folder / ".cache" / "test-jpeg256-32.data"
    content = bytearray(data.read_bytes())
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = b"\xff\xdc\xff\xdc"
    data.write_bytes(content)
    monkeypatch.setattr(image_store, "decode_jpeg_bytes", lambda content: pytest.fail("65500 x 65500 pixels decoded"))
    with pytest.raises(InputError, match=r"test-jpeg256-32.data is damaged"):
        epoch_of(spoilt := module(folder, cache="jpeg256"), spoilt.test_dataloader())


def test_it_is_made_again_for_the_other_orientation(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = folder / "test" / "cat" / "000.png"
    Image.open(path).save(path, exif=exif)
    turned, lying = (module(folder, cache="raw", exif_orientation=option).test_dataloader() for option in (True, False))
    sizes = [loader._batches.source.store.original_size(0) for loader in (turned, lying)]
    assert sizes == [(81, 60), (60, 81)]


@pytest.mark.parametrize("damage", ["truncated", "no index", "damaged index"])
def test_what_is_not_whole_is_made_again(folder, damage):
    plain = module(folder)
    module(folder, cache="raw").setup()
    data, index = (folder / ".cache" / f"test-raw-32.{kind}" for kind in ("data", "index.npz"))
    if damage == "truncated":
        os.truncate(data, 100)
    elif damage == "no index":
        index.unlink()
    else:
        index.write_bytes(b"PK")
    cached = module(folder, cache="raw")
    assert torch.equal(epoch_of(cached, cached.test_dataloader()), epoch_of(plain, plain.test_dataloader()))


def test_nothing_that_could_be_taken_for_whole_is_left_when_it_is_stopped(folder, monkeypatch):
    def stop(image):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(image_store, "_pixels", stop)
        with pytest.raises(KeyboardInterrupt):
            module(folder, cache="raw").setup()
    assert made(folder) == {}
    module(folder, cache="raw").setup()
    assert len(made(folder)) == 4


def test_a_file_that_is_no_image_is_named(folder):
    (folder / "train" / "eel" / "000.png").write_text("no image")
    with pytest.raises(InputError, match=r"eel/000.png cannot be decoded"):
        module(folder, cache="raw").setup()
    assert made(folder) == {}


def setup_and_sum(folder, queue):
    data = module(folder, cache="raw")
    queue.put(float(epoch_of(data, data.test_dataloader()).double().sum()))


def test_processes_at_the_same_time_share_it(folder):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=setup_and_sum, args=(folder, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    sums = {queue.get(timeout=1200) for _ in processes}
    for process in processes:
        process.join()
    plain = module(folder)
    assert sums == {float(epoch_of(plain, plain.test_dataloader()).double().sum())}
    assert len(made(folder)) == 2


def test_workers_read_it_too(folder):
    alone, helped = module(folder, cache="raw"), module(folder, cache="raw", num_workers=2)
    assert torch.equal(epoch_of(helped, helped.train_dataloader()), epoch_of(alone, alone.train_dataloader()))
    helped.teardown("fit")


def test_a_store_travels_without_its_content(folder):
    source = module(folder, cache="raw")._required_part("train", "fit").source
    image = source.store.image(3)
    sent = pickle.dumps(source.store)
    assert len(sent) < (folder / ".cache" / "train-raw-32.data").stat().st_size / 2
    assert torch.equal(pickle.loads(sent).image(3), image)


def test_it_lies_where_the_user_wants_it(folder, tmp_path):
    module(folder, cache="jpeg256", cache_dir=str(tmp_path / "fast" / "disk")).setup("test")
    assert (tmp_path / "fast" / "disk" / "test-jpeg256-32.data").is_file()
    assert not (folder / ".cache").exists()


def test_imagenet_has_it_and_its_test_images_are_val(image_folder):
    root = image_folder({"train": 2, "val": 2}, size=(40, 50))
    with pytest.warns(UserWarning, match="3 classes"):
        data = ImageNetDataModule(str(root), 2, val_split=0, image_size=28, num_workers=0, cache="raw")
    data.setup()
    assert set(made(root)) == {f"{part}-raw-32.{kind}" for part in ("train", "val") for kind in ("data", "index.npz")}


@pytest.mark.parametrize(
    ("options", "words"),
    [({"cache": "png"}, "cache='png' must be one of"), ({"cache": "raw", "in_memory": True}, "cache='raw' has no use")],
)
def test_wrong_options(folder, options, words):
    with pytest.raises(InputError, match=re.escape(words)):
        module(folder, **options)


def test_a_folder_that_cannot_be_written_to_is_named(folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cache_dir='.*file' cannot be written to"):
        module(folder, cache="raw", cache_dir=str(tmp_path / "file")).setup()


def test_too_little_space_is_found_out_early(folder, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(image_store.shutil, "disk_usage", lambda path: usage(100))
    with pytest.raises(InputError, match=r"cache='raw' needs about 0.0 GiB .* 0.0 GiB are free"):
        module(folder, cache="raw").setup()
    assert made(folder) == {}

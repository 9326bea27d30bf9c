import gzip
import os
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from small_data import idx_bytes, write_fashion_mnist

from bnfree.datamodules import FashionMNISTDataModule
from bnfree.datamodules.idx import read_idx
from bnfree.errors import InputError


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("below", ["", "FashionMNIST/raw"])
def test_reads_both_layouts_packed_and_unpacked(tmp_path, packed, below):
    arrays = write_fashion_mnist(tmp_path / below, packed)
    module = FashionMNISTDataModule(str(tmp_path), batch_size=8, val_split=10)
    assert (module.num_classes, module.image_shape) == (10, (1, 28, 28))
    module.prepare_data()
    module.setup()
    batches = list(module.test_dataloader())
    images = torch.cat([batch.images for batch in batches])
    assert np.array_equal(images[:, 0].numpy(), arrays["t10k-images-idx3-ubyte"])
    labels = torch.cat([batch.targets for batch in batches])
    assert labels.tolist() == arrays["t10k-labels-idx1-ubyte"].tolist()
    assert len(module.class_names) == 10
    assert module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)[0].shape == (8, 1, 28, 28)


def test_missing_files_are_named_at_once(tmp_path):
    with pytest.raises(InputError, match=r"data_dir='.*nowhere' is not a folder"):
        FashionMNISTDataModule(str(tmp_path / "nowhere"))
    write_fashion_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError, match=r"no t10k-labels-idx1-ubyte\.gz: put .* or set download: true"):
        FashionMNISTDataModule(str(tmp_path))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[: len(raw) // 2], "cannot be read"),
        (lambda raw: b"not gzip at all", "cannot be read"),
        (lambda raw: raw[:30] + bytes(20) + raw[50:], "cannot be read"),
        (lambda raw: gzip.compress(b"\0\0\x0d\3" + gzip.decompress(raw)[4:]), "begins with 00 00 0d 03"),
        (lambda raw: gzip.compress(gzip.decompress(raw)[:-1]), "states 39200 values but holds 39199"),
        (lambda raw: gzip.compress(gzip.decompress(raw) + b"x"), "states 39200 values but holds 39201"),
        (lambda raw: gzip.compress(b""), "begins with nothing"),
    ],
)
def test_damaged_files_are_named(tmp_path, damage, message):
    write_fashion_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=message) as caught:
        FashionMNISTDataModule(str(tmp_path), val_split=10).setup("fit")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_and_labels_must_agree(tmp_path):
    write_fashion_mnist(tmp_path, num_labels=19)
    with pytest.raises(InputError, match=r"holds 50 images but train-labels-idx1-ubyte\.gz 19 labels"):
        FashionMNISTDataModule(str(tmp_path), val_split=10).setup("fit")


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", offline)
    with pytest.raises(InputError, match=r"download=True could not fetch Fashion-MNIST .no route to host"):
        FashionMNISTDataModule(str(tmp_path), download=True).prepare_data()
    write_fashion_mnist(tmp_path)
    FashionMNISTDataModule(str(tmp_path), download=True).prepare_data()


def in_little_memory(function):
    """Runs it where 200 MiB more than now can be had; `ru_maxrss` would count what others have used."""
    limit = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20, limit[1]))
    try:
        function()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)


@pytest.mark.parametrize("shape", [(5_000_000, 28, 28), (2**32 - 1,) * 3, (60_000, 28, 28)])
@pytest.mark.parametrize("name", ["x.gz", "x"])
def test_a_file_that_states_or_holds_gigabytes_is_refused_unread(tmp_path, name, shape):
    """The last states 47 MB and holds 3 GB of zeros, packed into 3 MB."""
    path = tmp_path / name
    start = struct.pack(">BBBB3I", 0, 0, 8, 3, *shape)
    if name == "x":
        path.write_bytes(start)
        os.truncate(path, 3 << 30)
    else:
        block = gzip.compress(bytes(1 << 24))
        path.write_bytes(gzip.compress(start) + block * 180)

    def read():
        said = "are not read" if shape[0] != 60_000 else r"states 47040000 values but holds 47040001 or more"
        with pytest.raises(InputError, match=said):
            read_idx(path, 3)

    in_little_memory(read)


def test_read_idx_gives_the_stated_shape(tmp_path):
    values = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "x").write_bytes(idx_bytes(values))
    assert np.array_equal(read_idx(tmp_path / "x", 3).numpy(), values)

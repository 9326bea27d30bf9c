import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from small_data import write_cifar, write_pickle

from bnfree.datamodules import CIFAR10DataModule, CIFAR100DataModule
from bnfree.errors import InputError


def as_published(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """Make torchvision list the MD5 sums of the files under `root`."""
    for dataset in (torchvision.datasets.CIFAR10, torchvision.datasets.CIFAR100):
        for attribute in ("train_list", "test_list"):
            entries = []
            for name, _ in getattr(dataset, attribute):
                file = root / dataset.base_folder / name
                entries.append([name, hashlib.md5(file.read_bytes()).hexdigest() if file.exists() else ""])
            monkeypatch.setattr(dataset, attribute, entries)
        meta = root / dataset.base_folder / dataset.meta["filename"]
        if meta.exists():
            monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": hashlib.md5(meta.read_bytes()).hexdigest()})


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(("module", "classes"), [(CIFAR10DataModule, 10), (CIFAR100DataModule, 100)])
@pytest.mark.filterwarnings("error")
def test_reads_what_torchvision_reads(tmp_path, monkeypatch, module, classes, protocol):
    write_cifar(tmp_path, classes, protocol=protocol)
    as_published(monkeypatch, tmp_path)
    data = module(str(tmp_path), batch_size=7, val_split=4)
    assert (data.num_classes, data.image_shape) == (classes, (3, 32, 32))
    data.setup()
    for train, part in ((True, "train"), (False, "test")):
        dataset = getattr(torchvision.datasets, f"CIFAR{classes}")(str(tmp_path), train=train)
        source = data.load(part)
        images = source.images(torch.arange(len(dataset)))
        assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), dataset.data)
        assert source.labels.tolist() == dataset.targets
    assert data.class_names[3] == "c3"
    images, labels = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert images.shape == (7, 3, 32, 32)
    assert labels.dtype == torch.int64


def test_files_with_byte_keys_are_read(tmp_path):
    for name, content in write_cifar(tmp_path, 10).items():
        bytes_content = {key.encode(): value for key, value in content.items()}
        write_pickle(tmp_path / "cifar-10-batches-py" / name, bytes_content)
    with pytest.warns(UserWarning, match="not the published data set"):
        CIFAR10DataModule(str(tmp_path), val_split=4).setup("fit")


def test_changed_files_are_read_with_a_warning_that_names_them(tmp_path, monkeypatch):
    write_cifar(tmp_path, 10)
    as_published(monkeypatch, tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    raw = bytearray(path.read_bytes())
    raw[5000] ^= 1
    path.write_bytes(raw)
    with pytest.warns(UserWarning, match="MD5 sum of data_batch_3 differs"):
        CIFAR10DataModule(str(tmp_path), val_split=4).setup("fit")


def test_missing_files_are_named_at_once(tmp_path):
    with pytest.raises(InputError, match=r"data_dir='.*nowhere' is not a folder"):
        CIFAR10DataModule(str(tmp_path / "nowhere"))
    with pytest.raises(
        InputError, match=r"no cifar-10-batches-py/: unpack cifar-10-python\.tar\.gz there or set download"
    ):
        CIFAR10DataModule(str(tmp_path))
    write_cifar(tmp_path, 10)
    (tmp_path / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.raises(InputError, match="no cifar-10-batches-py/data_batch_4: unpack"):
        CIFAR10DataModule(str(tmp_path))


class Harmful:
    def __reduce__(self):
        return os.system, ("echo this must not run",)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps([1, 2]),
        pickle.dumps(Harmful()),
        pickle.dumps({"data": np.zeros((5, 3072), np.float32), "labels": [0] * 5}),
        pickle.dumps({"data": np.zeros((5, 3071), np.uint8), "labels": [0] * 5}),
        pickle.dumps({"data": np.zeros((5, 3072), np.uint8), "labels": [0] * 4}),
        pickle.dumps({"data": np.zeros((5, 3072), np.uint8), "labels": [10] * 5}),
        pickle.dumps({"data": np.zeros((5, 3072), np.uint8)}),
        pickle.dumps({"data": np.zeros((5, 3072), np.uint8), "labels": [0] * 5})[:-1000],
    ],
)
def test_damaged_files_are_named_and_run_nothing(tmp_path, content, capfd):
    write_cifar(tmp_path, 10)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(content)
    with pytest.raises(InputError, match="unpack its archive again") as caught:
        CIFAR10DataModule(str(tmp_path), val_split=4).setup("fit")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "must not run" not in capfd.readouterr().out


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.CIFAR100", offline)
    with pytest.raises(InputError, match=r"could not fetch cifar-100-python\.tar\.gz .no route to host.: unpack it"):
        CIFAR100DataModule(str(tmp_path), download=True).prepare_data()


@pytest.mark.parametrize("nested", ["labels", "label_names"])
def test_lists_that_hold_themselves_many_times_are_refused(tmp_path, nested):
    """A few hundred bytes that stand for 10^30 numbers."""
    write_cifar(tmp_path, 10)
    bomb: list = [0]
    for _ in range(30):
        bomb = [bomb] * 10
    folder = tmp_path / "cifar-10-batches-py"
    path = folder / ("data_batch_3" if nested == "labels" else "batches.meta")
    content = pickle.loads(path.read_bytes())
    write_pickle(path, {**content, nested: bomb})
    with pytest.raises(InputError, match=f"{path.name} has no "):
        CIFAR10DataModule(str(tmp_path), val_split=10).setup("fit")


@pytest.mark.parametrize("code", [b"O8", b"V1", b"M8", b"f4"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_of_anything_but_numbers_are_refused_before_numpy_reads_them(tmp_path, code, protocol):
    for name in write_cifar(tmp_path, 10, protocol=protocol):
        path = tmp_path / "cifar-10-batches-py" / name
        path.write_bytes(path.read_bytes().replace(b"u1", code))
    with pytest.raises(InputError, match=rf"is damaged \(it has an array of .{code.decode()}\)"):
        CIFAR10DataModule(str(tmp_path), val_split=4).setup()


def test_a_file_that_numbers_more_objects_than_it_has_takes_no_memory_for_them(tmp_path):
    write_cifar(tmp_path, 10)
    # A memo entry of number 2^31, for which the unpickler would make room first.
    (tmp_path / "cifar-10-batches-py/data_batch_1").write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")
    with pytest.raises(InputError, match="numbers more objects than it has"):
        CIFAR10DataModule(str(tmp_path), val_split=4).setup()

"""CIFAR-10 and CIFAR-100."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_warn

from bnfree.datamodules.base import ImageDataModule
from bnfree.datamodules.checks import existing_folder
from bnfree.datamodules.cifar_files import file_digest, read_batch, read_class_names
from bnfree.datamodules.sources import ImageSource, TensorSource
from bnfree.errors import InputError


class CIFARFiles(NamedTuple):
    """What the published archive of a data set holds."""

    folder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    label_key: str
    names_key: str


CIFAR10_FILES = CIFARFiles(
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    train=("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"),
    test=("test_batch",),
    meta="batches.meta",
    label_key="labels",
    names_key="label_names",
)
CIFAR100_FILES = CIFARFiles(
    folder="cifar-100-python",
    archive="cifar-100-python.tar.gz",
    train=("train",),
    test=("test",),
    meta="meta",
    label_key="fine_labels",
    names_key="fine_label_names",
)


class _CIFARDataModule(ImageDataModule):
    """Common part of CIFAR-10 and CIFAR-100: both are 3x32x32, cropped after padding by 4 pixels, and mirrored."""

    image_shape = (3, 32, 32)
    padding = 4
    files: CIFARFiles

    def __init__(self, data_dir: str, batch_size: int, val_split: int | float, download: bool, **common: Any) -> None:
        super().__init__(batch_size, val_split, **common)
        self.download = download
        if download:
            self.data_dir = str(Path(data_dir).expanduser())
        else:
            self.data_dir = existing_folder("data_dir", data_dir, f"{self.files.folder}/ in it")
            self._check_files()

    def prepare_data(self) -> None:
        """Download and unpack the archive if that is asked for and needed.

        Raises:
            InputError: the download failed.
        """
        if not self.download:
            return
        try:
            self._check_files()
        except InputError:
            try:
                self._torchvision_class()(self.data_dir, download=True)
            except (OSError, RuntimeError) as error:
                raise InputError(
                    f"download=True could not fetch {self.files.archive} ({error}): unpack it into "
                    f"data_dir={self.data_dir!r} yourself."
                ) from error

    def load(self, part: Literal["train", "val", "test"]) -> ImageSource | None:
        """The training or the test images; validation has none of its own."""
        if part == "val":
            return None
        self._check_files()
        folder = Path(self.data_dir) / self.files.folder
        self.class_names = read_class_names(folder / self.files.meta, self.files.names_key, self.num_classes)
        names = self.files.train if part == "train" else self.files.test
        batches = [read_batch(folder / name, self.files.label_key, self.num_classes) for name in names]
        published = self._torchvision_class()
        digests = dict([*published.train_list, *published.test_list])
        changed = [name for name in names if file_digest(folder / name) != digests[name]]
        if changed:
            rank_zero_warn(
                f"{folder} is not the published data set, the MD5 sum of {', '.join(changed)} differs: accuracies are "
                f"not comparable, so unpack {self.files.archive} again if that is not what you want."
            )
        images, labels = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
        return TensorSource(images, labels, self.padding, flip=True, names=part)

    def _torchvision_class(self) -> Any:
        """The counterpart in torchvision, which knows how to download the data set and its files' MD5 sums."""
        from torchvision.datasets import CIFAR10, CIFAR100  # type: ignore[import-untyped]

        return CIFAR10 if self.num_classes == 10 else CIFAR100

    def _check_files(self) -> None:
        """Find out early that a file is missing.

        Raises:
            InputError: the folder or a file in it is missing.
        """
        folder = Path(self.data_dir) / self.files.folder
        remedy = f"unpack {self.files.archive} there or set download: true."
        if not folder.is_dir():
            raise InputError(f"data_dir={self.data_dir!r} has no {self.files.folder}/: {remedy}")
        for name in (*self.files.train, *self.files.test, self.files.meta):
            if not (folder / name).is_file():
                raise InputError(f"data_dir={self.data_dir!r} has no {self.files.folder}/{name}: {remedy}")


class CIFAR10DataModule(_CIFARDataModule):
    """CIFAR-10: 50,000 training and 10,000 test images, 32x32 in colour, ten classes.

    Augmentation: random crop after zero-padding by 4 pixels, and mirroring. Mean and standard deviation are those of
    the published BN-free code.

    Source: A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009,
    https://www.cs.toronto.edu/~kriz/cifar.html, the Python version.

    Args:
        data_dir: Folder that holds cifar-10-batches-py/, the content of cifar-10-python.tar.gz.
        batch_size: Images per batch on each process.
        val_split: Size of the validation part, taken from the training images: a number of images or a fraction.
        download: Fetch and unpack the archive into `data_dir` if it is not there.
        **common: `split_seed`, `augment`, `seed`, `limit_train`, `augmentation_cycle`, and the augmentations and
            subsets of the base class.

    Raises:
        InputError: an argument is out of its range, or files are missing without `download`.

    Example:
        >>> data = CIFAR10DataModule("data/cifar10", batch_size=256, download=True)  # doctest: +SKIP
    """

    num_classes = 10
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    files = CIFAR10_FILES

    def __init__(
        self, data_dir: str, batch_size: int = 128, val_split: int | float = 5000, download: bool = False, **common: Any
    ) -> None:
        super().__init__(data_dir, batch_size, val_split, download, **common)


class CIFAR100DataModule(_CIFARDataModule):
    """CIFAR-100: 50,000 training and 10,000 test images, 32x32 in colour, one hundred (fine) classes.

    Augmentation: random crop after zero-padding by 4 pixels, and mirroring. Mean and standard deviation are those of
    the published BN-free code.

    Source: A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009,
    https://www.cs.toronto.edu/~kriz/cifar.html, the Python version.

    Args:
        data_dir: Folder that holds cifar-100-python/, the content of cifar-100-python.tar.gz.
        batch_size: Images per batch on each process.
        val_split: Size of the validation part, taken from the training images: a number of images or a fraction.
        download: Fetch and unpack the archive into `data_dir` if it is not there.
        **common: `split_seed`, `augment`, `seed`, `limit_train`, `augmentation_cycle`, and the augmentations and
            subsets of the base class.

    Raises:
        InputError: an argument is out of its range, or files are missing without `download`.

    Example:
        >>> data = CIFAR100DataModule("data/cifar100", batch_size=256, download=True)  # doctest: +SKIP
    """

    num_classes = 100
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    files = CIFAR100_FILES

    def __init__(
        self, data_dir: str, batch_size: int = 128, val_split: int | float = 5000, download: bool = False, **common: Any
    ) -> None:
        super().__init__(data_dir, batch_size, val_split, download, **common)

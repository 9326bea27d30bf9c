"""Fashion-MNIST."""

from pathlib import Path
from typing import Any, Literal

import torch

from bnfree.datamodules.base import ImageDataModule
from bnfree.datamodules.checks import existing_folder
from bnfree.datamodules.idx import read_idx
from bnfree.datamodules.sources import ImageSource, TensorSource
from bnfree.errors import InputError

CLASS_NAMES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
PREFIXES = {"train": "train", "test": "t10k"}


class FashionMNISTDataModule(ImageDataModule):
    """Fashion-MNIST: 60,000 training and 10,000 test images of clothes, 28x28 grey, ten classes.

    Augmentation: random crop after padding by 2 pixels, and mirroring. The clothes fill their frame, so the 4 pixels
    usual at 32x32 would cut off sleeves and heels more often than they shift.

    Source: H. Xiao et al., "Fashion-MNIST", https://arxiv.org/abs/1708.07747. Debian's package `dataset-fashion-mnist`
    installs the files under share/datasets/fashion-mnist.

    Args:
        data_dir: Folder with the four files `{train,t10k}-{images-idx3,labels-idx1}-ubyte`, as they are or with `.gz`;
            or the folder above `FashionMNIST/raw`, as torchvision lays it out.
        batch_size: Images per batch on each process.
        val_split: Size of the validation part, taken from the training images: a number of images or a fraction.
        download: Fetch the files into `data_dir` if they are not there.
        **common: `split_seed`, `augment`, `seed`, `limit_train`, `augmentation_cycle`, and the augmentations and
            subsets of the base class.

    Raises:
        InputError: an argument is out of its range, or files are missing without `download`.

    Example:
        >>> data = FashionMNISTDataModule("data/fashion_mnist", download=True)  # doctest: +SKIP
    """

    num_classes = 10
    image_shape = (1, 28, 28)
    mean, std = (0.2860,), (0.3530,)
    padding = 2

    def __init__(
        self,
        data_dir: str,
        batch_size: int = 128,
        val_split: int | float = 5000,
        download: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(batch_size, val_split, **common)
        self.class_names = list(CLASS_NAMES)
        self.download = download
        if download:
            self.data_dir = str(Path(data_dir).expanduser())
        else:
            self.data_dir = existing_folder("data_dir", data_dir, "the four files of Fashion-MNIST")
            for part in PREFIXES:
                self._files(part)

    def prepare_data(self) -> None:
        """Download the files if that is asked for and needed.

        Raises:
            InputError: the download failed.
        """
        if not self.download:
            return
        try:
            for part in PREFIXES:
                self._files(part)
        except InputError:
            from torchvision.datasets import FashionMNIST  # type: ignore[import-untyped]

            try:
                FashionMNIST(self.data_dir, download=True)
            except (OSError, RuntimeError) as error:
                raise InputError(
                    f"download=True could not fetch Fashion-MNIST ({error}): put its four idx files into "
                    f"data_dir={self.data_dir!r} yourself."
                ) from error

    def load(self, part: Literal["train", "val", "test"]) -> ImageSource | None:
        """The training or the test images; validation has none of its own."""
        if part == "val":
            return None
        image_file, label_file = self._files(part)
        images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
        if images.shape[1:] != (28, 28):
            raise InputError(f"{image_file} holds images of {tuple(images.shape[1:])} pixels and not (28, 28).")
        if len(images) != len(labels) or len(images) == 0:
            raise InputError(f"{image_file} holds {len(images)} images but {label_file.name} {len(labels)} labels.")
        if int(labels.max()) >= self.num_classes:
            raise InputError(f"{label_file} holds the label {int(labels.max())}: labels must be 0..9.")
        return TensorSource(images[:, None], labels.to(torch.int64), self.padding, flip=True, names=part)

    def _files(self, part: str) -> tuple[Path, Path]:
        """The image and the label file of a part.

        Raises:
            InputError: one is missing.
        """
        found = []
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
            name = f"{PREFIXES[part]}-{kind}"
            folders = (Path(self.data_dir), Path(self.data_dir) / "FashionMNIST" / "raw")
            files = [folder / (name + ending) for folder in folders for ending in ("", ".gz")]
            existing = [file for file in files if file.is_file()]
            if not existing:
                raise InputError(
                    f"data_dir={self.data_dir!r} has no {name}.gz: put the four idx files of Fashion-MNIST there or "
                    "set download: true."
                )
            found.append(existing[0])
        return found[0], found[1]

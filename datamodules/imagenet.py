"""ImageNet (ILSVRC 2012) from folders."""

from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from bnfree.datamodules.image_folder import ImageFolderDataModule
from bnfree.errors import InputError


class ImageNetDataModule(ImageFolderDataModule):
    """ImageNet in `data_dir/train/<synset>/` and `data_dir/val/<synset>/`, 224x224.

    The 50,000 images of val/ have public labels and are what papers report on: here they are the test set, which
    neither training nor the choice of a checkpoint touches. Validation is a part of train/.

    Args:
        data_dir: Folder with train/ and val/ in it.
        batch_size: Images per batch on each process.
        val_split: Size of the validation part, taken from train/: a number of images or a fraction.
        image_size: Height and width of the images, in pixels.
        num_workers: Processes that read files, per training process; 0 reads in the process itself.
        lighting: Standard deviation of the PCA lighting's draws; 0 for none.
        **common: `split_seed`, `augment`, `seed`, `limit_train`, `augmentation_cycle`, and the augmentations and
            subsets of the base class.

    Raises:
        InputError: an argument is out of its range, or there is no data_dir/train or data_dir/val with class folders.

    Example:
        >>> data = ImageNetDataModule("/data/imagenet", batch_size=128, num_workers=16)  # doctest: +SKIP
    """

    folders = {"train": "train", "test": "val"}

    def __init__(
        self,
        data_dir: str,
        batch_size: int = 256,
        val_split: int | float = 10_000,
        image_size: int = 224,
        num_workers: int = 8,
        lighting: float = 0.1,
        **common: Any,
    ) -> None:
        super().__init__(
            data_dir, batch_size, val_split, image_size, num_workers=num_workers, lighting=lighting, **common
        )
        if not (Path(self.data_dir) / "val").is_dir():
            raise InputError(f"data_dir={self.data_dir!r} has no val/: ImageNet's validation images are the test set.")
        if self.num_classes != 1000:
            rank_zero_warn(f"{self.data_dir}/train has {self.num_classes} classes and not ImageNet's 1000.")

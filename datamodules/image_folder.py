"""Any images sorted into one folder per class."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn

from bnfree.datamodules.augmentation import IMAGENET_MEAN, IMAGENET_STD
from bnfree.datamodules.base import ImageDataModule
from bnfree.datamodules.checks import check_int, check_split, existing_folder
from bnfree.datamodules.cifar import CIFAR10DataModule, CIFAR100DataModule
from bnfree.datamodules.file_source import FileSource, evaluation_resize
from bnfree.datamodules.folder_scan import FolderScan
from bnfree.datamodules.image_files import class_folders, list_images, read_images
from bnfree.datamodules.image_store import ImageStore
from bnfree.datamodules.same_images import same_images
from bnfree.datamodules.sources import ImageSource, TensorSource
from bnfree.errors import InputError

# Files whose headers are read to find a size for all.
SIZES_LOOKED_AT = 128
STATISTICS = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "cifar10": (CIFAR10DataModule.mean, CIFAR10DataModule.std),
    "cifar100": (CIFAR100DataModule.mean, CIFAR100DataModule.std),
}


class ImageFolderDataModule(ImageDataModule):
    """Images in `data_dir/train/<class>/`, and `val/` and `test/` likewise where they exist; or in `data_dir/<class>/`.

    The classes are the sorted names of the folders in train/; images may lie deeper below them. Where val/ or test/ is
    missing, its part is carved from train/. Without a train/, each folder in `data_dir` is a class, and both parts are
    carved from all images.

    From files (the default) the augmentation is that of ImageNet: a random crop of 8 to 100 % of the area, resized;
    mirroring; PCA lighting. Evaluation resizes the shorter side to 256/224 of `image_size` and crops the centre. With
    `in_memory` every image is decoded once, its shorter side resized to `image_size` and the centre cropped; the
    augmentation is that of CIFAR: a random crop after zero-padding by 4 pixels, and mirroring.

    Args:
        data_dir: Folder with train/, or with the folders of the classes, in it.
        batch_size: Images per batch on each process.
        val_split: Size of the validation part if there is no val/: a number of images or a fraction of train/.
        image_size: Height and width of the images, in pixels. None: the median of the shorter sides of some of the
            files, rounded down to a multiple of 32, between 32 and 224.
        in_memory: Keep all images decoded in memory, 3 * image_size^2 bytes each, and augment whole batches.
        test_split: Size of the test part if there is no test/: a number of images or a fraction of train/, drawn with
            `split_seed`. With 0 there is none to test on.
        num_workers: Processes that read files, per training process; 0 reads in the process itself, None: one for each
            core that this process may use, at most 8. Not used with `in_memory`.
        lighting: Standard deviation of the PCA lighting's draws; 0 for none. Not used with `in_memory`.
        normalization: Data set whose mean and standard deviation normalise the images.
        cache: Read the images not from their files but from one made of them at the first start, in which the shorter
            side is reduced to that of evaluation (256 for 224): `raw`: pixels, about 0.25 MiB per ImageNet image;
            `jpeg256`: JPEG of quality 95. Evaluation with `raw` stays as it is, bit for bit; training crops show the
            same part of the picture, with less detail where it is small. Made anew when files change. Not with
            `in_memory`.
        cache_dir: Folder of the cache, on a fast disk; None for `data_dir/.cache`.
        exif_orientation: Turn and mirror images as their EXIF data ask for, so that photographs of phones stand
            upright; false: as torchvision's `ImageFolder` does, which takes the pixels as they lie in the file.
        **common: `split_seed`, `augment`, `seed`, `limit_train`, `augmentation_cycle`, and the augmentations and
            subsets of the base class.

    Raises:
        InputError: an argument is out of its range, or there are no class folders.

    Example:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> for name in ("cats", "dogs"):
        ...     Path("photos/train", name).mkdir(parents=True)
        ...     for number in range(10):
        ...         Image.new("RGB", (80, 60)).save(f"photos/train/{name}/{number}.png")
        >>> data = ImageFolderDataModule("photos", batch_size=4, image_size=32, num_workers=0)
        >>> data.setup("fit")
        >>> data.image_shape, data.num_classes, len(data.train_dataloader())
        ((3, 32, 32), 2, 4)
    """

    padding = 4
    folders = {"train": "train", "val": "val", "test": "test"}

    def __init__(
        self,
        data_dir: str,
        batch_size: int = 128,
        val_split: int | float = 0.1,
        image_size: int | None = 224,
        in_memory: bool = False,
        test_split: int | float = 0,
        num_workers: int | None = None,
        lighting: float = 0.1,
        normalization: Literal["imagenet", "cifar10", "cifar100"] = "imagenet",
        cache: Literal["none", "jpeg256", "raw"] = "none",
        cache_dir: str | None = None,
        exif_orientation: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(batch_size, val_split, **common)
        self.in_memory = in_memory
        self.num_workers = _available_cores() if num_workers is None else check_int("num_workers", num_workers, 0)
        if isinstance(lighting, bool) or not isinstance(lighting, (int, float)) or not 0 <= lighting < float("inf"):
            raise InputError(f"lighting={lighting!r} must be a standard deviation of at least 0, such as 0.1.")
        self.lighting = lighting
        if normalization not in STATISTICS:
            raise InputError(f"normalization={normalization!r} must be one of {', '.join(STATISTICS)}.")
        self.mean, self.std = STATISTICS[normalization]
        if cache not in ("none", "jpeg256", "raw"):
            raise InputError(f"cache={cache!r} must be one of none, jpeg256, raw.")
        if cache != "none" and in_memory:
            raise InputError(f"cache={cache!r} has no use with in_memory: true, which keeps all images: remove one.")
        self.cache, self.exif_orientation = cache, exif_orientation
        self.data_dir = existing_folder("data_dir", data_dir, "train/<class>/ or <class>/ in it")
        self.folders = self._find_folders()
        train = Path(self.data_dir, self.folders["train"])
        self.cache_dir = Path(self.data_dir, ".cache") if cache_dir is None else Path(cache_dir).expanduser()
        self._compared: set[str] = set()
        self.class_names = class_folders(train)
        self.num_classes = len(self.class_names)
        size = self._usual_size(train) if image_size is None else check_int("image_size", image_size, 1)
        self.image_shape = (3, size, size)
        check_split("test_split", test_split)
        self.test_split = 0 if self._has_folder("test") else test_split

    @classmethod
    def preparation(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """How image files become images of this data, which need not be there."""
        mean, std = STATISTICS[arguments.get("normalization", "imagenet")]
        found = {"mean": mean, "std": std}
        size = arguments.get("image_size", 224)
        if size is None:
            return found
        resize = size if arguments.get("in_memory") else evaluation_resize(size)
        return {**found, "image_shape": (3, size, size), "resize": resize}

    @property
    def evaluation_resize(self) -> int:
        """Pixels that the shorter side of an image is resized to before its centre is cropped, in evaluation."""
        return self.image_shape[1] if self.in_memory else evaluation_resize(self.image_shape[1])

    def load(self, part: Literal["train", "val", "test"]) -> ImageSource | None:
        """The images of the part's folder; None if there is no such folder."""
        if not self._has_folder(part):
            return None
        root = Path(self.data_dir)
        paths, labels = list_images(root, self.folders[part], self.class_names)
        self._say_same_images(part, root, paths)
        size = self.image_shape[1]
        if self.in_memory:
            images = read_images(root, paths, size, self.exif_orientation)
            return TensorSource(images, labels, self.padding, flip=True, names=paths)
        store = self._store(part, root, paths)
        return FileSource(
            root, paths, labels, size, self.lighting, self.num_workers, store, exif_orientation=self.exif_orientation
        )

    def _find_folders(self) -> dict[str, str]:
        """Folder of each part; with the folders of the classes in `data_dir` itself there is one part."""
        root, train = Path(self.data_dir), Path(self.data_dir) / self.folders["train"]
        if train.is_dir():
            return self.folders
        others = [name for part, name in self.folders.items() if part != "train" and (root / name).is_dir()]
        try:
            found = class_folders(root)
        except InputError:
            found = []
        if others or not found:
            beside = f" beside its {others[0]}/" if others else " and no folders of classes"
            raise InputError(
                f"data_dir={self.data_dir!r} has no {self.folders['train']}/{beside}: images must be in "
                f"{train}/<class>/, or all in {root}/<class>/."
            )
        return {"train": "."}

    def _usual_size(self, train: Path) -> int:
        from PIL import Image

        number = max(1, SIZES_LOOKED_AT // len(self.class_names))
        sides = []
        for name in self.class_names:
            for file in islice(FolderScan().images(train / name), number):
                try:
                    with Image.open(train / name / file) as image:
                        sides.append(min(image.size))
                # Whoever reads the image says what is wrong with it.
                except Exception:
                    continue
        return min(224, max(32, int(median(sides)) // 32 * 32)) if sides else 224

    def _say_same_images(self, part: str, root: Path, paths: list[str]) -> None:
        if self._processes()[1] > 0:
            return
        for other in ("val", "test") if part == "train" else ("train",):
            held_out = other if part == "train" else part
            if held_out in self._compared or not self._has_folder(other):
                continue
            self._compared.add(held_out)
            pairs = same_images(root, paths, self.folders[other])
            if pairs:
                rank_zero_warn(
                    f"{root / self.folders[other]} has {len(pairs)} of the images of {root / self.folders[part]} too, "
                    f"such as {pairs[0][0]}, which is {pairs[0][1]}: the accuracy on {self.folders[held_out]}/ "
                    "promises too much for new images."
                )

    def _store(self, part: str, root: Path, paths: list[str]) -> ImageStore | None:
        if self.cache == "none":
            return None
        resize = evaluation_resize(self.image_shape[1])
        name = self.folders[part].replace(".", "all")
        store = ImageStore(self.cache_dir, name, self.cache, resize, self.exif_orientation)
        store.fill(root, paths)
        return store

    def _has_folder(self, part: str) -> bool:
        return part in self.folders and (Path(self.data_dir) / self.folders[part]).is_dir()

    def _no_test_message(self) -> str:
        return f"data_dir={self.data_dir!r} has no test/: add it or set test_split to hold out a part of train/."

    @property
    def has_test_images(self) -> bool:
        """Whether there are images to test on."""
        return self._has_folder("test") or bool(self.test_split)

    def _origin(self, part: str) -> str:
        if self._has_folder(part):
            return f" ({self.folders[part]}/)"
        return "" if self.folders["train"] == "." else f" (drawn from {self.folders['train']}/)"


def _available_cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores)

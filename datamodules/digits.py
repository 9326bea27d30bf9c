"""scikit-learn's handwritten digits."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F

from bnfree.datamodules.base import ImageDataModule
from bnfree.datamodules.checks import check_int
from bnfree.datamodules.randomness import stratified_split
from bnfree.datamodules.sources import ImageSource, TensorSource

TEST_IMAGES = 360
# The data set has no test set of its own. This seed is part of its definition here: test accuracies of different
# people and splits are then about the same images.
TEST_SEED = 20200615


class DigitsDataModule(ImageDataModule):
    """1,797 handwritten digits of 8x8 pixels that come with scikit-learn: for tests and first steps, without download.

    The pixels are repeated to enlarge the images, since a network with strides has little use for 8x8. 360 images are
    the test set, the same for everyone. The augmentation is a random shift by at most an eighth of the image, without
    mirroring.

    Source: E. Alpaydin, C. Kaynak, "Optical recognition of handwritten digits", UCI, 1998; the test part of it.

    Args:
        data_dir: Not used; accepted as every data module takes one.
        batch_size: Images per batch on each process.
        val_split: Size of the validation part, taken from the 1,437 training images: a number of images or a fraction.
        image_size: Height and width of the enlarged image, in pixels, at least 8.
        **common: `split_seed`, `augment`, `seed`, `limit_train`, `augmentation_cycle`, and the augmentations and
            subsets of the base class.

    Raises:
        InputError: an argument is out of its range.

    Example:
        >>> data = DigitsDataModule(batch_size=32)
        >>> data.prepare_data()
        >>> data.setup("fit")
        >>> data.image_shape, data.num_classes, len(data.train_dataloader())
        ((1, 16, 16), 10, 38)
    """

    num_classes = 10
    mean, std = (0.3053,), (0.3760,)

    def __init__(
        self,
        data_dir: str | None = None,
        batch_size: int = 64,
        val_split: int | float = 0.15,
        image_size: int = 16,
        **common: Any,
    ) -> None:
        super().__init__(batch_size, val_split, **common)
        self.data_dir = data_dir
        self.image_shape = (1, check_int("image_size", image_size, 8), image_size)
        self.padding = image_size // 8

    @classmethod
    def preparation(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """How image files become images of this data."""
        size = arguments.get("image_size", 16)
        return {**super().preparation(arguments), "image_shape": (1, size, size)}

    def load(self, part: Literal["train", "val", "test"]) -> ImageSource | None:
        """The training or the test images; validation has none of its own."""
        from sklearn.datasets import load_digits

        if part == "val":
            return None
        digits = load_digits()
        self.class_names = [str(name) for name in digits.target_names]
        labels = torch.from_numpy(digits.target).to(torch.int64)
        levels = torch.from_numpy(digits.images).to(torch.float32)[:, None] * (255 / 16)
        train, test = stratified_split(labels, TEST_IMAGES, TEST_SEED)
        indices = (train if part == "train" else test).sort().values
        # Nearest, since a BN-free ReActNet-18 of width 16 reached 98.3 % of the validation part with it after 8 epochs
        # and 96.3 % with bilinear interpolation (mean of three seeds, each seed in this order).
        enlarged = F.interpolate(levels[indices], self.image_shape[1:], mode="nearest")
        images = enlarged.round().to(torch.uint8)
        return TensorSource(images, labels[indices], self.padding, flip=False, names=part)

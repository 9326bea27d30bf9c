"""The base of all data modules: splits, loaders, and what happens to a batch on its device."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor

from bnfree.datamodules.augmentation import normalize
from bnfree.datamodules.batches import RawBatch, finish_batch
from bnfree.datamodules.checks import check_int, check_share, check_split, split_size
from bnfree.datamodules.extra_augmentation import Draws, ExtraAugmentation, Flips, PaddingMode
from bnfree.datamodules.hyperparameters import remember_arguments
from bnfree.datamodules.loader import BatchLoader
from bnfree.datamodules.randomness import stratified_split
from bnfree.datamodules.sampler import GlobalBatchSampler
from bnfree.datamodules.score_subsets import choose_by_score, read_scores
from bnfree.datamodules.sources import ImageSource, TensorSource
from bnfree.datamodules.variants import AugmentationVariants, Part
from bnfree.errors import InputError


class ImageDataModule(LightningDataModule, AugmentationVariants):
    """Base of the data modules: a subclass says how to `load` a source, and sets the attributes below.

    After the transfer to the device a batch of training, validation and test is (images, labels): float32
    (N, C, H, W), normalised, and int64 (N,). A batch of prediction is (images, indices) over the test set, where
    `predict_image_names[index]` names the image.

    A checkpoint remembers the arguments (`datamodule_hyper_parameters`), so that `bnfree test` finds the images again.

    No draw touches the global random state. The split is a function of `split_seed`, the order of an epoch of (`seed`,
    epoch), the augmentation of an image of (`seed`, epoch, image). A run is therefore the same on one process with
    batch size 128 as on two with 64, and goes on exactly when resumed, also from the middle of an epoch.

    Attributes:
        num_classes: Number of classes.
        image_shape: (C, H, W) of an image.
        class_names: A name per class; after `setup`.
        mean: Mean per channel of images scaled to [0, 1].
        std: Standard deviation per channel, likewise.
        padding: Padding of the random crop, in pixels.
        positions: Places in their part, an int64 array (N,), of the images of the batch that was transferred last.

    Args:
        batch_size: Images per batch on each process.
        val_split: Size of the validation part, taken from the training images with the classes in proportion: a number
            of images or a fraction. 0 for no validation.
        split_seed: Seed of the split. It is not `seed`, so that runs with different seeds share their validation part.
        augment: Augment the training images.
        seed: Seed of the training order and of the augmentation.
        limit_train: Train on the first n images of the shuffled training part only; the same images in every run with
            the same `split_seed`. None for all.
        augmentation_cycle: Repeat the augmentation after so many epochs: each image is then seen in that many variants,
            for which a teacher's answers can be stored (`logits_cache`). None for a new one in every epoch.
        padding_mode: What stands around an image before it is cropped: `zeros`, or `reflect` for the image mirrored at
            its border. For images in memory.
        flips: Mirroring `random` in every epoch, or `alternating`: by lot in the first epoch, in every other one the
            other way round. For images in memory.
        cutout: Side in pixels of a square that is set to the mean colour, around a random pixel; 0 for none.
        rand_augment: Number of RandAugment's operations for each image; 0 for none. Images are handled one by one.
        rand_augment_magnitude: Their strength, 0 to 30.
        mixup: Concentration alpha of the Beta law of the shares in which two images are mixed, such as 0.2; 0 for none.
            Labels become the shares of the classes.
        cutmix: Likewise for a box of one image in another, such as 1.0; with both, each image draws one of the two.
        epoch_fraction: Share of the training images that an epoch sees, another subset in each one (RS2).
        epoch_replacement: An epoch's subset may hold images of the one before; false: no image is seen again before
            all have been, which is a training on all images with a shorter schedule.
        scores: CSV file of `bnfree score-data`, by which training images are chosen; null for all.
        keep: Share of the training images to keep, those with the highest scores.
        skip_hardest: Share of them to leave out above those; their labels may be wrong.

    Raises:
        InputError: an argument is out of its range.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    class_names: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int = 0
    test_split: int | float = 0

    def __init__(
        self,
        batch_size: int = 128,
        val_split: int | float = 0.1,
        split_seed: int = 0,
        augment: bool = True,
        seed: int = 0,
        limit_train: int | None = None,
        augmentation_cycle: int | None = None,
        padding_mode: PaddingMode = "zeros",
        flips: Flips = "random",
        cutout: int = 0,
        rand_augment: int = 0,
        rand_augment_magnitude: int = 9,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        epoch_fraction: float = 1.0,
        epoch_replacement: bool = False,
        scores: str | None = None,
        keep: float = 1.0,
        skip_hardest: float = 0.0,
    ) -> None:
        super().__init__()
        remember_arguments(self)
        self.batch_size = check_int("batch_size", batch_size, 1)
        self.val_split = check_split("val_split", val_split)
        self.split_seed = check_int("split_seed", split_seed, 0)
        self.augment = augment
        self.seed = check_int("seed", seed, 0)
        self.limit_train = limit_train if limit_train is None else check_int("limit_train", limit_train, 1)
        cycle = augmentation_cycle
        self.augmentation_cycle = cycle if cycle is None else check_int("augmentation_cycle", cycle, 1)
        self.extra = ExtraAugmentation(padding_mode, flips, cutout, rand_augment, rand_augment_magnitude, mixup, cutmix)
        self.epoch_fraction = check_share("epoch_fraction", epoch_fraction)
        self.epoch_replacement = epoch_replacement
        self.scores, self.keep, self.skip_hardest = scores, check_share("keep", keep), skip_hardest
        if not 0 <= skip_hardest <= 1 - keep:
            raise InputError(f"skip_hardest={skip_hardest} must be at least 0 and at most 1 - keep.")
        if scores is None and keep < 1:
            raise InputError(f"keep={keep} needs scores to choose by: give a file that bnfree score-data has written.")
        self.positions: NDArray[np.int64] | None = None
        self._parts: dict[str, Part] = {}
        self._open_loaders: dict[str, BatchLoader] = {}
        self._resume: dict[str, Any] | None = None

    @abstractmethod
    def load(self, part: Literal["train", "val", "test"]) -> ImageSource | None:
        """Load a part of the data set as it is stored; None where it has none of its own.

        Without a stored val, validation is carved from train. Without a stored test, `test_split` is.
        Sets `class_names` as well.
        """

    def setup(self, stage: str | None = None) -> None:
        """Load and split what `stage` needs: fit, validate, test, predict, or None for all; once only.

        Raises:
            InputError: the files are missing or damaged, or a split does not fit the number of images.
        """
        if stage in ("fit", "validate", None) and "train" not in self._parts:
            self._setup_training()
        if stage in ("test", "predict", None) and "test" not in self._parts:
            self._setup_test()
        if stage == "validate" and "val" not in self._parts:
            raise InputError(f"val_split={self.val_split!r} leaves nothing to validate on: give a part above 0.")

    def _setup_training(self) -> None:
        """Split the stored training images into train, val, and test where test has no images of its own."""
        source = cast(ImageSource, self.load("train"))
        own_val = self.load("val")
        indices = torch.arange(len(source.labels))
        if self.test_split:
            size = split_size("test_split", self.test_split, len(indices))
            rest, held = stratified_split(source.labels, size, self.split_seed)
            indices = rest.sort().values
            self._parts["test"] = Part(source, held.sort().values)
        size = 0 if own_val is not None else split_size("val_split", self.val_split, len(indices))
        rest, held = stratified_split(source.labels[indices], size, self.split_seed)
        if own_val is not None:
            self._parts["val"] = Part(own_val, torch.arange(len(own_val.labels)))
        elif size:
            self._parts["val"] = Part(source, indices[held].sort().values)
        train = indices[rest]
        if self.limit_train is not None and self.limit_train > len(train):
            raise InputError(f"limit_train={self.limit_train} must be at most {len(train)}, the training images there.")
        train = train[: self.limit_train]
        if self.scores is not None:
            train = choose_by_score(train, read_scores(self.scores), self.keep, self.skip_hardest)
        self._check_crops(source)
        self._parts["train"] = Part(source, train)

    def _check_crops(self, source: ImageSource) -> None:
        """Refuses ways to crop and to mirror that the images do not have."""
        for name, value in (("padding_mode", self.extra.padding_mode), ("flips", self.extra.flips)):
            if value in ("zeros", "random") or not self.augment:
                continue
            if not isinstance(source, TensorSource):
                raise InputError(f"{name}={value!r} is for images in memory, which are cropped at their own size.")
            if name == "flips" and not source.flip:
                raise InputError(f"flips={value!r} has no use for {type(self).__name__}: its images are not mirrored.")

    def _setup_test(self) -> None:
        source = self.load("test")
        if source is not None:
            self._parts["test"] = Part(source, torch.arange(len(source.labels)))
        elif self.test_split:
            self._setup_training()
        else:
            raise InputError(self._no_test_message())

    def _no_test_message(self) -> str:
        return "There are no test images."

    @classmethod
    def preparation(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """How image files become images of this data, which need not be there.

        Args:
            arguments: of the constructor.

        Returns:
            `mean`, `std`, `image_shape` and `resize`, the pixels of the shorter side before the centre is cropped; what
            is not known is left out.
        """
        return {name: getattr(cls, name) for name in ("mean", "std", "image_shape") if hasattr(cls, name)}

    @property
    def has_test_images(self) -> bool:
        """Whether there are images to test on."""
        return True

    def describe(self) -> str:
        """One sentence on the images of a training, which are loaded: classes, size, and how many are for what."""
        self.setup("fit")
        number = {name: len(part.indices) for name, part in self._parts.items()}
        parts = [f"{number['train']:,} training"]
        parts.append(f"{number['val']:,} validation{self._origin('val')}" if "val" in number else "no validation")
        if "test" in number:
            parts.append(f"{number['test']:,} test images{self._origin('test')}")
        else:
            parts.append(
                f"test images{self._origin('test')} for bnfree test" if self.has_test_images else "no test images"
            )
        size = "x".join(map(str, self.image_shape))
        return f"{self.num_classes:,} classes, images of {size}; {', '.join(parts)}."

    def _origin(self, part: str) -> str:
        """Where the images of a part are from, in brackets; empty where there is nothing to say."""
        return ""

    def train_dataloader(self) -> BatchLoader:
        """Shuffled batches of `batch_size` training images; what does not fill the last batch is left out.

        Raises:
            InputError: the training part is smaller than one batch of all processes together.
        """
        loader = self._loader("train", shuffle=not self._overfits, drop_last=True, augment=self.augments)
        if self._resume is not None:
            loader.load_state_dict(self._resume)
            self._resume = None
        return loader

    @property
    def augments(self) -> bool:
        """Whether training images are augmented."""
        return self.augment and not self._overfits

    @property
    def _overfits(self) -> bool:
        # Trainer(overfit_batches=...) means the same few batches in each epoch.
        return self.trainer is not None and getattr(self.trainer, "overfit_batches", 0) > 0

    def val_dataloader(self) -> BatchLoader | list[Any]:
        """Each validation image once, in a fixed order; an empty list if there is no validation part."""
        return self._loader("val") if self._part("val", "fit") else []

    def test_dataloader(self) -> BatchLoader:
        """Each test image once, in a fixed order."""
        return self._loader("test")

    def predict_dataloader(self) -> BatchLoader:
        """Each test image once; the targets are places in `predict_image_names`."""
        return self._loader("test", predict=True)

    @property
    def predict_image_names(self) -> list[str]:
        """A name per image of `predict_dataloader`, e.g. `test/00012` or a file's path below the data folder."""
        part = self._required_part("test", "predict")
        return [part.source.name(index) for index in part.indices.tolist()]

    @property
    def num_training_images(self) -> int:
        """Number of images in the training part."""
        return len(self._required_part("train", "fit").indices)

    def calibration_images(self, n: int) -> Tensor:
        """The first `n` training images of the split's order, without augmentation; the same on all processes.

        Args:
            n: Number of images; where there are fewer for training, all of them.

        Returns:
            Shape (n, C, H, W), float32, normalised, on the CPU.

        Raises:
            InputError: `n` is below 1.
        """
        check_int("n", n, 1)
        part = self._required_part("train", "fit")
        return normalize(part.source.images(part.indices[:n]), self.mean, self.std)

    def training_batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Every training image once, in batches of `batch_size`, without augmentation.

        Yields:
            Images (N, C, H, W), float32, normalised; labels (N,), int64; places in the stored training set (N,), int64.
        """
        part = self._required_part("train", "fit")
        for places in part.indices.split(self.batch_size):
            yield normalize(part.source.images(places), self.mean, self.std), part.source.labels[places], places

    def training_places(self) -> Tensor:
        """Places of the training part's images in the stored training set, (M,), int64."""
        return self._required_part("train", "fit").indices

    def training_image_names(self, places: Tensor) -> list[str]:
        """Names of images of the stored training set, by their places (N,)."""
        part = self._required_part("train", "fit")
        return [part.source.name(index) for index in places.tolist()]

    def validation_batches(self, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        """At most `n` validation images, evenly spread over the part, beside all loaders and always the same.

        Args:
            n: Number of images.

        Yields:
            Images (B, C, H, W), float32, normalised, and labels (B,), int64, on the CPU; nothing without a validation
            part.
        """
        part = self._part("val", "fit")
        return self._spread(part, n) if part is not None else iter(())

    def test_batches(self, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        """At most `n` test images, as `validation_batches` gives those of validation.

        Raises:
            InputError: there are no test images.
        """
        return self._spread(self._required_part("test", "test"), n)

    def _spread(self, part: Part, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        size = len(part.indices)
        for places in (torch.arange(min(n, size)) * size // min(n, size)).split(self.batch_size):
            indices = part.indices[places]
            yield normalize(part.source.images(indices), self.mean, self.std), part.source.labels[indices]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Crop, flip and normalise on the batch's device; anything but a `RawBatch` passes untouched."""
        if not isinstance(batch, RawBatch):
            return batch
        self.positions = batch.positions
        draws = None
        if batch.variant is not None and batch.positions is not None:
            places = self._parts["train"].indices[torch.from_numpy(batch.positions)].tolist()
            draws = Draws(self.seed, batch.variant, places, self.num_classes)
            if self.extra.mixes:
                self.positions = batch.positions[: len(batch.positions) // 2]
        images, targets = finish_batch(batch, self.padding, self.mean, self.std, self.extra, draws)
        if self.trainer is not None and hasattr(self.trainer, "precision_plugin"):
            # Lightning converts a batch before the transfer, when it is still 8-bit; true half and double precision
            # would otherwise meet float32 images.
            images = self.trainer.precision_plugin.convert_input(images)
        return images, targets

    def state_dict(self) -> dict[str, Any]:
        """The names of the classes, and the position in the training images.

        Lightning restores loaders too, but not those that exist by then: a module that asks for
        `trainer.estimated_stepping_batches` has them made before.
        """
        names = getattr(self, "class_names", None)
        state: dict[str, Any] = {} if names is None else {"class_names": [str(name) for name in names]}
        if "train" not in self._open_loaders:
            return state
        loader = self._open_loaders["train"]
        if self.trainer is None:
            return {**state, "train": loader.state_dict()}
        # A signal, such as a cluster's before it takes the job away, saves in the midst of a step: the batch that has
        # been handed out by then has not been trained on.
        progress = cast(Any, self.trainer.fit_loop.epoch_loop.batch_progress.current)
        return {**state, "train": loader.state_dict(progress.processed)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the position for the next training loader."""
        self._resume = state_dict.get("train")

    def teardown(self, stage: str) -> None:
        """End the worker processes of the loaders; the images stay loaded."""
        for loader in self._open_loaders.values():
            loader.close()
        self._open_loaders.clear()

    def _part(self, name: str, stage: str) -> Part | None:
        self.setup(stage)
        return self._parts.get(name)

    def _required_part(self, name: str, stage: str) -> Part:
        # The setup of its stage has made it or raised.
        return cast(Part, self._part(name, stage))

    def _loader(
        self,
        name: Literal["train", "val", "test"],
        shuffle: bool = False,
        drop_last: bool = False,
        augment: bool = False,
        predict: bool = False,
    ) -> BatchLoader:
        part = self._required_part(name, "test" if name == "test" else "fit")
        sampler = GlobalBatchSampler(
            len(part.indices),
            self.batch_size,
            *self._processes(),
            shuffle,
            drop_last,
            self.seed,
            part=name,
            subset=max(1, round(self.epoch_fraction * len(part.indices))) if shuffle else None,
            replacement=self.epoch_replacement,
            partners=augment and self.extra.mixes,
            cycle=self.augmentation_cycle,
        )
        targets = torch.arange(len(part.indices)) if predict else part.source.labels[part.indices]
        loader = part.source.loader(part.indices, targets, sampler, augment, self.seed, self.augmentation_cycle)
        self._open_loaders[name] = loader
        return loader

    def _processes(self) -> tuple[int, int]:
        """How many there are, and which of them this is."""
        return (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)

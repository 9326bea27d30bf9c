"""A set of images that are read from their files batch by batch."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bnfree.datamodules.augmentation import pca_lighting
from bnfree.datamodules.batches import RawBatch
from bnfree.datamodules.image_files import fit_image, read_image
from bnfree.datamodules.image_store import ImageStore
from bnfree.datamodules.loader import BatchLoader
from bnfree.datamodules.randomness import augmentation_epoch, random_for
from bnfree.datamodules.sampler import GlobalBatchSampler
from bnfree.datamodules.sources import ImageSource
from bnfree.errors import InputError
from bnfree.images.decoding import DECODING


def evaluation_resize(image_size: int) -> int:
    """Pixels that the shorter side is resized to before the centre of `image_size` is cropped, as for ImageNet."""
    return round(image_size * 256 / 224)


class FileSource(ImageSource):
    """Image files with the augmentation of ImageNet training.

    Training: random resized crop, mirroring, PCA lighting. Evaluation: the shorter side resized to 256/224 of the
    image size, the centre cropped.

    Args:
        root: The data folder.
        paths: Paths of the files relative to `root`.
        labels: Shape (N,), int64.
        image_size: Height and width of the images, in pixels.
        lighting: Standard deviation of the lighting's draws.
        num_workers: Processes that read files; 0 reads in the process itself.
        store: Filled with the same files, to read instead of them; None for none.
        exif_orientation: As in `decode_image`.
    """

    def __init__(
        self,
        root: Path,
        paths: list[str],
        labels: Tensor,
        image_size: int,
        lighting: float,
        num_workers: int,
        store: ImageStore | None = None,
        exif_orientation: bool = True,
    ) -> None:
        self.store, self.exif_orientation = store, exif_orientation
        self.labels = labels
        self.root, self.image_size, self.lighting, self.num_workers = root, image_size, lighting, num_workers
        # One array of bytes: a list's reference counts would make each worker copy the whole list, page by page.
        self._paths = np.array([os.fsencode(path) for path in paths])

    def loader(
        self,
        indices: Tensor,
        targets: Tensor,
        sampler: GlobalBatchSampler,
        augment: bool,
        seed: int,
        cycle: int | None = None,
    ) -> "FileLoader":
        """A loader over the images `indices` (M,) that gives `targets` (M,) with them."""
        return FileLoader(self, indices, targets, sampler, augment, seed, cycle)

    def fingerprint(self, indices: Tensor, augment: bool) -> str:
        """A hash of the files' paths, sizes and times, how they are decoded, the image size, and the lighting."""
        settings = (self.image_size, self.lighting if augment else None, DECODING, self.exif_orientation)
        digest = hashlib.sha256(repr(settings).encode())
        if self.store is not None:
            digest.update(self.store.kind.encode())
        for index in indices.tolist():
            status = (self.root / self.name(index)).stat()
            digest.update(f"{self.name(index)}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
        return digest.hexdigest()

    def images(self, indices: Tensor) -> Tensor:
        """The images `indices` (n,) as in evaluation, shape (n, 3, image_size, image_size), uint8."""
        return torch.stack([self.read(index) for index in indices.tolist()])

    def name(self, index: int) -> str:
        """The path of the file below the data folder."""
        return os.fsdecode(self._paths[index])

    def read(self, index: int, random: Random | None = None) -> Tensor:
        """One image, shape (3, image_size, image_size), uint8, cropped by `random` or in the centre.

        Raises:
            InputError: the file cannot be decoded.
        """
        resize = evaluation_resize(self.image_size)
        if self.store is not None:
            image, original = self.store.image(index), self.store.original_size(index)
            return fit_image(image, self.image_size, resize, random, original)
        return read_image(self.root / self.name(index), self.image_size, resize, random, self.exif_orientation)

    def read_augmented(self, index: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """One image in one epoch of training: the image (3, S, S) uint8 and its colour shift (3,) float32."""
        random = random_for(seed, epoch, index)
        image = self.read(index, random)
        if random.random() < 0.5:
            image = image.flip(-1)
        alphas = torch.tensor([[random.gauss(0.0, 1.0) * self.lighting for _ in range(3)]])
        return image, pca_lighting(alphas)[0]


class FileLoader(BatchLoader):
    """Batches of a `FileSource`, read by worker processes.

    Args:
        source: The files.
        indices: Shape (M,), int64: the images of the part.
        targets: Shape (M,), int64.
        sampler: Yields positions in the part, 0..M - 1.
        augment: Augment as in training.
        seed: Seed of the augmentation.
        cycle: Number of epochs after which the augmentation repeats; None for never.
    """

    def __init__(
        self,
        source: FileSource,
        indices: Tensor,
        targets: Tensor,
        sampler: GlobalBatchSampler,
        augment: bool,
        seed: int,
        cycle: int | None = None,
    ) -> None:
        super().__init__(sampler)
        self._requests = _Requests(sampler, cycle)
        self._batches = _Batches(source, indices, targets, augment, seed)
        self._workers: DataLoader[Any] | None = None

    def batches(self, epoch: int, first_image: int) -> Iterator[RawBatch]:
        """The batches of `epoch` after its first images.

        Raises:
            InputError: a file cannot be decoded.
        """
        if self._workers is None:
            self._workers = self._start()
        self._requests.first_image = first_image
        message = None
        for batch in self._workers:
            if isinstance(batch, str):
                message = batch
                break
            yield batch
        if message is not None:
            self.close()
            raise InputError(message)

    def close(self) -> None:
        """End the worker processes; a later iteration starts new ones.

        Left to the garbage collector, which finalises their queues first, each worker takes five seconds to end.
        """
        self._workers = None

    def _start(self) -> DataLoader[Any]:
        num_workers = self._batches.source.num_workers
        return DataLoader(
            self._batches,
            batch_size=None,
            sampler=self._requests,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=_unchanged,
            # A generator of its own, or each epoch would draw the workers' seed from the global one.
            generator=torch.Generator().manual_seed(0),
        )


class _Requests:
    """What the workers are asked for: (epoch, positions) per batch, so that draws can follow the epoch.

    Positions travel as a list: a tensor would be sent as an open file, and a worker that waits for one while the main
    process shuts down keeps it from ending.
    """

    def __init__(self, sampler: GlobalBatchSampler, cycle: int | None) -> None:
        self.sampler, self.cycle, self.first_image = sampler, cycle, 0

    def __len__(self) -> int:
        return self.sampler.batches_from(self.first_image)

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        for positions in self.sampler.iterate_from(self.first_image):
            yield augmentation_epoch(self.sampler.epoch, self.cycle), positions.tolist()


class _Batches(Dataset[RawBatch | str]):
    """Makes a whole batch at a time."""

    def __init__(self, source: FileSource, indices: Tensor, targets: Tensor, augment: bool, seed: int) -> None:
        self.source, self.indices, self.targets, self.augment, self.seed = source, indices, targets, augment, seed

    def __getitem__(self, request: tuple[int, list[int]]) -> RawBatch | str:
        """The batch, or the message of an InputError: as an exception it would cross processes as a traceback."""
        epoch, positions = request
        indices, targets = self.indices[positions], self.targets[positions]
        try:
            if not self.augment:
                return RawBatch(self.source.images(indices), targets, positions=np.array(positions))
            pairs = [self.source.read_augmented(index, self.seed, epoch) for index in indices.tolist()]
        except InputError as error:
            return str(error)
        images, shifts = (torch.stack(tensors) for tensors in zip(*pairs, strict=True))
        return RawBatch(images, targets, color_shift=shifts, positions=np.array(positions), variant=epoch)


def _unchanged(batch: Any) -> Any:
    return batch

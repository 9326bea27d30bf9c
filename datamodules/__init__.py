"""Data modules: images in, normalised batches out, the same on any number of processes."""

from bnfree.datamodules.cifar import CIFAR10DataModule, CIFAR100DataModule
from bnfree.datamodules.digits import DigitsDataModule
from bnfree.datamodules.fashion_mnist import FashionMNISTDataModule
from bnfree.datamodules.image_folder import ImageFolderDataModule
from bnfree.datamodules.imagenet import ImageNetDataModule
from bnfree.import_names import one_module

one_module(__name__)

__all__ = [
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "DigitsDataModule",
    "FashionMNISTDataModule",
    "ImageFolderDataModule",
    "ImageNetDataModule",
]

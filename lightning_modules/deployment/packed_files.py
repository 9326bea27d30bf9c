"""Packed files where a checkpoint is expected: opened by path or name, tested on data, and used for predictions."""

from __future__ import annotations

import math
import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule
from torch.nn import functional as F

from bnfree.datamodules.batches import RawBatch
from bnfree.errors import InputError
from bnfree.lightning_modules.training.class_names import KEY, check_class_names
from bnfree.lightning_modules.training.messages import say
from bnfree.packing import NetworkInfo, PackedNetwork, is_packed, load, pretrained_path
from bnfree.packing.engines import EngineName
from bnfree.packing.hub import is_hub, pull
from bnfree.packing.zoo import full_name

SUFFIX = ".safetensors"
CHECKPOINTS = (".ckpt", ".pt", ".pth")


def names_packed_file(given: str) -> bool:
    """Whether a word means a packed file, or a pretrained network by its name."""
    if is_hub(given):
        return not given.endswith(CHECKPOINTS)
    if Path(given).suffix == SUFFIX or is_packed(given):
        return True
    try:
        full_name(given)
    except InputError:
        return False
    return True


def open_packed(given: str | Path, engine: EngineName = "auto", threads: int | None = None) -> PackedNetwork:
    """The packed network of a file or a name.

    Args:
        given: the file, or the name of a pretrained network.
        engine: see `PackedNetwork`; where numba is missing, stderr says how to get it.
        threads: for torch and the engines; None: left as they are.

    Raises:
        InputError: no such network, a damaged file, or an engine that is not there.
    """
    use_threads(threads)
    path = packed_path(given)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        network = load(path, engine)
    for warning in caught:
        print(f"bnfree: note: {warning.message}", file=sys.stderr)
    return network


def use_threads(threads: int | None) -> None:
    """Lets torch, and the engines with it, use so many threads; None: as it has chosen.

    Raises:
        InputError: a number below 1.
    """
    if threads is None:
        return
    if threads < 1:
        raise InputError(f"threads={threads} must be at least 1.")
    torch.set_num_threads(threads)


def packed_path(given: str | Path) -> Path:
    """The file that is meant.

    Args:
        given: a packed file, or the name of a pretrained network.

    Raises:
        InputError: there is none.
    """
    path = pull(str(given)) if is_hub(str(given)) else Path(given).expanduser()
    # Data may lie in a directory that is called like a pretrained network.
    if path.is_dir() and not names_packed_file(str(given)):
        best = path / "checkpoints" / "best.ckpt"
        remedy = f"; bnfree test --ckpt_path={best} evaluates the run's checkpoint" if best.is_file() else ""
        raise InputError(
            f"model={str(given)!r} is a directory; give a packed file, as bnfree export writes it{remedy}."
        )
    if not path.is_file():
        if path.suffix:
            raise InputError(f"model={str(given)!r} is no file; give a packed file, as bnfree export writes it.")
        path = pretrained_path(str(given))
    elif path.suffix != SUFFIX and not is_packed(path):
        raise InputError(
            f"model={str(given)!r} is no packed network; make one of a checkpoint with bnfree export, or evaluate the "
            "checkpoint itself with --ckpt_path."
        )
    return path


def accuracy_of_packed(
    network: PackedNetwork, data: LightningDataModule, allow_other_classes: bool = False
) -> dict[str, float]:
    """The means over all test images: `test/loss`, `test/acc` and, with 100 classes or more, `test/acc5`.

    Args:
        network: the network.
        data: gives batches of images and labels; 8-bit ones go to the network as they are, if it has their
            normalisation.
        allow_other_classes: also where the classes of the data are called otherwise than those of the network.

    Raises:
        InputError: data with other classes or channels than the network's.
    """
    _check_fits(network, data)
    data.prepare_data()
    data.setup("test")
    name, present = f"data={type(data).__name__}", getattr(data, KEY, None)
    check_class_names(network.info.class_names, present, "the packed network", name, allow_other_classes)
    count, sums = 0, {"test/loss": 0.0, "test/acc": 0.0}
    if network.num_classes >= 100:
        sums["test/acc5"] = 0.0
    here = NetworkInfo(getattr(data, "mean", None), getattr(data, "std", None)).normalization
    alike = here is not None and here == network.info.normalization
    for batch in data.test_dataloader():
        if alike and isinstance(batch, RawBatch):
            images, labels = batch.images, batch.targets
        else:
            images, labels = data.on_after_batch_transfer(batch, 0)
        logits = network(images)
        count += len(labels)
        sums["test/loss"] += F.cross_entropy(logits, labels, reduction="sum").item()
        sums["test/acc"] += int((logits.argmax(1) == labels).sum())
        if "test/acc5" in sums:
            sums["test/acc5"] += int((logits.topk(5).indices == labels[:, None]).sum())
    data.teardown("test")
    return {name: value / count for name, value in sums.items()}


def _check_fits(network: PackedNetwork, data: LightningDataModule) -> None:
    name, shape = type(data).__name__, getattr(data, "image_shape", None)
    classes = getattr(data, "num_classes", network.num_classes)
    if classes != network.num_classes:
        raise InputError(f"data={name} has {classes} classes, the network {network.num_classes}; give its own data.")
    if shape is not None and shape[0] != network.in_channels:
        raise InputError(f"data={name} has images of {shape[0]} channels, the network takes {network.in_channels}.")
    for key in ("mean", "std"):
        trained, here = getattr(network.info, key), getattr(data, key, None)
        if trained is not None and here is not None and not all(map(math.isclose, trained, here)):
            say(f"{name} normalises with {key} {tuple(here)}, but the network was trained with {trained}.")

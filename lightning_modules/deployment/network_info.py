"""What is known about the images and classes of a checkpoint's network: from its data, or without them."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule

from bnfree.datamodules.base import ImageDataModule
from bnfree.lightning_modules.training.class_names import KEY, OPTION, check_class_names, names_in_file
from bnfree.lightning_modules.training.run_directory import METRICS, run_directory_of
from bnfree.packing import NetworkInfo


def network_info(
    data: LightningDataModule | None, config: Namespace, num_classes: int, shape: tuple[int, ...] | None
) -> NetworkInfo:
    """What the data module, or else its class, and the checkpoint and its run say; a shape that the user gives wins.

    Raises:
        InputError: data with other class names than the checkpoint was trained on.
    """
    section = config.get("data")
    prepared = _preparation(section) if data is None and section is not None else _preparation_of(data)
    path, names = config.ckpt_path, getattr(data, KEY, None)
    trained = names_in_file(path)
    if data is not None:
        allowed = bool(config.get(OPTION))
        check_class_names(trained, names, f"ckpt_path={path!r}", f"data={type(data).__name__}", allowed)
    names = names or trained
    resize = prepared.get("resize")
    return NetworkInfo(
        mean=_of_sequence(prepared.get("mean"), float),
        std=_of_sequence(prepared.get("std"), float),
        image_shape=shape or _of_sequence(prepared.get("image_shape"), int),  # type: ignore[arg-type]
        resize=resize if isinstance(resize, int) and shape is None else None,
        class_names=_of_sequence(names, str) if isinstance(names, list | tuple) and len(names) == num_classes else None,
        exif_orientation=_exif_orientation(data, config),
        source_run=_source_run(path),
        accuracy=_tested_accuracy(path),
    )


def _preparation_of(data: Any) -> dict[str, Any]:
    names = {"mean": "mean", "std": "std", "image_shape": "image_shape", "resize": "evaluation_resize"}
    return {name: getattr(data, attribute, None) for name, attribute in names.items()}


def _preparation(section: Namespace) -> dict[str, Any]:
    """The same of a data section whose data are not there."""
    module, _, name = section.class_path.rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    if isinstance(kind, type) and issubclass(kind, ImageDataModule):
        return kind.preparation((section.get("init_args") or Namespace()).as_dict())
    return _preparation_of(kind)


def _exif_orientation(data: LightningDataModule | None, config: Namespace) -> bool | None:
    """False where the images of training were left lying; files say nothing of the usual."""
    arguments = (config.get("data") or Namespace()).get("init_args") or Namespace()
    obeyed = getattr(data, "exif_orientation", arguments.get("exif_orientation", True))
    return False if obeyed is False else None


def _of_sequence(value: Any, kind: type) -> tuple[Any, ...] | None:
    return tuple(map(kind, value)) if isinstance(value, list | tuple) else None


def _source_run(path: str) -> str:
    """The end of a checkpoint's path: the part that names the run, and not the machine."""
    place = Path(path).absolute()
    directory = run_directory_of(path)
    first = directory.parent.parent if directory is not None else place.parent
    return place.relative_to(first).as_posix()


def _tested_accuracy(path: str) -> float | None:
    """What the run's own test after training gave, which is one of the best checkpoint."""
    directory = run_directory_of(path)
    if directory is None or Path(path).name != "best.ckpt" or not (directory / METRICS).is_file():
        return None
    try:
        with (directory / METRICS).open(newline="", encoding="utf-8") as file:
            values = [float(row["test/acc"]) for row in csv.DictReader(file) if row.get("test/acc")]
    except (OSError, ValueError, csv.Error):
        return None
    return values[-1] if values else None

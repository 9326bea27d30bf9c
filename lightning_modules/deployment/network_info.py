"""What is written into an exported file beside the network: its images, its classes, and where it comes from."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule

from bnfree.errors import InputError
from bnfree.lightning_modules.training.class_names import KEY, OPTION, check_class_names, names_in_file
from bnfree.lightning_modules.training.network import build_data
from bnfree.lightning_modules.training.run_directory import METRICS, run_directory_of
from bnfree.packing import NetworkInfo


def open_data(config: Namespace) -> tuple[LightningDataModule | None, str]:
    """The data module of a config, ready to give test or validation images.

    Returns:
        The data module, and nothing; or None, and the reason why there is none.
    """
    if config.get("data") is None:
        return None, "there is no data section; add --config RUN/config.yaml, or --data"
    try:
        data = build_data(config)
        data.prepare_data()
        try:
            data.setup("test")
        except InputError:
            data.setup("validate")
    except InputError as error:
        return None, str(error).rstrip(".")
    return data, ""


def network_info(
    data: LightningDataModule | None, config: Namespace, num_classes: int, image_shape: tuple[int, ...] | None
) -> NetworkInfo:
    """What the data module, or else its class, and the checkpoint and its run say.

    Args:
        data: the data module; None where its files are missing.
        config: of the export.
        num_classes: of the network.
        image_shape: what the user has given.

    Raises:
        InputError: data with other class names than the checkpoint was trained on.
    """
    source: Any = data
    if data is None and config.get("data") is not None:
        module, _, name = config.data.class_path.rpartition(".")
        source = getattr(importlib.import_module(module), name)
    shape = image_shape or _sizes(getattr(source, "image_shape", None))
    path = config.ckpt_path
    trained, names = names_in_file(path), getattr(source, KEY, None)
    if data is not None:
        check_class_names(
            trained, names, f"ckpt_path={path!r}", f"data={type(data).__name__}", bool(config.get(OPTION))
        )
    names = names or trained
    resize = getattr(source, "evaluation_resize", None)
    return NetworkInfo(
        mean=_numbers(getattr(source, "mean", None)),
        std=_numbers(getattr(source, "std", None)),
        image_shape=shape,  # type: ignore[arg-type]
        resize=resize if isinstance(resize, int) and image_shape is None else None,
        class_names=tuple(map(str, names)) if isinstance(names, (list, tuple)) and len(names) == num_classes else None,
        exif_orientation=_exif_orientation(data, config),
        source_run=_source(path),
        accuracy=_tested_accuracy(path),
    )


def _exif_orientation(data: LightningDataModule | None, config: Namespace) -> bool | None:
    """False where the images of training were left lying; files say nothing of the usual."""
    arguments = (config.get("data") or Namespace()).get("init_args") or Namespace()
    obeyed = getattr(data, "exif_orientation", arguments.get("exif_orientation", True))
    return False if obeyed is False else None


def _sizes(value: Any) -> tuple[int, ...] | None:
    return tuple(value) if isinstance(value, (list, tuple)) else None


def _numbers(value: Any) -> tuple[float, ...] | None:
    return tuple(map(float, value)) if isinstance(value, (list, tuple)) else None


def _source(path: str) -> str:
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

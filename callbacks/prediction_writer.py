"""Predictions as a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from bnfree.callbacks.run_files import as_text, read_csv, run_directory, write_csv
from bnfree.errors import InputError

HEADER = ("image", "class", "probability")
PART_HEADER = ("index", *HEADER)


class PredictionWriter(BasePredictionWriter):
    """Only observes: writes one row for each predicted image into the run directory, `image,class,probability`.

    Rows are in the order of the data set, each image once, also with several processes (which need a common file
    system). The file appears under its name only when it is complete.

    Needs a `predict_step` that returns a dict of tensors (B,): `index` (position of the image in the data set),
    `class`, `probability` (0 to 1). The names come from `predict_image_names` and `class_names` of the datamodule;
    without them the numbers are written. What a spreadsheet would take for a formula gets an apostrophe before it.

    Args:
        filename: name of the CSV file in the run directory, or an absolute path.

    Raises:
        InputError: an empty file name; at the end of the prediction also a `predict_step` that returns something else.
    """

    def __init__(self, filename: str = "predictions.csv") -> None:
        super().__init__(write_interval="epoch")
        if not Path(filename).name:
            raise InputError(f"filename={filename!r} must name a file, such as 'predictions.csv'.")
        self.filename = filename

    def path(self, trainer: Trainer) -> Path:
        """The CSV file of a Trainer's predictions."""
        return run_directory(trainer) / self.filename

    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Writes this process's part; the first process then joins the parts."""
        path = self.path(trainer)
        datamodule = getattr(trainer, "datamodule", None)
        images = getattr(datamodule, "predict_image_names", None)
        classes = getattr(datamodule, "class_names", None)
        rows = table(predictions, images, classes)
        if trainer.world_size == 1:
            write_csv(path, HEADER, (row[1:] for row in rows))
        else:
            write_csv(_part(path, trainer.global_rank), PART_HEADER, rows)
            trainer.strategy.barrier()
            if trainer.is_global_zero:
                _join(path, trainer.world_size)
        _announce(path.absolute())


def table(
    predictions: Iterable[Any], images: Sequence[str] | None, classes: Sequence[str] | None
) -> list[tuple[int, str, str, str]]:
    """Rows (index, image, class, probability) sorted by index, each index once.

    Args:
        predictions: what `predict_step` returned for each batch; lists of these (several loaders) are read in order.
        images: name of each image by index; None: the index.
        classes: name of each class; None: its number.

    Raises:
        InputError: something other than dicts with `index`, `class` and `probability`.
    """
    rows: dict[int, tuple[int, str, str, str]] = {}
    for batch in _flatten(predictions):
        if not isinstance(batch, dict) or not {"index", "class", "probability"} <= batch.keys():
            raise InputError(
                f"predict_step returned {type(batch).__name__}, but PredictionWriter needs a dict of tensors with the "
                "keys index, class and probability."
            )
        columns = (_list(batch[key]) for key in ("index", "class", "probability"))
        for index, label, probability in zip(*columns, strict=True):
            image = str(index) if images is None else as_text(str(images[index]))
            name = str(label) if classes is None else as_text(str(classes[label]))
            rows[index] = (index, image, name, f"{probability:.6f}")
    return [rows[index] for index in sorted(rows)]


def _flatten(predictions: Iterable[Any]) -> Iterator[Any]:
    for item in predictions:
        if isinstance(item, (list, tuple)):
            yield from _flatten(item)
        else:
            yield item


def _list(column: Any) -> list[Any]:
    return column.tolist() if isinstance(column, Tensor) else list(column)


def _part(path: Path, rank: int) -> Path:
    return path.with_name(f"{path.name}.part{rank}")


def _join(path: Path, world_size: int) -> None:
    parts = [_part(path, rank) for rank in range(world_size)]
    # Padding for equal batches may have given the same image to two processes.
    rows = {int(row[0]): row[1:] for part in parts for row in read_csv(part, PART_HEADER)}
    write_csv(path, HEADER, (rows[index] for index in sorted(rows)))
    for part in parts:
        part.unlink()


@rank_zero_only
def _announce(path: Path) -> None:
    print(f"Predictions written to {path}")

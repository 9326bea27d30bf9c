"""The part of the training images that scores choose, and the file that scores are kept in."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from bnfree.errors import InputError
from bnfree.files import whole_file

COLUMNS = ("image", "name", "score")


def write_scores(path: str | Path, names: Sequence[str], images: Sequence[int], scores: Sequence[float]) -> None:
    """Writes a CSV file with one line for each image: its place in the stored training set, its name, its score."""
    with whole_file(Path(path)) as unfinished, unfinished.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows((i, n, repr(float(s))) for i, n, s in zip(images, names, scores, strict=True))


def read_scores(path: str | Path) -> dict[int, float]:
    """The score of each image, by its place in the stored training set.

    Raises:
        InputError: no such file, or one of other content.
    """
    given = f"scores={str(path)!r}"
    try:
        with Path(path).expanduser().open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{given} cannot be read ({error}); `bnfree score-data` writes such files.") from error
    try:
        scores = {int(row["image"]): float(row["score"]) for row in rows}
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{given} has no columns {', '.join(COLUMNS)} with numbers; give a file of bnfree score-data."
        ) from None
    if not all(map(math.isfinite, scores.values())):
        raise InputError(f"{given} holds scores that are not finite; score the images anew.")
    return scores


def choose_by_score(indices: Tensor, scores: Mapping[int, float], keep: float, skip: float = 0.0) -> Tensor:
    """The images with the highest scores, in the order in which they are given.

    Source: Paul et al., "Deep learning on a data diet" (NeurIPS 2021, arXiv 2107.07075): hard images teach most, but
    the very hardest may have wrong labels.

    Args:
        indices: int64 (M,), the images to choose from.
        scores: of all of them, by index.
        keep: share of them to keep, above 0 and at most 1; together with `skip` at most 1.
        skip: share of them, those with the highest scores, to leave out first.

    Returns:
        int64 (round(keep * M),), at least one image.

    Raises:
        InputError: an image without a score.
    """
    missing = [index for index in indices.tolist() if index not in scores]
    if missing:
        raise InputError(
            f"scores have none for {len(missing):,} of {len(indices):,} training images, such as image {missing[0]}; "
            "score all of them with the same data."
        )
    values = torch.tensor([scores[index] for index in indices.tolist()], dtype=torch.float64)
    # Equal scores in their order: what is kept must not depend on how a sort is made.
    ranking = torch.argsort(values, descending=True, stable=True)
    first = round(skip * len(indices))
    number = max(1, round(keep * len(indices)))
    return indices[ranking[first : first + number].sort().values]

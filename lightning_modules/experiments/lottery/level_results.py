"""What a finished level of a lottery run has reached, and the mark that makes it final."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bnfree.errors import InputError

FINISHED = "finished.yaml"
TICKET = "ticket.pt"
REWIND = "rewind.pt"
CONTROLS = "controls"

KINDS = (
    "dense", "ticket", "random_layerwise", "random_global", "reinit", "shuffle_signs", "early_bird", "multi_prize",
)  # fmt: skip
"""What a level has trained: the dense network, the ticket, a control of it, or a ticket of another engine."""


@dataclass(frozen=True, kw_only=True)
class LevelResult:
    """One trained level of one seed; accuracies and densities are shares from 0 to 1."""

    kind: str
    """One of `KINDS`."""
    level: int
    """0: dense; a control has the level of the ticket that it checks."""
    seed: int
    """Seed of the run that it belongs to."""
    density: float
    """Kept share of the prunable weights, counted in the effective weights after training."""
    mask_checksum: str | None
    """`bnfree.tickets.checksum` of its masks; None when dense."""
    epochs: int
    """Epochs of the schedule that lie behind it, those before the rewind point included."""
    steps: int
    """Optimizer steps that it has trained."""
    seconds: float
    """How long its training took, over all resumptions; the one value that repeating the run does not repeat."""
    val_acc: float | None
    """Validation accuracy after the last epoch; None without validation."""
    best_val_acc: float | None
    """Greatest validation accuracy of all epochs; None without validation."""
    test_acc: float | None
    """Test accuracy; None without `test_after_fit`."""
    test: dict[str, float] = field(default_factory=dict)
    """All that the test gave."""
    weights_checksum: str | None = None
    """SHA-256 of the weights after the last step."""
    directory: Path = field(default=Path(), compare=False)
    """The level's folder: where `finished.yaml`, `ticket.pt` and the run lie. Not written into the mark."""

    @property
    def accuracy(self) -> float | None:
        """The accuracy to compare levels by: of the test if there was one, otherwise the last one of validation."""
        return self.test_acc if self.test_acc is not None else self.val_acc

    @property
    def ticket(self) -> Path:
        """The ticket file of the level; a dense level has none."""
        return self.directory / TICKET


def level_name(level: int) -> str:
    """Name of a level's folder: `level_00`, `level_01`, ..."""
    return f"level_{level:02d}"


def seed_name(seed: int) -> str:
    """Name of a seed's folder: `seed_0`."""
    return f"seed_{seed}"


def write_level(result: LevelResult) -> None:
    """Marks a level as final; the mark is there as a whole or not at all."""
    content = asdict(result)
    del content["directory"]
    unfinished = result.directory / f".{FINISHED}"
    unfinished.write_text(yaml.safe_dump(content, sort_keys=False))
    unfinished.replace(result.directory / FINISHED)


def read_level(directory: Path) -> LevelResult | None:
    """The result of one level; None if it has not finished.

    Args:
        directory: the level's folder.

    Raises:
        InputError: the mark has been changed by hand into something else.
    """
    mark = directory / FINISHED
    if not mark.is_file():
        return None
    try:
        content: dict[str, Any] = yaml.safe_load(mark.read_text())
        return LevelResult(**content, directory=directory)
    except (TypeError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(
            f"{str(mark)!r} cannot be read; remove it, and the level goes on from its last checkpoint."
        ) from error


def read_levels(directory: Path) -> list[LevelResult]:
    """All finished levels below the directory of a lottery run, controls included.

    Args:
        directory: of `bnfree lottery run`.

    Returns:
        Sorted by kind (in the order of `KINDS`), then seed, then level.

    Raises:
        InputError: a mark that cannot be read.
    """
    folders = {mark.parent for mark in directory.glob(f"seed_*/**/{FINISHED}")}
    results = [read_level(folder) for folder in sorted(folders) if re.fullmatch(r"level_\d+", folder.name)]
    order = {kind: place for place, kind in enumerate(KINDS)}
    return sorted(
        (result for result in results if result is not None),
        key=lambda result: (order.get(result.kind, len(order)), result.kind, result.seed, result.level),
    )


def sentence(result: LevelResult) -> str:
    """The accuracies of a level in words."""
    named = (("val/acc", result.val_acc), ("best", result.best_val_acc), ("test/acc", result.test_acc))
    parts = [f"{name} {value:.4f}" for name, value in named if value is not None]
    return ", ".join(parts) or f"{result.epochs} epochs"

"""What a finished level of a lottery run has reached, and the mark that makes it final."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bnfree.errors import InputError
from bnfree.files import whole_file
from bnfree.plugins import BUILT_IN, resolve

FINISHED = "finished.yaml"
TICKET = "ticket.pt"
REWIND = "rewind.pt"
CONTROLS = "controls"

TITLES = {
    "dense": "dense",
    "ticket": "ticket",
    "early_bird": "early-bird ticket",
    "multi_prize": "multi-prize ticket",
}
"""What a level has trained, in words: the dense network, the ticket, or one that was found otherwise. Any other kind is
a control, under its name as a plugin."""


def is_control(kind: str) -> bool:
    """Whether a kind of level is a control of a ticket."""
    return kind not in TITLES


def kind_title(kind: str) -> str:
    """A kind of level in words.

    Example:
        >>> kind_title("random_global"), kind_title("my_controls.HalfSigns")
        ('random mask, global', 'half signs')
    """
    if kind in TITLES:
        return TITLES[kind]
    # Kinds come out of files, which never lead to an import: a dotted path speaks for itself.
    title = getattr(resolve("control", kind), "title", "") if kind in BUILT_IN["control"] else ""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", kind.rpartition(".")[2]).replace("_", " ")
    return title or words.lower()


def kind_order(kind: str) -> tuple[int, int, str]:
    """Where a kind stands in tables: dense, ticket, the controls, tickets that were found otherwise."""
    if is_control(kind):
        built_in = list(BUILT_IN["control"])
        return 1, built_in.index(kind) if kind in built_in else len(built_in), kind
    place = list(TITLES).index(kind)
    return (0 if place < 2 else 2), place, kind


@dataclass(frozen=True, kw_only=True)
class LevelResult:
    """One trained level of one seed; accuracies and densities are shares from 0 to 1."""

    kind: str
    """One of `TITLES`, or a control."""
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


@dataclass(frozen=True)
class LotteryResult:
    """What `run_lottery` has trained."""

    directory: Path
    """Where everything is; `bnfree.lightning_modules.report` writes tables and figures of it."""
    dense: tuple[LevelResult, ...]
    """The dense networks, one for each seed."""
    tickets: tuple[LevelResult, ...]
    """The tickets, by seed and level."""
    controls: tuple[LevelResult, ...] = ()
    """Their controls, by seed and level."""


@dataclass(frozen=True)
class ControlsResult:
    """What `run_controls` has trained."""

    directory: Path
    """Of the lottery run."""
    controls: tuple[LevelResult, ...]
    """The controls, by seed and level."""
    tickets: tuple[LevelResult, ...]
    """The tickets that they check."""


@dataclass(frozen=True)
class EarlyBirdResult:
    """What `run_early_bird` has trained."""

    directory: Path
    """Where everything is."""
    tickets: tuple[LevelResult, ...]
    """The early-bird tickets, one for each seed."""


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
    with whole_file(result.directory / FINISHED) as unfinished:
        unfinished.write_text(yaml.safe_dump(content, sort_keys=False))


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
        Sorted by kind (see `kind_order`), then seed, then level.

    Raises:
        InputError: a mark that cannot be read.
    """
    folders = {mark.parent for mark in directory.glob(f"seed_*/**/{FINISHED}")}
    results = [read_level(folder) for folder in sorted(folders) if re.fullmatch(r"level_\d+", folder.name)]
    return sorted(
        (result for result in results if result is not None),
        key=lambda result: (kind_order(result.kind), result.seed, result.level),
    )


def sentence(result: LevelResult) -> str:
    """The accuracies of a level in words."""
    named = (("val/acc", result.val_acc), ("best", result.best_val_acc), ("test/acc", result.test_acc))
    parts = [f"{name} {value:.4f}" for name, value in named if value is not None]
    return ", ".join(parts) or f"{result.epochs} epochs"

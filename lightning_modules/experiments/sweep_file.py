"""The factors of a sweep in words, and the file in its directory that says which run has which values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from bnfree.errors import InputError
from bnfree.files import whole_file
from bnfree.lightning_modules.experiments.files import read_yaml

SWEEP = "sweep.yaml"
SEEDS = ("seed_everything", "data.seed")


def plain_key(name: str) -> str:
    """The name of an option without what may be left out in it."""
    return name.strip().replace(".init_args", "")


def short_names(factors: Sequence[str]) -> dict[str, str]:
    """The last part of each factor's name, as much of it as tells it from the others.

    Example:
        >>> short_names(["model.optimizer.lr", "seed_everything,data.seed"])
        {'model.optimizer.lr': 'lr', 'seed_everything,data.seed': 'seed'}
    """
    found: dict[str, str] = {}
    for factor in factors:
        parts = plain_key(factor.rpartition(",")[2]).split(".")
        others = [plain_key(other.rpartition(",")[2]).split(".") for other in factors if other != factor]
        length = next((n for n in range(1, len(parts)) if all(o[-n:] != parts[-n:] for o in others)), len(parts))
        found[factor] = ".".join(parts[-length:])
    return {factor: "seed" if name == "seed_everything" else name for factor, name in found.items()}


def is_seed(factor: str) -> bool:
    """Whether a factor is the seed of a run, over which accuracies are averaged."""
    return all(plain_key(name) in SEEDS for name in factor.split(","))


def label(values: Mapping[str, str]) -> str:
    """What sets a run apart from the others, but for its seed; empty where only seeds are varied."""
    names = short_names(list(values))
    return ", ".join(f"{names[factor]}={value}" for factor, value in values.items() if not is_seed(factor))


@dataclass(frozen=True)
class SweepFile:
    """What `sweep.yaml` in a sweep's directory says: the factors' values of each run, by its name."""

    runs: dict[str, dict[str, str]] = field(default_factory=dict)
    """In the order of the grid; those of earlier grids in the same directory come last."""

    @classmethod
    def read(cls, directory: Path) -> SweepFile:
        """Reads it; without runs where there is none.

        Raises:
            InputError: it has been changed by hand into something else.
        """
        path = directory / SWEEP
        content = read_yaml(path, repr(str(path))) if path.is_file() else {"runs": {}}
        runs = content.get("runs") if isinstance(content, dict) else None
        if not isinstance(runs, dict) or not all(isinstance(values, dict) for values in runs.values()):
            raise InputError(f"{str(path)!r} does not name the runs of a sweep; remove it and start the sweep again.")
        return cls({str(name): {str(k): str(v) for k, v in values.items()} for name, values in runs.items()})

    def write(self, directory: Path) -> None:
        """Writes it as a whole."""
        with whole_file(directory / SWEEP) as unfinished:
            unfinished.write_text(yaml.safe_dump({"runs": self.runs}, sort_keys=False))

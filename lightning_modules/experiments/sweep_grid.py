"""What is varied in a sweep: its factors, and the settings and the name of each of its runs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.files import as_list, on_top
from bnfree.lightning_modules.experiments.sweep_file import plain_key, short_names
from bnfree.lightning_modules.training.run_names import safe
from bnfree.lightning_modules.training.settings import FitSettings, text_of

CONFIG = "config"
LONGEST = 200
"""Characters in the name of a run's directory."""
# They are of the whole sweep.
NOT_VARIED = ("run_dir", "ckpt_path", "name", "c")


@dataclass(frozen=True)
class SweepSettings:
    """Settings of `run_sweep`.

    Example:
        >>> over = {"model.optimizer.lr": [1e-3, 3e-3], "seed_everything,data.seed": [0, 1, 2]}
        >>> settings = SweepSettings(FitSettings("quickstart", {"trainer.max_epochs": 5}), over)
        >>> len(settings.combinations()), settings.directory.name
        (6, 'quickstart-sweep')
    """

    fit: FitSettings
    """What all runs have in common."""
    over: Mapping[str, Sequence[Any]]
    """The values of each factor, by the dotted name of an option of `fit`; all combinations are run. Options that have
    one value together are named with commas, as `seed_everything,data.seed`; the values of `config` are overlays."""
    run_dir: str | Path | None = None
    """Where the runs go; None: `runs/<first config>-sweep`."""

    @property
    def directory(self) -> Path:
        """Where the runs go, as an absolute path: the same in every process and every time."""
        configs = as_list(self.fit.configs)
        name = Path(configs[0]).stem if configs and isinstance(configs[0], str | Path) else "fit"
        return Path(self.run_dir or Path("runs") / f"{name}-sweep").expanduser().absolute()

    def combinations(self) -> list[dict[str, str]]:
        """The value of each factor in each run, as it would be typed; the last factor changes fastest.

        Raises:
            InputError: a factor without values, with one value twice, or that another one or an option sets too.
        """
        values = {str(factor): [text_of(factor, value) for value in given] for factor, given in self.over.items()}
        _check(values, self.fit)
        return [dict(zip(values, combination, strict=True)) for combination in product(*values.values())]

    def fit_of(self, values: Mapping[str, str]) -> FitSettings:
        """The settings of the run with these values."""
        configs = [value for factor, value in values.items() if factor == CONFIG]
        words = [f"--{name}={v}" for factor, v in values.items() if factor != CONFIG for name in factor.split(",")]
        return on_top(self.fit, FitSettings(configs, arguments=words))


def _check(values: Mapping[str, Sequence[str]], fit: FitSettings) -> None:
    if not values:
        raise InputError("over names nothing that is varied; give --over model.optimizer.lr=1e-3,3e-3, say.")
    words = {word.partition("=")[0].removeprefix("--") for word in fit.arguments if word.startswith("--")}
    taken = {plain_key(name) for name in (*fit.options, *words)} - {CONFIG}
    for factor, given in values.items():
        if not given or "" in given:
            raise InputError(f"over={factor!r} has no value, or an empty one; give --over {factor}=A,B.")
        if len(set(given)) < len(given):
            raise InputError(f"over={factor!r} has a value twice ({', '.join(given)}); give each once.")
        for name in map(plain_key, factor.split(",")):
            if name in NOT_VARIED or not name:
                raise InputError(
                    f"over={factor!r} cannot be varied; give options of bnfree fit that change a training."
                )
            if name in taken:
                raise InputError(f"{name} is varied by over={factor!r} and given besides; leave one of them out.")
            taken.add(name)


def split_values(text: str) -> list[str]:
    """The parts of `a,b`; a comma in brackets belongs to its value.

    Example:
        >>> split_values("[8,16],[4,8],null")
        ['[8,16]', '[4,8]', 'null']
    """
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def run_name(values: Mapping[str, str]) -> str:
    """The name of a run's directory, which its values alone decide.

    Example:
        >>> run_name({"model.optimizer.lr": "1e-3", "data.seed": "0"})
        'lr=1e-3-seed=0'
    """
    names = short_names(list(values))
    return _short("-".join(f"{names[factor]}={_short(value)}" for factor, value in values.items()), LONGEST)


def _short(text: str, longest: int = 24) -> str:
    short = safe(text, longest)
    # Two texts may be the same but for what a name cannot have.
    return short if short == text else f"{short}_{hashlib.sha256(text.encode()).hexdigest()[:6]}".lstrip("_")

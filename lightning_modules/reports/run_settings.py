"""Settings of a config, and what differs between several."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from bnfree.lightning_modules.reports.summaries import MISSING

# What changes no result: where things lie, and how much is shown.
PLACES = frozenset({"run_dir", "ckpt_path", "weights_only", "config", "dirpath", "default_root_dir", "num_workers"})
DISPLAY = frozenset({"enable_progress_bar", "enable_model_summary", "verbose"})
SEEDS = ("seed_everything", "data.seed")
CHECKPOINT_SUFFIXES = (".ckpt", ".pt", ".pth", ".tar")

# A setting is known by its stage (empty: of all stages) and its dotted name.
Key = tuple[str, str]
MOST_WORDS = 3


def flat_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a config by their dotted names, as on the command line, without seeds and places.

    A class stands under the name of its argument, its arguments below. Of a path only the last part counts, and of a
    checkpoint whether it is a run's `best`, its `last`, or another one.

    Args:
        config: content of a run's `config.yaml`.
    """
    return {key: value for key, value in _leaves(config, "") if key not in SEEDS}


def seeds_in(config: dict[str, Any]) -> tuple[Any, ...]:
    """The training's seed, and the data's where there is one."""
    everything = dict(_leaves(config, ""))
    return tuple(everything[key] for key in SEEDS if key in everything)


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    name = key.rpartition(".")[2]
    # No callbacks at all is a list without any of them.
    if name in PLACES | DISPLAY or (name == "callbacks" and not value):
        return
    if isinstance(value, dict) and isinstance(value.get("class_path"), str):
        yield key, value["class_path"].rpartition(".")[2]
        for section in ("init_args", "dict_kwargs"):
            yield from _leaves(value.get(section) or {}, key)
    elif isinstance(value, dict):
        for below, content in value.items():
            yield from _leaves(content, f"{key}.{below}" if key else str(below))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for item in value:
            if isinstance(item, dict) and isinstance(item.get("class_path"), str):
                item_key = f"{key}.{item['class_path'].rpartition('.')[2]}"
                yield item_key, True
                yield from _leaves(item.get("init_args") or {}, item_key)
    elif isinstance(value, str) and value.endswith(CHECKPOINT_SUFFIXES):
        stem = Path(value).stem
        yield key, stem if stem in ("best", "last") else "checkpoint"
    elif isinstance(value, str) and name.endswith("_dir"):
        yield key, Path(value).name
    else:
        yield key, tuple(value) if isinstance(value, list) else value


def join_stages(stages: list[tuple[str, dict[str, Any]]], shared: set[str]) -> dict[Key, Any]:
    """The settings of a whole run, with those that are equal in all stages once.

    Args:
        stages: name and settings of each stage, in order.
        shared: names of the settings that no recipe changes from stage to stage.
    """
    joined: dict[Key, Any] = {}
    for stage, settings in stages:
        joined.update({("" if name in shared else stage, name): value for name, value in settings.items()})
    return joined


def shared_names(runs: list[list[tuple[str, dict[str, Any]]]]) -> set[str]:
    """Names of the settings that have one value in all stages of each run."""
    names = {name for stages in runs for _, settings in stages for name in settings}
    return {
        name for name in names if all(len({repr(settings.get(name)) for _, settings in stages}) == 1 for stages in runs)
    }


def differing_settings(settings: list[dict[Key, Any]]) -> dict[Key, list[Any]]:
    """The settings that are not the same in all runs, with the value of each; `MISSING` where a run has none."""
    keys = sorted(dict.fromkeys(key for one in settings for key in one), key=lambda key: _distance(key[1]))
    table = {key: [one.get(key, MISSING) for one in settings] for key in keys}
    return {key: values for key, values in table.items() if len(set(map(repr, values))) > 1}


def setting_labels(settings: list[dict[Key, Any]]) -> list[str]:
    """A label for each run by what sets it apart; may be equal for equal settings.

    Up to three settings are all named: a reader who is told one of two factors takes it for the cause. Of more, as few
    as tell the runs apart; the table of settings has them all.
    """
    table = differing_settings(settings)
    wanted = len({repr(sorted(one.items(), key=repr)) for one in settings})
    factors = _factors(table)
    if 0 < len(factors) <= MOST_WORDS and _distinct(table, factors) == wanted:
        return _words(table, factors)
    for size in range(1, MOST_WORDS + 1):
        choices = [keys for keys in combinations(table, size) if _distinct(table, keys) == wanted]
        if choices:
            return _words(table, min(choices, key=lambda keys: _cost(table, keys)))
    return _words(table, tuple(table)[:MOST_WORDS]) if table else ["" for _ in settings]


def _factors(table: dict[Key, list[Any]]) -> tuple[Key, ...]:
    """The settings that somebody has chosen: what comes and goes with a class or a stage is no factor beside it."""
    lacking = {key: tuple(value == MISSING for value in values) for key, values in table.items()}
    return tuple(
        (stage, name)
        for stage, name in table
        if (stage, name) != ("", "stages")
        and not any(
            any(lacking[stage, name]) and lacking[other] == lacking[stage, name] and name.startswith(f"{other[1]}.")
            for other in table
        )
    )


def _distinct(table: dict[Key, list[Any]], keys: tuple[Key, ...]) -> int:
    return len(set(zip(*(map(repr, table[key]) for key in keys), strict=True)))


def _cost(table: dict[Key, list[Any]], keys: tuple[Key, ...]) -> tuple[int, int, int, int]:
    """What all runs have is preferred, then settings of the network, then of its training, then short words."""
    missing = sum(value == MISSING for key in keys for value in table[key])
    # A class that some runs lack says more than its arguments, which they lack too.
    depth = sum(name.count(".") for _, name in keys) if missing else 0
    distance = sum(_distance(name) for _, name in keys)
    return missing, distance, depth, sum(len(word) for word in _words(table, keys))


def _distance(name: str) -> int:
    """How far a setting is from what a comparison is usually about."""
    return next((i for i, start in enumerate(("model.backbone", "model", "data")) if name.startswith(start)), 3)


def _words(table: dict[Key, list[Any]], keys: tuple[Key, ...]) -> list[str]:
    short = [name.rpartition(".")[2] for _, name in keys]
    names = [
        f"{stage} {name if short.count(name) == 1 else '.'.join(full.split('.')[-2:])}".strip()
        for name, (stage, full) in zip(short, keys, strict=True)
    ]
    columns = [table[key] for key in keys]
    # What most runs have goes without saying.
    usual = [next((v for v in column if 2 * column.count(v) > len(column)), object()) for column in columns]
    return [
        ", ".join(
            [_word(name, value) for name, value, common in zip(names, row, usual, strict=True) if value != common]
            or [_word(names[0], row[0])]
        )
        for row in zip(*columns, strict=True)
    ]


def _word(name: str, value: Any) -> str:
    if value is True and name[:1].isupper():
        return name
    return f"no {name}" if value == MISSING else f"{name}={written_value(value)}"


def written_value(value: Any) -> str:
    """A value as a user would type it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(written_value(item) for item in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)

"""The card of a trained network: what it is, what it was trained on and how, and what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bnfree.errors import InputError
from bnfree.lightning_modules.reports.run_groups import compare_runs
from bnfree.lightning_modules.reports.runs import ACCURACIES_AND_LOSSES, RECIPE_FILE, Run, has_trained, read_run
from bnfree.lightning_modules.training.run_directory import CONFIG, latest_config
from bnfree.packing import NetworkInfo
from bnfree.packing.layers import PackedLayers

# What those who made the data say of them, by the data module.
LICENCES = {
    "DigitsDataModule": "UCI Optical Recognition of Handwritten Digits, as scikit-learn has them: CC BY 4.0",
    "FashionMNISTDataModule": "Fashion-MNIST (Zalando): MIT",
    "CIFAR10DataModule": "CIFAR-10 (Krizhevsky, 2009): its authors state no licence, and ask to be cited",
    "CIFAR100DataModule": "CIFAR-100 (Krizhevsky, 2009): its authors state no licence, and ask to be cited",
    "ImageNetDataModule": "ImageNet: for research and education that are not commercial, by its terms of access",
}
UNKNOWN = "not known to bnfree: ask where the images come from"
MOST_ROWS = 12
MOST_RUNS = 100


@dataclass(frozen=True)
class CardFacts:
    """What a card is made from besides the run."""

    name: str
    layers: PackedLayers
    info: NetworkInfo
    sha256: str
    size: int
    """Bytes of the packed file."""
    float32_size: int
    """Bytes of the trained network's parameters in float32."""
    export_command: str
    speed: str = ""
    """What a prediction takes, and where it was measured; empty: not measured."""
    url: str | None = None


def model_card(facts: CardFacts, directory: Path | None) -> str:
    """The card, in Markdown.

    Args:
        facts: what it is made from.
        directory: the run directory; None: there is none, and the card says so.

    Raises:
        InputError: files of the run that cannot be read.
    """
    run, runs = _runs(directory)
    config = _config(directory)
    lines = [
        f"# {facts.name}",
        "",
        f"{facts.layers.architecture} with {len(facts.layers.units)} binary units and {facts.layers.num_classes} "
        "classes, packed by [bnfree](../README.md): 1 bit a weight, no batch normalisation at run time.",
        "",
        *_table([("property", "value"), *_properties(facts, config), *_accuracies(facts.info, runs)]),
        "",
        "## Use",
        "",
        "```bash",
        f"bnfree predict --model {facts.name} image.png",
        "```",
        "",
        *_training(facts, directory, run, config),
    ]
    return "\n".join(lines) + "\n"


def _properties(facts: CardFacts, config: dict[str, Any]) -> list[tuple[str, str]]:
    data = (config.get("data") or {}).get("class_path", "") if isinstance(config.get("data"), dict) else ""
    data = str(data).rpartition(".")[2]
    shape = facts.info.image_shape
    rows = [
        ("images", "not known" if shape is None else "x".join(map(str, shape))),
        ("data", data or "not known"),
        ("licence of the data", LICENCES.get(data, UNKNOWN)),
        ("file", f"{facts.size} bytes; {facts.float32_size} in float32"),
        ("SHA-256", f"`{facts.sha256}`"),
    ]
    if facts.url is not None:
        rows.append(("from", facts.url))
    return [*rows, ("speed", facts.speed or "not measured")]


def _accuracies(info: NetworkInfo, runs: list[Run]) -> list[tuple[str, str]]:
    rows = []
    if info.accuracy is not None:
        rows.append(("test accuracy", f"{100 * info.accuracy:.2f} %"))
    found = compare_runs(runs).groups[0].accuracies() if runs else {}
    for heading, summary in found.items():
        if len(summary.values) > 1:
            rows.append((f"{heading} of {len(summary.values)} seeds", f"{summary.percent()} %, ± a standard deviation"))
    return rows or [("test accuracy", "not measured")]


def _training(facts: CardFacts, directory: Path | None, run: Run | None, config: dict[str, Any]) -> list[str]:
    lines = ["## Training", ""]
    if directory is None or run is None:
        return [*lines, "The run's files are not there, so its log is not here."]
    stages = f", the last of the stages {', '.join(s.name for s in run.stages)}" if len(run.stages) > 1 else ""
    stage = next((s for s in run.stages if s.directory.resolve() == directory.resolve()), run.stages[-1])
    epochs = sorted({epoch for metric in ACCURACIES_AND_LOSSES for epoch in stage.curves.get(metric, {})})
    # Whole epochs, the first and the last among them.
    whole = [epoch for epoch in epochs if epoch == int(epoch)]
    step = max(1, -(-len(whole) // MOST_ROWS))
    shown = sorted({*whole[::step], *whole[-1:]})
    log: list[tuple[str, ...]] = [("epoch", *ACCURACIES_AND_LOSSES)]
    for epoch in shown:
        values = (stage.curves.get(metric, {}).get(epoch) for metric in ACCURACIES_AND_LOSSES)
        log.append((f"{epoch:g}", *("" if value is None else f"{value:.4f}" for value in values)))
    return [
        *lines,
        f"{stage.epochs} epochs{stages}. With the config below as `config.yaml`:",
        "",
        "```bash",
        "bnfree fit --config config.yaml",
        facts.export_command,
        "```",
        "",
        "## Log",
        "",
        *_table(log),
        "",
        "## Config",
        "",
        "```yaml",
        yaml.safe_dump(_without_nothing(config), sort_keys=False).rstrip(),
        "```",
    ]


def _runs(directory: Path | None) -> tuple[Run | None, list[Run]]:
    """The run, or the recipe that it is a stage of, and first among those beside it with the same settings."""
    if directory is None:
        return None, []
    root = directory.parent if (directory.parent / RECIPE_FILE).is_file() else directory
    run, others = read_run(root), []
    for place in sorted(root.resolve().parent.iterdir())[:MOST_RUNS]:
        if (
            place.is_dir()
            and place != root.resolve()
            and ((place / CONFIG).is_file() or (place / RECIPE_FILE).is_file())
        ):
            # One beside it that cannot be read says nothing.
            with suppress(InputError):
                others.append(read_run(place))
    if not has_trained(root) and not run.stages:
        return None, []
    group = next(group for group in compare_runs([run, *others]).groups if run in group.runs)
    return run, group.runs


def _config(directory: Path | None) -> dict[str, Any]:
    if directory is None:
        return {}
    with suppress(OSError, yaml.YAMLError):
        content = yaml.safe_load(latest_config(directory).read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def _without_nothing(value: Any) -> Any:
    """Settings without those that are null, and without places on this machine."""
    if isinstance(value, dict):
        return {
            key: _without_nothing(inner)
            for key, inner in value.items()
            if inner is not None and key not in ("run_dir", "data_dir", "cache_dir", "ckpt_path")
        }
    return [_without_nothing(inner) for inner in value] if isinstance(value, list) else value


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return [lines[0], f"|{' --- |' * len(rows[0])}", *lines[1:]]

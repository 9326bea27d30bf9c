"""Analyses of a network on its training images, and scores of those images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bnfree.data_scores import el2n, grand
from bnfree.datamodules.base import ImageDataModule
from bnfree.datamodules.score_subsets import write_scores
from bnfree.errors import InputError
from bnfree.feature_complexity import feature_complexity
from bnfree.hessian import layer_sensitivities
from bnfree.lightning_modules.experiments.tickets.pruned_network import check_output
from bnfree.lightning_modules.training.config.parser import build_data
from bnfree.lightning_modules.training.network import build_network, load_weights, read_description
from bnfree.trainability import activation_patterns, gradient_condition

SCORES = ("el2n", "grand")
ANALYSES = ("sensitivity", "trainability", "complexity")


@dataclass(frozen=True)
class AnalysisSettings:
    """Which network is looked at, how, and on how many images."""

    source: str | Path
    """A YAML config, its name, a run directory or a checkpoint."""
    analysis: str
    """`sensitivity`, `trainability` or `complexity`."""
    num_images: int = 64
    """Training images that the first two take, the same as calibration takes."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Plain values by dotted name that beat the config, such as `{"data.data_dir": "data"}`."""


@dataclass(frozen=True)
class ScoreSettings:
    """Which networks score training images, and where the scores go."""

    sources: Sequence[str | Path]
    """Run directories or checkpoints; scores are the means over them."""
    output: str | Path
    """The CSV file."""
    score: str = "el2n"
    """`el2n` or `grand`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Plain values by dotted name that beat the configs."""


def analyse(settings: AnalysisSettings) -> list[tuple[str, dict[str, float]]]:
    """What an analysis has found: its figures, for each layer or for the network.

    Args:
        settings: which network, and how.

    Raises:
        InputError: an analysis that is not known, no images, or a network or data that cannot be had.
    """
    _one_of("analysis", settings.analysis, ANALYSES)
    if settings.num_images < 1:
        raise InputError(f"num_images={settings.num_images} must be at least 1.")
    network, data = _network_and_data(settings.source, settings.options, needs_data=settings.analysis != "complexity")
    if settings.analysis == "complexity":
        return [(name, {"features": float(n)}) for name, n in feature_complexity(network).items()]
    batches = chain.from_iterable(zip(images, labels, strict=True) for images, labels, _ in data.training_batches())
    pairs = [pair for pair, _ in zip(batches, range(settings.num_images), strict=False)]
    images, labels = (torch.stack(tensors) for tensors in zip(*pairs, strict=True))
    if settings.analysis == "trainability":
        patterns = activation_patterns(network, images)
        return [("network", {"condition": gradient_condition(network, images), "patterns": float(patterns)})]
    found = layer_sensitivities(network, images, labels)
    ranked = sorted(found.items(), key=lambda item: item[1].scale_free, reverse=True)
    return [(name, {"scale_free": s.scale_free, "eigenvalue": s.eigenvalue, "trace": s.trace}) for name, s in ranked]


def score_data(settings: ScoreSettings) -> int:
    """Scores every training image and writes the scores to a CSV file, which `data.scores` takes.

    Args:
        settings: which networks, which score, and where it goes.

    Returns:
        The number of images.

    Raises:
        InputError: a score that is not known, no network, data that cannot be had, networks of other images, or a place
            that cannot be written to, which is found before anything is scored.
    """
    _one_of("score", settings.score, SCORES)
    if not settings.sources:
        raise InputError("sources names no network; give at least one run directory or checkpoint.")
    check_output(settings.output, True, *settings.sources)
    totals: dict[int, float] = {}
    for source in settings.sources:
        network, data = _network_and_data(source, settings.options)
        found = _scores(network, data, _error_length if settings.score == "el2n" else grand)
        if totals and found.keys() != totals.keys():
            raise InputError(f"{str(source)!r} has other training images than {str(settings.sources[0])!r}.")
        totals = {image: totals.get(image, 0.0) + score for image, score in found.items()}
    places = sorted(totals)
    names = data.training_image_names(torch.tensor(places))
    write_scores(settings.output, names, places, [totals[place] / len(settings.sources) for place in places])
    return len(places)


def _scores(
    network: nn.Module, data: ImageDataModule, score: Callable[[nn.Module, Tensor, Tensor], Tensor]
) -> dict[int, float]:
    found: dict[int, float] = {}
    for images, labels, places in data.training_batches():
        found.update(zip(places.tolist(), score(network, images, labels).tolist(), strict=True))
    return found


def _error_length(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return el2n(network(images), labels)


def _network_and_data(
    source: str | Path, options: Mapping[str, Any], needs_data: bool = True
) -> tuple[nn.Module, ImageDataModule]:
    config = read_description(source, options)
    network, prefix = build_network(config)
    if config.ckpt_path is not None:
        load_weights(network, prefix, config.ckpt_path, config.weights_only is not False)
    data: Any = None
    if needs_data:
        if config.get("data") is None:
            raise InputError(f"{str(source)!r} has no data section; add --data=CLASS, or --config of the run.")
        data = build_data(config)
        if not isinstance(data, ImageDataModule):
            raise InputError(f"data={type(data).__name__} is none of bnfree.datamodules; give one of those.")
        data.prepare_data()
        data.setup("fit")
    return network.eval(), data


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(f"{name}={value!r} is not known; choose from {', '.join(known)}.")

"""A claim to a network by what it answers to the trigger images of an owner's key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bnfree.classifiers import num_classes_of
from bnfree.errors import InputError
from bnfree.lightning_modules.training.network import build_network, image_shape, load_weights, read_description
from bnfree.tickets.key_files import read_owner_key
from bnfree.tickets.triggers import TriggerClaim, claim, trigger_images


@dataclass(frozen=True, kw_only=True)
class TriggerSettings:
    """Which network is claimed, and by which triggers."""

    source: str | Path
    """A checkpoint or a run directory."""
    key: str | Path
    """File of the owner's key."""
    message: str = ""
    """What is claimed, as it was trained."""
    count: int = 100
    """Number of triggers, as it was trained."""
    accept: float = 1e-6
    """Largest p-value."""


def claim_by_triggers(settings: TriggerSettings) -> TriggerClaim:
    """Asks the network of a checkpoint for the classes of an owner's triggers.

    Raises:
        InputError: a file that cannot be read, a network of whose images and classes nothing is known, or a number out
            of range.
    """
    if settings.count < 1 or not 0 < settings.accept < 1:
        raise InputError(f"count={settings.count} must be at least 1, and accept={settings.accept} between 0 and 1.")
    key = read_owner_key(settings.key)
    config: Any = read_description(settings.source)
    network, prefix = build_network(config)
    if config.ckpt_path is None:
        raise InputError(f"source={str(settings.source)!r} has no weights; give a checkpoint or a run directory.")
    load_weights(network, prefix, config.ckpt_path, config.weights_only is not False)
    num_classes = num_classes_of(network)
    shape = image_shape(config, network)
    if num_classes is None or len(shape) != 3:
        raise InputError(f"source={str(settings.source)!r} does not say its classes and the shape of its images.")
    images, classes = trigger_images(key, settings.message, settings.count, (shape[0], shape[1], shape[2]), num_classes)
    with torch.inference_mode():
        answers = network.float().eval()(images).argmax(1)
    return claim(answers, classes, num_classes)

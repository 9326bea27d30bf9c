"""Betas of a new ticket, measured on training images as before the first step of a run from scratch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn

from bnfree.calibration import calibrate
from bnfree.errors import InputError
from bnfree.lightning_modules.training.config.explanations import first_cause
from bnfree.lightning_modules.training.config.parser import CommandParser
from bnfree.tickets import Masks, apply

IMAGES = 256


def training_images(data: Mapping[str, Any] | None, network: nn.Module) -> Tensor:
    """256 training images of a data section, as the network sees them, and without augmentation where it can be had.

    Args:
        data: the section, `class_path` and `init_args`.
        network: the network that is to be calibrated.

    Returns:
        Shape (N, C, H, W), float32.

    Raises:
        InputError: no data section, data that cannot be read, or a network without betas.
    """
    if not any(name.endswith(".beta") for name in network.state_dict()):
        raise InputError(f"calibrate: {type(network).__name__} has no beta to be measured; leave it out.")
    if data is None:
        raise InputError("calibrate needs images, and no data section is known; give a config with one as --to.")
    parser = CommandParser()
    parser.add_subclass_arguments(LightningDataModule, "data")
    try:
        module = parser.instantiate_classes(parser.parse_object({"data": dict(data)})).data
    except ValueError as error:
        raise first_cause(error) from None
    module.prepare_data()
    module.setup("fit")
    if hasattr(module, "calibration_images"):
        own: Tensor = module.calibration_images(IMAGES)
        return own
    images: list[Tensor] = []
    with torch.random.fork_rng():
        for batch in module.train_dataloader():
            images.append(batch[0])
            if sum(map(len, images)) >= IMAGES:
                break
    return torch.cat(images)[:IMAGES]


def measured_constants(network: nn.Module, start: Mapping[str, Tensor], images: Tensor) -> dict[str, Tensor]:
    """Betas and shifts of the signs as calibration sets them with given weights; the network stays as it is.

    Args:
        network: of the kind that the weights are of.
        start: weights and masks.
        images: (N, C, H, W).
    """
    trial = copy.deepcopy(network)
    trial.load_state_dict(dict(start))
    calibrate(trial, images)
    return {n: t for n, t in trial.state_dict().items() if n.endswith((".beta", ".rsign.shift"))}


def calibrate_fresh(network: nn.Module, masks: Masks, images: Tensor, full: bool) -> None:
    """Calibrates a network with fresh weights under masks; its latent weights stay, also where they are pruned.

    Args:
        network: changed in place.
        masks: of the ticket.
        images: (N, C, H, W).
        full: see `bnfree.calibration.calibrate`.
    """
    trial = copy.deepcopy(network)
    apply(trial, masks)
    calibrate(trial, images, full=full)
    latents = {f"{name}.{part}" for name in masks for part in ("weight", "mask")}
    network.load_state_dict({n: t for n, t in trial.state_dict().items() if n not in latents}, strict=False)

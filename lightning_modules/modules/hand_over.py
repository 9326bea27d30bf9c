"""What initial weights meant where they come from, and what of it is measured anew where they go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError

KEY = "meaning_of_weights"
"""Where a checkpoint keeps it."""
CalibrateInitFrom = Literal["auto", "none", "input", "gain", "full"]
# Of normalised images: beyond that, most inputs of the first signs fall on another side than they were trained for.
LARGEST_RATIO, LARGEST_SHIFT = 1.5, 0.5


@dataclass(frozen=True)
class Inputs:
    """Normalised images as a network sees them: their size, and strength by channel."""

    size: tuple[int, int]
    """Height and width in pixels."""
    mean: tuple[float, ...]
    """Mean of each channel."""
    std: tuple[float, ...]
    """Standard deviation of each channel."""

    @classmethod
    def of(cls, images: Tensor) -> Inputs:
        """Those of images (N, C, H, W)."""
        std, mean = torch.std_mean(images.double(), dim=(0, 2, 3), correction=0)
        return cls((images.shape[2], images.shape[3]), tuple(mean.tolist()), tuple(std.tolist()))

    @classmethod
    def normalised(cls, channels: int) -> Inputs:
        """Those of images that are normalised as the whole field does it, of unknown size."""
        return cls((0, 0), (0.0,) * channels, (1.0,) * channels)

    def strength(self, now: Inputs) -> float:
        """How many times stronger other images are, over all channels."""
        then = sum(std**2 for std in self.std)
        return float(max(sum(std**2 for std in now.std) / max(then, 1e-12), 1e-12) ** 0.5)

    def divided(self, strength: float) -> Inputs:
        """What remains of these images when they are divided by a number."""
        return Inputs(self.size, *(tuple(x / strength for x in values) for values in (self.mean, self.std)))

    def difference(self, now: Inputs) -> str | None:
        """What is different enough in other images to matter, in words; None for nothing."""
        if len(self.std) != len(now.std):
            return "the images have other channels"
        for was_mean, was, mean, std in zip(self.mean, self.std, now.mean, now.std, strict=True):
            # A channel without contrast is as wide as its distance from 0.
            width = max(was, 1e-3)
            ratio = max(std, 1e-3) / width
            if not 1 / LARGEST_RATIO <= ratio <= LARGEST_RATIO or abs(mean - was_mean) > LARGEST_SHIFT * width:
                return f"the images are of other strength (standard deviation {std:.2g} in place of {was:.2g})"
        return None


@dataclass(frozen=True)
class Origin:
    """What is known of initial weights."""

    binary_weights: bool | None = None
    """Whether the convolutions of the body had binary weights; None: not known."""
    inputs: Inputs | None = None
    """What the images were; None: not known."""
    ticket: bool = False
    """Whether they are those that a ticket's training starts from."""
    new_head: str | None = None
    """How the head is another one, in words; None: it came with the weights."""


def has_binary_weights(network: nn.Module) -> bool:
    """Whether any convolution of a network binarises its weights."""
    return any(module.binary_weights for module in network.modules() if isinstance(module, BinaryConv2d))


def meaning_of(network: nn.Module, inputs: Inputs | None) -> dict[str, Any]:
    """What a checkpoint says of its weights, as plain values."""
    kept = None if inputs is None else {name: list(value) for name, value in asdict(inputs).items()}
    return {"binary_weights": has_binary_weights(network), "inputs": kept}


def remembered_inputs(checkpoint: Mapping[str, Any]) -> Inputs | None:
    """What images the weights of a checkpoint were trained on, if it says so itself."""
    kept = checkpoint.get(KEY)
    inputs = kept.get("inputs") if isinstance(kept, Mapping) else None
    if not isinstance(inputs, Mapping):
        return None
    values: list[Any] = [inputs.get(name) for name in ("size", "mean", "std")]
    if not all(isinstance(value, list) and all(isinstance(x, int | float) for x in value) for value in values):
        return None
    size, mean, std = values
    if len(size) != 2 or len(mean) != len(std):
        return None
    return Inputs((size[0], size[1]), tuple(mean), tuple(std))


def remembered_binary_weights(checkpoint: Mapping[str, Any]) -> bool | None:
    """Whether the weights of a checkpoint were binary; None where it does not say.

    Checkpoints from before they said it have the arguments of their network, if they are of a `bnfree` command.
    """
    kept = checkpoint.get(KEY)
    if isinstance(kept, Mapping) and isinstance(kept.get("binary_weights"), bool):
        return bool(kept["binary_weights"])
    remembered = checkpoint.get("hyper_parameters")
    backbone = remembered.get("backbone") if isinstance(remembered, Mapping) else None
    arguments = backbone.get("init_args", {}) if isinstance(backbone, Mapping) else {}
    binary = arguments.get("binary_weights") if isinstance(arguments, Mapping) else None
    return binary if isinstance(binary, bool) else None


@dataclass(frozen=True)
class Choice:
    """What to measure before weights that come from elsewhere are trained on."""

    kind: Literal["none", "input", "gain", "full"] = "none"
    """As the argument `calibrate_init_from` calls it."""
    reason: str = ""
    """In words that follow "since"."""
    strength: float = 1.0
    """Of the images, as a multiple of that of those that the weights were trained on."""


def choose(asked: CalibrateInitFrom, origin: Origin, network: nn.Module, now: Inputs) -> Choice:
    """What to measure.

    Args:
        asked: what the user wants.
        origin: where the weights come from.
        network: the network that they are in.
        now: its images.

    Raises:
        InputError: `input`, and it is not known what the images were.
    """
    said = f"calibrate_init_from={asked}"
    strength = 1.0 if origin.inputs is None else origin.inputs.strength(now)
    if asked == "full":
        return Choice("full", said)
    if asked == "gain":
        binarised = has_binary_weights(network) and origin.binary_weights is not True
        return Choice("gain", said) if binarised else Choice()
    if asked == "input":
        if origin.inputs is None:
            raise InputError(
                "calibrate_init_from='input' needs an init_from that says how strong its images were, as checkpoints "
                "of a BN-free network say; choose 'full' or 'none'."
            )
        return Choice("input", said, strength)
    if asked == "none" or origin.ticket or origin.inputs is None:
        return Choice()
    other = origin.inputs.difference(now)
    if other is None:
        return Choice()
    # One number for all channels is all that the gain of a stem can take up.
    same_but_for_strength = origin.inputs.difference(now.divided(strength)) is None
    return Choice("input", other, strength) if same_but_for_strength else Choice("full", other)

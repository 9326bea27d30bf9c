"""A timm model as a backbone."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from bnfree.errors import InputError


class TimmNetwork(nn.Module):
    """A model of timm by its name, real-valued: a teacher, or a baseline to train. Needs the package timm.

    The model is the attribute `network`, so the names of its weights begin with `network.`.

    Args:
        architecture: name of the model as in `timm.list_models`, such as `resnet18`, with a tag of its weights behind a
            dot if there are several.
        num_classes: number of classes.
        in_channels: channels of the images.
        pretrained: start from timm's weights, which it downloads on first use; a classifier of another number of
            classes starts fresh.
        options: further arguments of the architecture, such as `{"drop_path_rate": 0.1}`.

    Shape: images (N, in_channels, H, W) to logits (N, num_classes).

    Raises:
        InputError: timm is missing, it knows no such architecture, the architecture refuses an argument, or its weights
            cannot be had.
    """

    def __init__(
        self,
        architecture: str,
        num_classes: int,
        in_channels: int = 3,
        pretrained: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        try:
            import timm  # type: ignore[import-not-found, import-untyped, unused-ignore]
        except ImportError as error:
            raise InputError("TimmNetwork needs timm, which is missing: pip install timm.") from error
        name = architecture.partition(".")[0]
        if not timm.is_model(name):
            near = get_close_matches(name, timm.list_models(), n=1, cutoff=0.0)[0]
            raise InputError(f"architecture={architecture!r} is no model of timm; the nearest name is {near!r}.")
        for argument, value in {"num_classes": num_classes, "in_channels": in_channels}.items():
            if value < 1:
                raise InputError(f"{argument}={value} must be at least 1.")
        self.architecture, self.num_classes, self.in_channels = architecture, num_classes, in_channels
        given = {"num_classes": num_classes, "in_chans": in_channels, **(options or {})}
        try:
            self.network: nn.Module = timm.create_model(architecture, pretrained=pretrained, **given)
        except (TypeError, RuntimeError, OSError, AssertionError, ValueError) as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise InputError(f"architecture={architecture!r} cannot be made by timm ({reason}).") from error

    @property
    def classifier(self) -> nn.Module:
        """The layer that gives the logits."""
        classifier: nn.Module = self.network.get_classifier()  # type: ignore[operator]
        return classifier

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, in_channels, H, W)."""
        logits: Tensor = self.network(images)
        return logits

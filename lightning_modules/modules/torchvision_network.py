"""A torchvision classification model as a backbone."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Literal

from torch import Tensor, nn
from torchvision import models  # type: ignore[import-untyped]
from torchvision.models import ResNet  # type: ignore[import-untyped]

from bnfree.errors import InputError

# In training they return several outputs.
WITH_AUXILIARY_OUTPUTS = ("googlenet", "inception_v3")


class TorchvisionNetwork(nn.Module):
    """A torchvision classification model by its name, real-valued: a teacher, or a baseline to train.

    The model is the attribute `network`, so the names of its weights begin with `network.`; files with torchvision's
    own names are read too wherever a file of weights can be given.

    Args:
        architecture: name of the model as in `torchvision.models.list_models`, such as `resnet18`.
        num_classes: number of classes.
        stem: `imagenet`: as torchvision has it; `cifar`, for ResNets: a 3x3 convolution of stride 1 without max
            pooling, for small images.
        weights: name of torchvision's weights for this architecture, such as `IMAGENET1K_V1`, which torchvision
            downloads on first use; they must fit exactly, the number of classes and the stem included. None: random.
        in_channels: channels of the images; other than 3 for ResNets only.

    Shape: images (N, in_channels, H, W) to logits (N, num_classes).

    Raises:
        InputError: unknown architecture or weights, weights that do not fit or cannot be had, or a stem or a number of
            channels that the architecture does not have.
    """

    def __init__(
        self,
        architecture: str,
        num_classes: int,
        stem: Literal["imagenet", "cifar"] = "imagenet",
        weights: str | None = None,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        known = [name for name in models.list_models(module=models) if name not in WITH_AUXILIARY_OUTPUTS]
        if architecture not in known:
            near = get_close_matches(architecture, known, n=1, cutoff=0.0)[0]
            raise InputError(
                f"architecture={architecture!r} is no classification model of torchvision with a single output; the "
                f"nearest name is {near!r}."
            )
        for name, value in {"num_classes": num_classes, "in_channels": in_channels}.items():
            if value < 1:
                raise InputError(f"{name}={value} must be at least 1.")
        if stem not in ("imagenet", "cifar"):
            raise InputError(f"stem={stem!r} is not known; choose 'imagenet' or 'cifar'.")
        self.architecture, self.num_classes, self.in_channels = architecture, num_classes, in_channels
        self.network: nn.Module = models.get_model(architecture, weights=None, num_classes=num_classes)
        if stem == "cifar" or in_channels != 3:
            self._replace_stem(stem)
        if weights is not None:
            self.load_torchvision_weights(weights)

    def _replace_stem(self, stem: Literal["imagenet", "cifar"]) -> None:
        if not isinstance(self.network, ResNet):
            given = f"in_channels={self.in_channels}" if self.in_channels != 3 else f"stem={stem!r}"
            default = "in_channels=3" if self.in_channels != 3 else "stem='imagenet'"
            raise InputError(
                f"{given} is there for ResNets only, not for architecture={self.architecture!r}; leave {default}, or "
                "choose a ResNet such as 'resnet18'."
            )
        size, stride, padding = (3, 1, 1) if stem == "cifar" else (7, 2, 3)
        channels = self.network.conv1.out_channels
        convolution = nn.Conv2d(self.in_channels, channels, size, stride, padding, bias=False)
        # The initialisation that torchvision gives to all convolutions of a ResNet.
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        self.network.conv1 = convolution
        if stem == "cifar":
            self.network.maxpool = nn.Identity()

    @property
    def torchvision_weights(self) -> list[str]:
        """The names of torchvision's weights for this architecture, as far as they classify."""
        known = models.get_model_weights(self.architecture)
        return [name for name, weights in known.__members__.items() if weights.meta["categories"]]

    def load_torchvision_weights(self, name: str) -> None:
        """Loads torchvision's weights, strictly; downloaded on first use.

        Raises:
            InputError: unknown name, another number of classes or another stem, or the download fails.
        """
        if name not in self.torchvision_weights:
            raise InputError(
                f"weights={name!r} is not known for architecture={self.architecture!r}; choose from "
                f"{', '.join(self.torchvision_weights)}."
            )
        weights = models.get_model_weights(self.architecture)[name]
        classes = len(weights.meta["categories"])
        if classes != self.num_classes:
            raise InputError(
                f"weights={name!r} of architecture={self.architecture!r} know {classes} classes, not "
                f"num_classes={self.num_classes}; set num_classes to {classes}, or weights to null."
            )
        if self.in_channels != 3 or (isinstance(self.network, ResNet) and self.network.conv1.kernel_size != (7, 7)):
            raise InputError(
                f"weights={name!r} of architecture={self.architecture!r} are for stem='imagenet' with in_channels=3; "
                "choose those, or set weights to null."
            )
        try:
            self.network.load_state_dict(weights.get_state_dict(progress=False, check_hash=True))
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"weights={name!r} of architecture={self.architecture!r} cannot be had or do not fit "
                f"({str(error).splitlines()[0]}); torchvision downloads them from {weights.url}."
            ) from error

    @property
    def classifier(self) -> nn.Module:
        """The layer that gives the logits."""
        # Every classification model of torchvision ends in a linear layer or, SqueezeNet, in a 1x1 convolution.
        layers = [module for module in self.network.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        return [x for x in layers if x.weight.shape[0] == self.num_classes][-1]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, in_channels, H, W)."""
        return self.network(images)

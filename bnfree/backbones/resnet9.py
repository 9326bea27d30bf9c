"""ResNet-9: a real-valued network for small images that is trained within minutes, to teach binary ones.

Source: David Page, "How to Train Your ResNet" (Myrtle.ai, 2018), the network of its DAWNBench entry for CIFAR-10. Where
that multiplies the logits by 0.125 and leaves the classifier's bias out, this has a plain classifier.
"""

from __future__ import annotations

from torch import Tensor, nn

from bnfree.errors import InputError


class ResNet9(nn.Module):
    """Eight 3x3 convolutions with batch norm and ReLU, two pairs of them with a shortcut, and a classifier.

    Channels are width, 2 width, 4 width and 8 width, the image's sides are halved three times, and the last values are
    each channel's maximum over all places. It has batch norm and real weights, and is meant as a teacher
    (`DistilledClassifier`): 1.6 million parameters at width 32, 6.6 million at 64, the published one.

    Args:
        num_classes: number of classes.
        width: channels of the first convolution.
        in_channels: channels of the images.

    Raises:
        InputError: a number below 1.

    Shape: images (N, in_channels, H, W), H and W at least 8, to logits (N, num_classes).

    Example:
        >>> import torch
        >>> ResNet9(num_classes=10, width=4)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10, width: int = 64, in_channels: int = 3) -> None:
        super().__init__()
        for name, value in {"num_classes": num_classes, "width": width, "in_channels": in_channels}.items():
            if value < 1:
                raise InputError(f"{name}={value} must be at least 1.")
        self.num_classes, self.in_channels = num_classes, in_channels
        self.body = nn.Sequential(
            _convolution(in_channels, width),
            _convolution(width, 2 * width, pooled=True),
            _Shortcut(2 * width),
            _convolution(2 * width, 4 * width, pooled=True),
            _convolution(4 * width, 8 * width, pooled=True),
            _Shortcut(8 * width),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of the images `x` (N, in_channels, H, W)."""
        logits: Tensor = self.classifier(self.body(x))
        return logits


class _Shortcut(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(_convolution(channels, channels), _convolution(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        summed: Tensor = x + self.branch(x)
        return summed


def _convolution(in_channels: int, out_channels: int, pooled: bool = False) -> nn.Sequential:
    layers = [nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2)) if pooled else nn.Sequential(*layers)

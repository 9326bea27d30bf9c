"""Does the exported file compute what the trained network does, on real images?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnfree.packing import PackedNetwork
from bnfree.packing.comparison import Observation, observe
from bnfree.packing.engines import NetworkFunction


@dataclass
class Check:
    """Counts over images."""

    images: int = 0
    same_class: int = 0
    """Images for which both name the same class."""
    largest_difference: float = 0.0
    """Of two logits, relative to the largest of the image."""
    tolerance: float = 1e-6
    """How near to its threshold an activation must be to count as on it, relative to its layer's root mean square."""
    near_threshold: int = 0
    """Activations of the trained network that near."""
    by_rounding: int = 0
    """Images that differ because real layers are rounded: the file agrees with the network that was written to it, and
    the trained network with one whose real layers are kept in float32."""
    by_threshold: int = 0
    """Further images that differ and have an activation on its threshold."""
    unexplained: int = 0
    """Images that differ otherwise."""
    labelled: int = 0
    """Images whose class is known."""
    trained_correct: int = 0
    exported_correct: int = 0

    @property
    def passed(self) -> bool:
        """Whether every difference has its reason."""
        return self.unexplained == 0

    @property
    def accuracy(self) -> float | None:
        """Of the trained network, if classes are known."""
        return self.trained_correct / self.labelled if self.labelled else None


@torch.no_grad()
def check(
    trained: nn.Module,
    exported: NetworkFunction,
    rounded: NetworkFunction | None,
    exact: NetworkFunction,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    tolerance: float = 1e-6,
) -> Check:
    """Runs both on the same images. Packed networks get them in 8 bits, where they are made of such.

    Args:
        trained: the trained network.
        exported: what has been read from the file.
        rounded: the packed network that was written, where its real layers are rounded; else None.
        exact: the packed network with its real layers in float32.
        batches: images (N, C, H, W), normalised, and labels (N,) or None.
        tolerance: how near to its threshold what was exported may turn an activation over.
    """
    result = Check(tolerance=tolerance)
    exported, exact = _of_normalized(exported), _of_normalized(exact)
    rounded = None if rounded is None else _of_normalized(rounded)
    for images, labels in batches:
        observed, logits = observe(trained, images, tolerance), exported(images.float())
        differing = ~observed.agrees(logits)
        if bool(differing.any()):
            by_rounding = torch.zeros_like(differing)
            if rounded is not None:
                # The file must hold what was rounded, and nothing but the rounding may differ.
                as_written = Observation(rounded(images).double(), observed.near).agrees(logits)
                by_rounding = differing & as_written & observed.agrees(exact(images))
            near = differing & ~by_rounding & (observed.near > 0)
            result.by_rounding += int(by_rounding.sum())
            result.by_threshold += int(near.sum())
            result.unexplained += int((differing & ~by_rounding & ~near).sum())
        expected, predicted = observed.logits.argmax(1), logits.argmax(1)
        result.images += len(images)
        result.same_class += int((expected == predicted).sum())
        # A difference that is no number is the largest.
        largest = observed.differences(logits).nan_to_num(torch.inf).max().item()
        result.largest_difference = max(result.largest_difference, largest)
        result.near_threshold += int(observed.near.sum())
        if labels is not None:
            result.labelled += len(labels)
            result.trained_correct += int((expected == labels).sum())
            result.exported_correct += int((predicted == labels).sum())
    return result


def _of_normalized(network: NetworkFunction) -> NetworkFunction:
    """The network as a function of normalised images."""
    normalization = network.info.normalization if isinstance(network, PackedNetwork) else None
    if normalization is None:
        return network

    def run(images: Tensor) -> Tensor:
        pixels = normalization.pixels(images)
        return network(images if pixels is None else pixels)

    return run

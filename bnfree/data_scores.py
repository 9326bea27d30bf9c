"""How much training images teach: EL2N, GraNd and forgetting events.

Sources: Paul, Ganguli and Dziugaite, "Deep learning on a data diet" (NeurIPS 2021, arXiv 2107.07075) for the first two,
Toneva et al., "An empirical study of example forgetting" (ICLR 2019, arXiv 1812.05159) for the third. Deviation: the
first two are means over the networks that are given, where the paper takes ten trainings of a few epochs; GraNd is the
norm of the gradient with respect to all parameters that are trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnfree.errors import InputError


def el2n(logits: Tensor, labels: Tensor) -> Tensor:
    """The length of the error of the probabilities, ||softmax(logits) - onehot(label)||, at most sqrt(2).

    Args:
        logits: (N, K).
        labels: int64 (N,).

    Returns:
        Shape (N,), in float32, or float64 for logits in float64.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.linalg.vector_norm(logits.softmax(1) - F.one_hot(labels, logits.shape[1]), dim=1)


def grand(network: nn.Module, images: Tensor, labels: Tensor, chunk_size: int = 16) -> Tensor:
    """The length of the gradient of each image's cross-entropy with respect to the trained parameters.

    All images at once by `torch.func.vmap`: in a network without batch norm no image sees another, so that each has a
    gradient of its own. Signs have their surrogate gradient.

    Args:
        network: in the mode in which it is to be scored; its mode, weights and gradients stay as they are.
        images: (N, C, H, W).
        labels: int64 (N,).
        chunk_size: images whose gradients are in memory at a time.

    Returns:
        Shape (N,), in the dtype of the network.

    Raises:
        InputError: a network in which images see each other, batch norm in training mode.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise InputError(
                f"network has batch norm ({name!r}) in training mode, with which no image has a gradient of its own; "
                "score it in evaluation mode, or a network without batch norm."
            )
    parameters = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = torch.func.functional_call(network, parameters, (image[None],))
        return F.cross_entropy(logits, label[None])

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    lengths = []
    with composed_of_operators(network):
        for some, their in zip(images.split(chunk_size), labels.split(chunk_size), strict=True):
            squares = [g.flatten(1).square().sum(1) for g in gradients(parameters, some, their).values()]
            lengths.append(torch.stack(squares).sum(0).sqrt())
    return torch.cat(lengths)


@contextmanager
def composed_of_operators(network: nn.Module) -> Iterator[None]:
    """Within it a network's layers are compositions of operators, which can be differentiated twice and by `vmap`."""
    modules: list[Any] = list(network.modules())
    lean = [(module, module.lean) for module in modules if isinstance(getattr(module, "lean", None), bool)]
    for module, _ in lean:
        module.lean = False
    try:
        yield
    finally:
        # A network sets it for all of its parts, which then get their own back.
        for module, was in lean:
            module.lean = was


class ForgettingCounts:
    """Counts how often each image was answered rightly and then wrongly again.

    Args:
        number: of images.

    Attributes:
        counts: int64 (number,), forgetting events of each image.
        learned: bool (number,), whether it was ever answered rightly.
    """

    def __init__(self, number: int) -> None:
        self.counts = torch.zeros(number, dtype=torch.int64)
        self.learned = torch.zeros(number, dtype=torch.bool)
        self._right = torch.zeros(number, dtype=torch.bool)

    def update(self, positions: Tensor, right: Tensor) -> None:
        """Takes in the answers to some images, bool (n,) at the places int64 (n,)."""
        self.counts[positions] += self._right[positions] & ~right
        self.learned[positions] |= right
        self._right[positions] = right

    def scores(self) -> Tensor:
        """Float32 (number,): the counts; one that was never learned ranks above all others, as in the paper."""
        counts = self.counts.float()
        return torch.where(self.learned, counts, counts.max() + 1)

    def state_dict(self) -> dict[str, Tensor]:
        """What goes on from here needs."""
        return {"counts": self.counts, "learned": self.learned, "right": self._right}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from there."""
        self.counts, self.learned, self._right = state["counts"], state["learned"], state["right"]

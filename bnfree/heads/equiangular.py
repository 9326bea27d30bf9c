"""A head of fixed class vectors that stand as far apart as they can: equiangular basis vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnfree.errors import InputError

STEPS = 2000
STEP_SIZE = 0.01
# Of the Welch bound, which in general no set of vectors reaches; a start from random vectors comes this near to it.
NEARNESS = 1.6


def welch_bound(count: int, dimensions: int) -> float:
    """The least that the largest |cosine| between `count` unit vectors can be: sqrt((K - d) / (d (K - 1))), or 0."""
    return math.sqrt(max(0, count - dimensions) / (dimensions * max(1, count - 1)))


def equiangular_vectors(count: int, dimensions: int, max_cosine: float | None = None, seed: int = 0) -> Tensor:
    """Unit vectors of which no two have an |cosine| above a bound; orthogonal ones, where there is room for them.

    Gradient descent on the sum of relu(|cosine| - bound) over all pairs, with every vector brought back to length 1
    after each step, until the bound holds or 2,000 steps are over; of them the best is returned.

    Args:
        count: number of vectors K.
        dimensions: their length d.
        max_cosine: the bound; None: 1.6 times the Welch bound.
        seed: of the vectors that it starts from; the global random state is left alone.

    Returns:
        Shape (K, d), float32.

    Raises:
        InputError: a bound below the Welch bound.
    """
    generator = torch.Generator().manual_seed(seed)
    if count <= dimensions:
        basis = torch.linalg.qr(torch.randn(dimensions, count, generator=generator, dtype=torch.float64)).Q
        return basis.T.float().contiguous()
    least = welch_bound(count, dimensions)
    bound = min(1.0, NEARNESS * least) if max_cosine is None else max_cosine
    if bound < least:
        raise InputError(
            f"max_cosine={bound} is less than {least:.4f}, which {count} vectors of {dimensions} numbers cannot reach."
        )
    vectors = F.normalize(torch.randn(count, dimensions, generator=generator))
    best, best_cosine = vectors, math.inf
    for _ in range(STEPS):
        cosines = (vectors @ vectors.T).fill_diagonal_(0)
        largest = float(cosines.abs().max())
        if largest < best_cosine:
            best, best_cosine = vectors, largest
        if best_cosine <= bound:
            break
        slope = cosines.sign() * (cosines.abs() > bound)
        vectors = F.normalize(vectors - STEP_SIZE * (slope @ vectors))
    return best


class Equiangular(nn.Module):
    """Logits are the cosines between the features and fixed vectors, one for each class, over a temperature.

    Nothing in it is trained, and neither the features' norm nor a scale of the classifier can grow. Source: Shen et
    al., "Equiangular basis vectors" (CVPR 2023, arXiv 2303.11637), with their temperature 0.07.

    Args:
        features: number of features d.
        num_classes: number of classes K.
        temperature: greater than 0.
        max_cosine: see `equiangular_vectors`.
        seed: see `equiangular_vectors`.

    Shape: (N, features) to (N, num_classes). `vectors` (num_classes, features) is a buffer. The logits depend on the
    length of the features, so that the head is no linear layer, and its network cannot be packed.

    Raises:
        InputError: `temperature` not above 0, or what `equiangular_vectors` refuses.
    """

    vectors: Tensor

    def __init__(
        self,
        features: int,
        num_classes: int,
        temperature: float = 0.07,
        max_cosine: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise InputError(f"temperature={temperature} must be a finite number greater than 0.")
        self.temperature = temperature
        self.register_buffer("vectors", equiangular_vectors(num_classes, features, max_cosine, seed))

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, num_classes) of features (N, features)."""
        return F.linear(F.normalize(features), self.vectors.to(features.dtype)) / self.temperature

    def extra_repr(self) -> str:
        """What `print` shows of the layer."""
        return f"{self.vectors.shape[1]}, {self.vectors.shape[0]}, temperature={self.temperature:g}"

"""The step of scale-invariant weights without its part along the weights."""

from __future__ import annotations

import torch
from torch import Tensor


def project(
    weight: Tensor, gradient: Tensor, step: Tensor, delta: float, eps: float = 1e-8
) -> tuple[Tensor, Tensor | None]:
    """The step, and whether it was projected (a bool tensor ()); None where nothing is ever projected.

    A tensor is taken as scale-invariant if every row has |cos(gradient, weight)| < delta / sqrt(row length); if not,
    the same is asked of the tensor as a whole. Then the part of the step along the row, or the tensor, is taken away.
    Nothing is copied to the host.

    Source: Heo et al., AdamP (ICLR 2021, arXiv 2006.08217). Deviation: tensors of one dimension or of rows of one
    element, such as gains (C, 1, 1, 1), are left alone; there the whole tensor would pass the test by chance.

    Args:
        weight: any shape; a row is a slice along dimension 0.
        gradient: same shape.
        step: same shape; left as it is.
        delta: of the test.
        eps: floor of norms.
    """
    if weight.dim() < 2 or weight.shape[1:].numel() < 2 or len(weight) == 0:
        return step, None
    by_row, row_passes = _without_radial(weight.flatten(1), gradient.flatten(1), step.flatten(1), delta, eps)
    whole, whole_passes = _without_radial(
        weight.reshape(1, -1), gradient.reshape(1, -1), step.reshape(1, -1), delta, eps
    )
    found = torch.where(row_passes, by_row.view_as(step), torch.where(whole_passes, whole.view_as(step), step))
    return found, row_passes | whole_passes


def _without_radial(weight: Tensor, gradient: Tensor, step: Tensor, delta: float, eps: float) -> tuple[Tensor, Tensor]:
    cosines = torch.nn.functional.cosine_similarity(gradient, weight, dim=1, eps=eps).abs()
    unit = weight / torch.linalg.vector_norm(weight, dim=1, keepdim=True).clamp(min=eps)
    return step - unit * (unit * step).sum(1, keepdim=True), cosines.max() < delta / weight.shape[1] ** 0.5

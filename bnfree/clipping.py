"""Adaptive gradient clipping (AGC): no unit's gradient is longer than a fixed share of its weight.

Source: Brock et al., "High-Performance Large-Scale Image Recognition Without Normalization" (ICML 2021, arXiv
2102.06171), section 4, and the authors' code (github.com/google-deepmind/deepmind-research, nfnets). Units are those of
timm's `adaptive_clip_grad`: each slice along dimension 0 of a tensor with two or more dimensions, or the whole tensor
with fewer. The authors squeeze first, which makes one unit of a gain (C, 1, 1, 1); here, as in timm, it is C units.

Deviation from timm: the floor of 1e-6 under the gradient norm is not needed and left out. It shows only where
`clip_factor * max(||w||, eps)` is itself below 1e-6.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from bnfree.errors import InputError

SAFE = {torch.float32: (2.0**52, 2.0**-76), torch.float64: (2.0**500, 2.0**-800)}
"""Of numbers up to the first, 2^23 squares can be added; where there are larger ones, all are multiplied by the second,
which leaves those above 1e-15 in float32 their digits."""


def adaptive_clip_grad_(
    parameters: Tensor | Iterable[Tensor],
    clip_factor: float = 0.01,
    eps: float = 1e-3,
    return_clipped_fraction: bool = False,
) -> Tensor | None:
    """Scales gradients in place so that ||g|| <= clip_factor * max(||w||, eps) in every unit.

    A unit is an output filter (convolution), an output row (linear layer), one element of a gain (C, 1, 1, 1), or a
    whole tensor with at most one dimension. Norms are taken in float32 (float64 for float64) whatever the dtype of the
    gradient. Nothing is copied to the host, so an accelerator is never waited for.

    Finite gradients of any size are clipped. Those that are not finite stay visible: a unit that holds a NaN or an
    infinity becomes NaN as a whole.

    Args:
        parameters: one tensor or an iterable of tensors of any floating dtype and device; those without a gradient are
            left alone.
        clip_factor: greatest allowed ratio of gradient norm to weight norm, greater than 0.
        eps: floor of the weight norm, so that a weight of zero can still move; at least 0.
        return_clipped_fraction: count the clipped units.

    Returns:
        None, or on request a float32 tensor of shape (): the share of units, among those with a finite gradient norm,
        that were clipped; 0 when there is none. It lies on the device of the first gradient.

    Raises:
        InputError: `clip_factor` or `eps` out of range, or a sparse gradient.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2, 4))
        >>> weight.grad = torch.tensor([[3.0] * 4, [0.001] * 4])
        >>> adaptive_clip_grad_([weight], clip_factor=0.01, return_clipped_fraction=True)
        tensor(0.5000)
        >>> weight.grad.norm(dim=1)
        tensor([0.0200, 0.0020])
    """
    counts = clip_units_(parameters, clip_factor, eps, count=return_clipped_fraction)
    return clipped_fraction(counts) if return_clipped_fraction else None


def clipped_fraction(counts: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Share of clipped units over all counts that `clip_units_` gave, a float32 tensor of shape (), 0 without units."""
    counts = list(counts)
    if not counts:
        return torch.zeros(())
    device = counts[0][0].device
    clipped, finite = (sum(pair[i].to(device, non_blocking=True) for pair in counts) for i in (0, 1))
    return torch.as_tensor(clipped / torch.as_tensor(finite).clamp(min=1), dtype=torch.float32)


@torch.no_grad()
def clip_units_(
    parameters: Tensor | Iterable[Tensor], clip_factor: float = 0.01, eps: float = 1e-3, count: bool = True
) -> list[tuple[Tensor, Tensor]]:
    """`adaptive_clip_grad_` for callers that clip in several calls and want one fraction over all of them.

    Args:
        parameters: as in `adaptive_clip_grad_`.
        clip_factor: as in `adaptive_clip_grad_`.
        eps: as in `adaptive_clip_grad_`.
        count: count units.

    Returns:
        Pairs (clipped units, units with a finite gradient norm), int64 tensors of shape (); empty without `count`.

    Raises:
        InputError: as in `adaptive_clip_grad_`.
    """
    if not (clip_factor > 0 and math.isfinite(clip_factor)):
        raise InputError(f"clip_factor={clip_factor} must be a finite number greater than 0.")
    if not (eps >= 0 and math.isfinite(eps)):
        raise InputError(f"eps={eps} must be a finite number of at least 0.")
    parameters = [parameters] if isinstance(parameters, Tensor) else parameters
    # Keyed by identity: a tensor listed twice must not be scaled twice. A layer that has lost all rows has no units.
    with_gradient = {id(p): p for p in parameters if p.grad is not None and p.numel()}
    groups: dict[tuple[object, ...], list[Tensor]] = defaultdict(list)
    for parameter in with_gradient.values():
        groups[_group_key(parameter)].append(parameter)
    measured: dict[torch.device, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    powers = _powers([p.grad for p in with_gradient.values() if p.grad is not None and not _is_at_hand(p.grad)])
    for group in groups.values():
        gradients = [p.grad for p in group if p.grad is not None]
        first = gradients[0]
        limit = _limits(group, clip_factor, eps)
        norm, power = _unit_norms(gradients), powers.get((first.device, first.dtype))
        if power is None and not bool(norm.isfinite().all()):
            # Computed twice in this case only; an accelerator, which must not be waited for, always is prepared.
            power = _powers(gradients)[first.device, first.dtype]
            norm = _unit_norms(gradients)
        # The smallest positive number instead of 0 turns 0 / 0 into 0, and a positive limit over it into "no clipping".
        scale = limit / norm.clamp(min=torch.finfo(norm.dtype).tiny)
        if power is None:
            scale.clamp_(max=1)
        else:
            # Over an infinite norm, the quotient would silently be 0.
            scale = scale.clamp_(max=1 / power).masked_fill_(norm == torch.inf, torch.nan)
            limit = limit * power
        torch._foreach_mul_(gradients, _broadcast(scale, gradients))
        if count:
            measured[norm.device].append((norm.view(-1), limit.view(-1)))
    return [_count(pairs) for pairs in measured.values()]


def _limits(group: list[Tensor], clip_factor: float, eps: float) -> Tensor:
    """Greatest gradient norms of all units of a group.

    On an accelerator a unit whose weight's squares overflow (numbers of 1e18 in float32) is not clipped.
    """
    norms = _unit_norms(group)
    if _is_at_hand(norms) and not bool(norms.isfinite().all()):
        smaller = SAFE[norms.dtype][1]
        # In the dtype of the norms, where the small numbers of narrow dtypes have digits.
        scaled = _unit_norms([weight.to(norms.dtype) * smaller for weight in group])
        return scaled.mul_(clip_factor).div_(smaller).clamp_(min=eps * clip_factor)
    return norms.clamp_(min=eps).mul_(clip_factor)


def _count(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    norm, limit = (torch.cat(tensors) for tensors in zip(*pairs, strict=True))
    finite = norm < torch.inf
    return (finite & (norm > limit)).sum(), finite.sum()


def _group_key(parameter: Tensor) -> tuple[object, ...]:
    """Equal for tensors whose unit norms fit into one tensor."""
    gradient = parameter.grad
    if gradient is None or gradient.layout != torch.strided:
        raise InputError(
            f"parameters holds a tensor of shape {tuple(parameter.shape)} with a sparse gradient; build its module "
            "with sparse=False."
        )
    kind = parameter.shape if parameter.dim() < 2 else (parameter.dim(), _is_elementwise(parameter))
    return gradient.device, parameter.device, gradient.dtype, parameter.dtype, kind


def _is_elementwise(tensor: Tensor) -> bool:
    return tensor.dim() > 1 and tensor.numel() == tensor.shape[0]


def _unit_norms(tensors: list[Tensor]) -> Tensor:
    """Norms of all units of a group: (number of tensors,) for vectors, else (sum of rows, 1, ..., 1)."""
    first = tensors[0]
    dtype = torch.promote_types(first.dtype, torch.float32)
    if first.dim() < 2:
        return torch.stack(torch._foreach_norm(tensors, 2, dtype))
    if _is_elementwise(first):
        return torch.cat(tensors).to(dtype).abs()
    dims = tuple(range(1, first.dim()))
    return torch.cat([torch.linalg.vector_norm(t, dim=dims, keepdim=True, dtype=dtype) for t in tensors])


def _is_at_hand(tensor: Tensor) -> bool:
    """Whether numbers can be read without waiting for a device."""
    return tensor.device.type == "cpu"


def _powers(gradients: list[Tensor]) -> dict[tuple[torch.device, torch.dtype], Tensor]:
    """Multiplies gradients in place where squares of finite numbers would overflow, see `SAFE`.

    Returns:
        For each device and dtype the power of two, of shape (); 1 where nothing had to be done.
    """
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for gradient in gradients:
        groups[gradient.device, gradient.dtype].append(gradient)
    powers = {}
    for (device, dtype), group in groups.items():
        wide = torch.promote_types(dtype, torch.float32)
        safe, smaller = SAFE[wide]
        numbers = [gradient for gradient in group if gradient.numel()]
        largest = torch.stack(torch._foreach_norm(numbers, torch.inf, wide)).nan_to_num(0, 0) if numbers else None
        power = torch.ones((), dtype=wide, device=device)
        if largest is not None and dtype != torch.float16:
            power = torch.where(largest.amax() > safe, smaller, power)
            torch._foreach_mul_(numbers, power.to(dtype))
        powers[device, dtype] = power
    return powers


def _broadcast(scale: Tensor, gradients: list[Tensor]) -> list[Tensor]:
    """Cuts the scales of a group into one tensor for each gradient, broadcastable against it."""
    first = gradients[0]
    if first.dim() < 2:
        # Written out to full size, since fused foreach kernels need operands of equal shape.
        full = scale.view(-1, *[1] * first.dim()).expand(-1, *first.shape)
        return list(full.contiguous().unbind())
    return list(scale.split([g.shape[0] for g in gradients]))

"""Compiled elementwise kernels, where numba is installed and a tensor is large enough; otherwise torch does the work.

They compute what the torch code beside each call computes, for contiguous tensors in float32 or float64 on a CPU
outside `torch.compile`: elementwise results bit for bit, sums over channels up to the order of summation. That order
does not depend on the number of threads. `enabled = False` switches them off.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bnfree.lean.derivative import IDENTITY, Derivative

enabled = True
# Networks whose tensors are all smaller do not wait for numba's import and gain little.
FEWEST_ELEMENTS = 1 << 18
DTYPES = (torch.float32, torch.float64)
TYPES = (Tensor, torch.nn.Parameter)

_pool: ThreadPoolExecutor | None = None


def applies(x: Tensor, *others: Tensor | None) -> bool:
    """Whether kernels work on `x` (N, C, H, W) and on others, contiguous and of its dtype, on the same device."""
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.numel() < FEWEST_ELEMENTS:
        return False
    if not enabled or x.dtype not in DTYPES or not _is_installed():
        return False
    # Subclasses and the wrappers of `torch.func` have no memory of their own.
    return all(
        other is None
        or (
            other.dtype == x.dtype
            and other.is_contiguous()
            and type(other) in TYPES
            and not torch._C._functorch.is_functorch_wrapped_tensor(other)
        )
        for other in (x, *others)
    )


@cache
def _is_installed() -> bool:
    try:
        import bnfree.lean.numba_planes  # noqa: F401
    except ImportError:
        # Not installed, or not for this version of numpy.
        return False
    return True


def rprelu(x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """RPReLU of `x`; `parameters` as in `enter`."""
    from bnfree.lean.numba_planes import rprelu_planes

    target = torch.empty_like(x)
    _run(rprelu_planes, x, _array(x), _stack(parameters, x), _array(target))
    return target


def enter(
    u: Tensor,
    parameters: Sequence[Tensor | None],
    shift: Tensor,
    beta: Tensor | None,
    magnitude: float,
    dtype: torch.dtype,
    shortcut: Tensor | None = None,
    pool: bool = False,
) -> Tensor:
    """The signs, +magnitude and -magnitude, or 2 and 0 in uint8.

    Args:
        u: (N, C, H, W).
        parameters: shift_in, slope, shift_out of an RPReLU before the signs, (C,) each; or None each.
        shift: (C,).
        beta: ().
        magnitude: of the signs.
        dtype: of the signs.
        shortcut: memory for x, or for the average-pooled beta * x.
        pool: which of both.
    """
    from bnfree.lean.numba_planes import enter_planes

    signs = torch.empty_like(u, dtype=dtype)
    both = (0, 2) if dtype == torch.uint8 else (-magnitude, magnitude)
    values = torch.tensor(both, dtype=dtype)
    if dtype in (torch.bfloat16, torch.float16):
        # Numpy has no bfloat16, and two bit patterns are all there is to write.
        values, target = values.view(torch.int16), signs.view(torch.int16)
    else:
        target = signs
    arguments = _stack(parameters, u), -shift.detach(), _scalar(beta, u), _array(target), values.numpy()
    _run(
        enter_planes,
        u,
        _array(u),
        arguments[0],
        arguments[1].numpy(),
        *arguments[2:],
        _array(shortcut, u),
        u.shape[3] * pool,
    )
    return signs


def combine(u: Tensor, parameters: Sequence[Tensor | None], y: Tensor, scale: Tensor | None) -> Tensor:
    """The sum x + scale * y in the memory of `y`, where x is `u`, or RPReLU of it; `scale` (C,)."""
    from bnfree.lean.numba_planes import combine_planes

    scale = y.new_ones(y.shape[1]) if scale is None else scale
    _run(combine_planes, u, _array(u), _stack(parameters, u), _array(y), scale.detach().numpy())
    return y


def leave(
    u: Tensor,
    parameters: Sequence[Tensor | None],
    shift: Tensor,
    beta: Tensor | None,
    derivative: Derivative | None,
    grad_signs: Tensor,
    grad_shortcut: Tensor | None,
    target: Tensor,
    pool: bool = False,
) -> Tensor:
    """Gradients back through shortcut, signs and RPReLU: that of `u` in `target`.

    Args:
        u: (N, C, H, W).
        parameters: as in `enter`.
        shift: (C,).
        beta: ().
        derivative: of the signs, one that has a kernel; None: there are no signs.
        grad_signs: the incoming gradient.
        grad_shortcut: that of the shortcut, of the shape of `enter`'s.
        target: memory, may be that of `grad_signs`.
        pool: as in `enter`.

    Returns:
        (4, C), gradients of shift_in, slope, shift_out (undefined without RPReLU) and shift.
    """
    from bnfree.lean.numba_planes import leave_planes

    code = IDENTITY if derivative is None else derivative.kernel_code
    images, channels, _, width = u.shape
    sums = u.new_empty(4, images * channels)
    _run(
        leave_planes, u, _array(u), _stack(parameters, u), shift.detach().numpy(), _scalar(beta, u), code,
        _array(grad_signs), _array(grad_shortcut, u), width * pool, _array(target), sums.numpy(),
    )  # fmt: skip
    return sums.view(4, images, channels).sum(1)


def round_to_half(
    u: Tensor,
    parameters: Sequence[Tensor | None],
    shift: Tensor,
    beta: Tensor | None,
    jumps: Sequence[float] = (),
) -> Tensor:
    """`u` (N, C, H, W), float32, rounded to float16 as `bnfree.lean.storage` says; parameters as in `enter`."""
    from bnfree.lean.numba_storage import round_planes

    target = torch.empty_like(u)
    arguments = shift.detach().numpy(), _scalar(beta, u), u.new_tensor(jumps).numpy(), _array(target)
    _run(round_planes, u, _array(u), _stack(parameters, u), *arguments)
    return target


def _run(kernel: Callable[..., None], x: Tensor, *arguments: Any) -> None:
    """Calls a kernel on ranges of the planes of `x`, one for each thread."""
    planes = x.shape[0] * x.shape[1]
    threads = min(torch.get_num_threads(), planes)
    edges = [planes * thread // threads for thread in range(threads + 1)]
    others = [_threads().submit(kernel, *arguments, *edges[i : i + 2]) for i in range(1, threads)]
    kernel(*arguments, *edges[:2])
    for other in others:
        other.result()


def _threads() -> ThreadPoolExecutor:
    # Not numba's threads: they do not survive a fork, as of a worker that loads data.
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count(), "bnfree")
    return _pool


def _forget_threads() -> None:
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_threads)


def _array(x: Tensor | None, like: Tensor | None = None) -> Any:
    """The planes of a tensor (N, C, H, W) as an array (N * C, H * W) in its memory; (0, 0) for None."""
    if x is None:
        assert like is not None
        return like.new_empty(0, 0).numpy()
    return x.detach().view(x.shape[0] * x.shape[1], -1).numpy()


def _stack(parameters: Sequence[Tensor | None], like: Tensor) -> Any:
    present = [parameter.detach() for parameter in parameters if parameter is not None]
    return (torch.stack(present) if present else like.new_empty(3, 0)).numpy()


def _scalar(beta: Tensor | None, like: Tensor) -> Any:
    return (like.new_ones(()) if beta is None else beta.detach().to(like.dtype)).numpy()[()]

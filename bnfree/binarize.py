"""Sign with a chosen gradient estimator, and RSign, the sign with a learnable threshold per channel.

Sources: Bi-Real Net (Liu et al., ECCV 2018) for the piecewise quadratic estimator, BinaryNet (Courbariaux et al., 2016)
for the clipped identity, A&B BNN (CVPR 2024, arXiv 2403.03739) for the sigmoid, ReActNet (Liu et al., ECCV 2020) for
RSign. Deviation from the public ReActNet and BNN_NoBN code: `torch.sign` gives 0 at 0, a third value; here sign(0) = +1
everywhere.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bnfree.errors import InputError
from bnfree.lean.activations import LeanRSign

ESTIMATORS: dict[str, type[SignEstimator]] = {}
"""Every estimator by its name; defining a subclass of `SignEstimator` adds it."""


class SignEstimator(torch.autograd.Function):
    """Sign in the forward pass, `gradient * slope(x)` in the backward pass.

    A new estimator is a subclass with a `name` and a `slope`:

        class Triangle(SignEstimator):
            name = "triangle"

            @staticmethod
            def slope(x):
                return (1 - x.abs()).clamp(min=0)

    after which `sign(x, "triangle")` and every `estimator` option of the networks know it.
    """

    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        ESTIMATORS[cls.name] = cls
        slope = cls.slope

        # torch.compile traces a plain function with the slope in its closure, but no classmethod.
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return gradient * slope(x)

        cls.backward = staticmethod(backward)  # type: ignore[method-assign]

    @staticmethod
    def slope(x: Tensor) -> Tensor:
        """Surrogate derivative of sign at `x`, same shape and dtype as `x`."""
        raise NotImplementedError

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        """Sign of `x` in the dtype of `x`: exactly -1 or +1, and +1 at 0."""
        return (x >= 0).to(x.dtype).mul_(2).sub_(1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Keeps `x`; every slope is a function of it alone."""
        ctx.save_for_backward(inputs[0])


class PiecewiseQuadratic(SignEstimator):
    """Bi-Real Net's ApproxSign: derivative 2 - 2|x| on [-1, 1], else 0."""

    name = "approx"

    @staticmethod
    def slope(x: Tensor) -> Tensor:
        """2 - 2|x| inside [-1, 1], 0 outside."""
        return torch.rsub(x.abs(), 2, alpha=2).clamp_(min=0)


class ClippedIdentity(SignEstimator):
    """The straight-through estimator with a window: derivative 1 on [-1, 1], else 0."""

    name = "ste"

    @staticmethod
    def slope(x: Tensor) -> Tensor:
        """1 inside [-1, 1], 0 outside."""
        return (x.abs() <= 1).to(x.dtype)


class SigmoidDerivative(SignEstimator):
    """A&B BNN's estimator (CVPR 2024): the derivative of 2 sigmoid(3x) - 1, a window whose tails never end."""

    name = "sigmoid"

    @staticmethod
    def slope(x: Tensor) -> Tensor:
        """6 sigmoid(3x) sigmoid(-3x): 1.5 at 0, 0.27 at -1 and 1."""
        return torch.sigmoid(3 * x).mul_(torch.sigmoid(-3 * x)).mul_(6)


def get_estimator(name: str) -> type[SignEstimator]:
    """The estimator of that name.

    Raises:
        InputError: no estimator has that name.
    """
    if name not in ESTIMATORS:
        raise InputError(f"estimator={name!r} is not known; choose one of {', '.join(sorted(ESTIMATORS))}.")
    return ESTIMATORS[name]


def sign(x: Tensor, estimator: str = "approx") -> Tensor:
    """Binarises `x` to -1 and +1 with a surrogate gradient; 0 becomes +1.

    Args:
        x: any shape, floating point.
        estimator: `approx` (piecewise quadratic, derivative 2 - 2|x| on [-1, 1]), `ste` (clipped identity), `sigmoid`
            (derivative of 2 sigmoid(3x) - 1), or the name of a subclass of `SignEstimator`.

    Returns:
        Same shape and dtype as `x`, every element exactly -1 or +1.

    Raises:
        InputError: unknown estimator.
    """
    return get_estimator(estimator).apply(x)


class RSign(nn.Module):
    """ReActNet's sign with a learnable threshold per channel: sign(x + shift).

    The sum and the comparison are done in float32 (or float64) also under autocast, since half precision would move
    values across the threshold; the result has the dtype of the input.

    Args:
        channels: number of channels C.
        estimator: gradient estimator, see `sign`.

    Shape: input and output (N, C, H, W); `shift` (C,), initially 0. With `lean` (an attribute, True) the backward pass
    needs the input alone.
    """

    lean: bool

    def __init__(self, channels: int, estimator: str = "approx") -> None:
        super().__init__()
        self.lean = True
        get_estimator(estimator)
        self.estimator = estimator
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """sign(scale * x + shift), where `scale` is a scalar tensor (beta of the residual block) or None for 1."""
        if self.lean and x.dim() == 4 and not (scale is not None and scale.requires_grad):
            return LeanRSign.apply(x, self.shift, scale, get_estimator(self.estimator).slope)
        shift = self.shift.view(1, -1, 1, 1)
        wide = x.to(torch.promote_types(x.dtype, shift.dtype))
        # Product and sum are rounded each on its own, as everywhere: a fused operation would now and then decide
        # otherwise on a value that lies on its threshold.
        threshold_form = wide + shift if scale is None else wide * scale + shift
        return sign(threshold_form, self.estimator).to(x.dtype)

    def extra_repr(self) -> str:
        """What `print` shows of the layer."""
        return f"{self.shift.numel()}, estimator={self.estimator}"

"""Sign with a chosen gradient estimator, and RSign, the sign with a learnable threshold per channel.

Sources: Bi-Real Net (Liu et al., ECCV 2018) for the piecewise quadratic estimator, BinaryNet (Courbariaux et al., 2016)
for the clipped identity, A&B BNN (CVPR 2024, arXiv 2403.03739) for the sigmoid, ReActNet (Liu et al., ECCV 2020) for
RSign. Deviation from the public ReActNet and BNN_NoBN code: `torch.sign` gives 0 at 0, a third value; here sign(0) = +1
everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bnfree.errors import InputError
from bnfree.lean.activations import LeanRSign
from bnfree.lean.derivative import QUADRATIC, WINDOW, Derivative
from bnfree.lean.function import as_output
from bnfree.plugins import check_call, name_of, register, resolve

KIND = "sign_estimator"


class SignEstimator:
    """What stands for the derivative of the sign in the backward pass: `gradient * slope(x)`.

    A new estimator is a subclass with a `slope`, a plain function:

        class Triangle(SignEstimator):
            jumps = ()

            @staticmethod
            def slope(x):
                return (1 - x.abs()).clamp(min=0)

    `sign(x, Triangle)`, `sign(x, "my_estimators.Triangle")` and every `estimator` option of the networks take it. One
    with a `name` is found by that, too, once its module has been imported.

    An estimator that changes in the course of a training is `scheduled = True` and has a `slope(x, progress)`, where
    progress goes from 0 to 1, a number or a tensor of shape (): the callback `EstimatorSchedule` sees to that.
    """

    name: ClassVar[str] = ""
    kernel_code: ClassVar[int | None] = None
    """Which of the derivatives that are compiled (`bnfree.lean.derivative`) the slope is; None: gradients are computed
    by `slope`, more slowly. Not inherited by a subclass with another slope."""
    jumps: ClassVar[tuple[float, ...] | None] = None
    """Where the slope is not continuous, () if it is everywhere: the fast mode `half_saved` carries no value across
    them. None: not known, and the mode leaves the units alone. Not inherited by a subclass with another slope."""
    scheduled: ClassVar[bool] = False
    """Whether the slope takes the progress of the training, from 0 to 1, as its second argument."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "slope" in cls.__dict__:
            cls.kernel_code, cls.jumps = cls.__dict__.get("kernel_code"), cls.__dict__.get("jumps")
        if cls.__dict__.get("name"):
            register(KIND, cls.name, cls)

    slope: ClassVar[Callable[..., Tensor]]
    """Surrogate derivative of sign at `x`, same shape and dtype as `x`: slope(x), or slope(x, progress)."""

    @classmethod
    def derivative(cls, progress: Tensor | float | None = None) -> Derivative:
        """The slope with what is declared about it, as the lean path takes it.

        Args:
            progress: of the training, where the slope takes one; None: 0.
        """
        slope: Callable[[Tensor], Tensor] = cls.slope
        if cls.scheduled:
            slope = partial(cls.slope, progress=0.0 if progress is None else progress)
        return Derivative(slope, cls.kernel_code, cls.jumps, cls.__dict__.get("name") or cls.__name__)


Estimator = str | type[SignEstimator]
"""A name, a dotted path or a class."""


class _Sign(torch.autograd.Function):
    """Sign of `x`, whose backward is `gradient * slope(x)`."""

    # For gradients of single images by `torch.func.vmap`.
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, slope: Callable[[Tensor], Tensor]) -> Tensor:
        """Exactly -1 or +1 in the dtype of `x`, and +1 at 0."""
        return as_output((x >= 0).to(x.dtype).mul_(2).sub_(1))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keeps `x`; every slope is a function of it alone."""
        x, ctx.slope = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Differentiable once more, as far as the slope is."""
        (x,) = ctx.saved_tensors
        return gradient * ctx.slope(x), None


class PiecewiseQuadratic(SignEstimator):
    """Bi-Real Net's ApproxSign: derivative 2 - 2|x| on [-1, 1], else 0."""

    name = "approx"
    kernel_code, jumps = QUADRATIC, ()

    @staticmethod
    def slope(x: Tensor) -> Tensor:
        """2 - 2|x| inside [-1, 1], 0 outside."""
        return torch.rsub(x.abs(), 2, alpha=2).clamp_(min=0)


class ClippedIdentity(SignEstimator):
    """The straight-through estimator with a window: derivative 1 on [-1, 1], else 0."""

    name = "ste"
    kernel_code, jumps = WINDOW, (-1.0, 1.0)

    @staticmethod
    def slope(x: Tensor) -> Tensor:
        """1 inside [-1, 1], 0 outside."""
        return (x.abs() <= 1).to(x.dtype)


class SigmoidDerivative(SignEstimator):
    """A&B BNN's estimator (CVPR 2024): the derivative of 2 sigmoid(3x) - 1, a window whose tails never end."""

    name = "sigmoid"
    jumps = ()

    @staticmethod
    def slope(x: Tensor) -> Tensor:
        """6 sigmoid(3x) sigmoid(-3x): 1.5 at 0, 0.27 at -1 and 1."""
        return torch.sigmoid(3 * x).mul_(torch.sigmoid(-3 * x)).mul_(6)


def get_estimator(estimator: Estimator) -> type[SignEstimator]:
    """The class that a name or a dotted path stands for.

    Raises:
        InputError: no such estimator, something that has no `slope`, or a slope with other arguments.
    """
    found: type[SignEstimator] = resolve(KIND, estimator, "estimator")
    if not (isinstance(found, type) and issubclass(found, SignEstimator) and hasattr(found, "slope")):
        raise InputError(f"estimator={estimator!r} is no estimator; give a subclass of bnfree.binarize.SignEstimator.")
    # Of a class that is given itself, nothing is looked at that torch.compile could not follow.
    if isinstance(estimator, str):
        form, progress = ("slope(x, progress)", {"progress": 0.0}) if found.scheduled else ("slope(x)", {})
        given = f"the slope of estimator={estimator!r}"
        check_call(found.slope, given, f"{form}, as a static method is", None, **progress)
    return found


def new_progress(estimator: Estimator | None) -> Tensor | None:
    """The buffer () that a module keeps the progress of a scheduled estimator in, 0; None for another, or none."""
    return torch.zeros(()) if estimator is not None and get_estimator(estimator).scheduled else None


def sign(x: Tensor, estimator: Estimator = "approx", progress: Tensor | float = 0.0) -> Tensor:
    """Signs of `x`, -1 and +1, with a surrogate gradient; 0 becomes +1.

    Args:
        x: any shape, floating point.
        estimator: `approx` (piecewise quadratic, derivative 2 - 2|x| on [-1, 1]), `ste` (clipped identity), `sigmoid`
            (derivative of 2 sigmoid(3x) - 1), another of `bnfree.estimators`, the dotted path of a subclass of
            `SignEstimator`, or such a class.
        progress: from 0 to 1, where the estimator is a scheduled one.

    Returns:
        Same shape and dtype as `x`, every element exactly -1 or +1.

    Raises:
        InputError: unknown estimator.

    Example:
        >>> import torch
        >>> x = torch.tensor([-2.0, -0.25, 0.0], requires_grad=True)
        >>> y = sign(x)
        >>> y.sum().backward()
        >>> y.tolist(), x.grad.tolist()
        ([-1.0, -1.0, 1.0], [0.0, 1.5, 2.0])
    """
    return _Sign.apply(x, get_estimator(estimator).derivative(progress).slope)


class RSign(nn.Module):
    """ReActNet's sign with a learnable threshold per channel: sign(x + shift).

    The sum and the comparison are done in float32 (or float64) also under autocast, since half precision would move
    values across the threshold; the result has the dtype of the input.

    Args:
        channels: number of channels C.
        estimator: gradient estimator, see `sign`.

    Shape: input and output (N, C, H, W); `shift` (C,), initially 0. With `lean` (an attribute, True) the backward pass
    needs the input alone. `estimator_progress`, a buffer () that no state dict holds, is there with a scheduled one.

    Example:
        >>> rsign = RSign(16)
        >>> rsign(torch.randn(2, 16, 8, 8)).detach().unique()
        tensor([-1.,  1.])
    """

    lean: bool
    estimator_progress: Tensor | None

    def __init__(self, channels: int, estimator: Estimator = "approx") -> None:
        super().__init__()
        self.lean = True
        self.register_buffer("estimator_progress", None, persistent=False)
        self.estimator = estimator
        self.shift = nn.Parameter(torch.zeros(channels))

    @property
    def estimator(self) -> Estimator:
        """As it was given; may be set."""
        return self._estimator

    @estimator.setter
    def estimator(self, estimator: Estimator) -> None:
        # Looked up here and not in the forward, where torch.compile could not follow.
        self._class = get_estimator(estimator)
        self._derivative = self._class.derivative()
        self.estimator_progress = new_progress(self._class)
        self._estimator = estimator

    @property
    def derivative(self) -> Derivative:
        """The estimator's, where the training stands."""
        progress = self.estimator_progress
        return self._derivative if progress is None else self._class.derivative(progress)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """sign(scale * x + shift), where `scale` is a scalar tensor (beta of the residual block) or None for 1."""
        if self.lean and x.dim() == 4 and not (scale is not None and scale.requires_grad):
            return LeanRSign.apply(x, self.shift, scale, self.derivative)
        shift = self.shift.view(1, -1, 1, 1)
        wide = x.to(torch.promote_types(x.dtype, shift.dtype))
        # Product and sum are rounded each on its own, as everywhere: a fused operation would now and then decide
        # otherwise on a value that lies on its threshold.
        threshold_form = wide + shift if scale is None else wide * scale + shift
        return _Sign.apply(threshold_form, self.derivative.slope).to(x.dtype)

    def extra_repr(self) -> str:
        """What `print` shows of the layer."""
        return f"{self.shift.numel()}, estimator={name_of(KIND, get_estimator(self.estimator))}"

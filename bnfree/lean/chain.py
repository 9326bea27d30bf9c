"""Runs a body of residual units from pre-activation to pre-activation, wherever nobody watches what lies between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from bnfree.activations import PowerOfTwoRPReLU, RPReLU
from bnfree.binarize import RSign
from bnfree.convolution import BinaryConv2d
from bnfree.lean.elementwise import Entry, UnitRule
from bnfree.lean.fast import check_available, modes_for
from bnfree.lean.geometry import Geometry
from bnfree.lean.unit import UnitStep, unit_forward

PARTS = (RSign, BinaryConv2d, RPReLU, PowerOfTwoRPReLU, nn.AvgPool2d)
# Called as modules even so.
NORMALIZERS = ("batch_norm", "normalizer", "projection_norm")


class Unit(Protocol):
    """A residual unit: RPReLU(shortcut(x) + alpha * after_convolution(convolution(rsign(beta * x)))).

    The shortcut is x, pooled if there is a `pool` (then beta * x), projected or repeated.
    """

    rsign: RSign
    convolution: BinaryConv2d
    rprelu: RPReLU
    alpha: float
    beta: Tensor | None
    pool: nn.Module | None
    projection: BinaryConv2d | None
    projection_norm: nn.Module | None
    repeats: int

    @property
    def after_convolution(self) -> nn.Module | None:
        """A normaliser, or nothing."""

    def shortcut(self, x: Tensor) -> Tensor:
        """What goes around the convolution."""


_listeners: list[Callable[[nn.Module | None], None]] = []


@contextmanager
def announce_steps(listener: Callable[[nn.Module | None], None]) -> Iterator[None]:
    """Tells `listener` before each unit or other module of a chain, and at its end with None.

    Unlike a hook it leaves the chain as it is.
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def run_chain(body: nn.Sequential, x: Tensor, unit_class: type[nn.Module], fast: tuple[str, ...] = ()) -> Tensor:
    """What `body(x)` gives.

    Consecutive units of `unit_class` run as a chain of `UnitStep`s. A unit that is watched or changed from outside (see
    `is_watched`) is called as the module that it is, and so are modules of other classes.

    Args:
        body: units, also nested in `nn.Sequential`s.
        x: (N, C, H, W).
        unit_class: modules that are a `Unit`; its subclasses are called as modules.
        fast: names of `bnfree.lean.fast.FAST_MODES`.

    Raises:
        InputError: a mode that does not work here, in training.
    """
    if fast and body.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        check_available(fast)
    pending: RPReLU | None = None
    for module in _flatten(body):
        _announce(module)
        if x.dim() == 4 and type(module) is unit_class and _may_chain(module):
            unit = cast(Unit, module)
            x, pending = _step(unit, x, pending, fast), unit.rprelu
        else:
            x, pending = module(x if pending is None else pending(x)), None
    x = x if pending is None else pending(x)
    _announce(None)
    return x


def _announce(module: nn.Module | None) -> None:
    for listener in _listeners:
        listener(module)


def is_watched(module: nn.Module) -> bool:
    """Whether a call of the module does something that its forward alone would not.

    That is the case with hooks of any kind, a `forward` or `effective_weight` set on the instance, and a module that is
    compiled on its own.
    """
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl is not None
        or "forward" in module.__dict__
        or "effective_weight" in module.__dict__
    )


def _flatten(body: nn.Sequential) -> list[nn.Module]:
    # A hook on all modules, such as a profiler's, expects to be called for each.
    if is_watched(body) or global_hooks._has_any_global_hook():
        return [body]
    modules: list[nn.Module] = []
    for module in body:
        modules += _flatten(module) if type(module) is nn.Sequential else [module]
    return modules


def _may_chain(unit: nn.Module) -> bool:
    beta = cast(Unit, unit).beta
    if is_watched(unit) or (beta is not None and beta.requires_grad):
        return False
    projection = cast(Unit, unit).projection
    if projection is not None and projection.kept_rows is not None:
        return False
    for name, part in unit._modules.items():
        if part is None or name in NORMALIZERS:
            continue
        if type(part) not in PARTS or is_watched(part) or not _lean(part):
            return False
    return True


def _lean(part: nn.Module) -> bool:
    return bool(getattr(part, "lean", True))


def _step(unit: Unit, x: Tensor, pending: RPReLU | None, fast: tuple[str, ...]) -> Tensor:
    """The pre-activation of `unit` for that of the unit before, or for an ordinary input."""
    normalizer = unit.after_convolution
    if normalizer is None and unit.projection_norm is None:
        return _unit(unit, x, pending, True, fast)
    # A normaliser needs the output of the convolution, so it stands between two steps.
    branch = _unit(unit, x, pending, False, fast)
    if normalizer is not None:
        branch = normalizer(branch)
    return unit.shortcut(x if pending is None else pending(x)).add(branch, alpha=unit.alpha)


def _unit(unit: Unit, x: Tensor, pending: RPReLU | None, residual: bool, fast: tuple[str, ...]) -> Tensor:
    projection = unit.projection if residual else None
    layer = unit.convolution
    rule = UnitRule(
        derivative=unit.rsign.derivative,
        weight=layer.rule,
        geometry=Geometry(layer.stride, layer.padding, layer.groups),
        alpha=unit.alpha if residual else 1.0,
        residual=residual,
        pool=unit.pool is not None,
        repeats=unit.repeats,
        projection=None if projection is None else projection.rule,
        fast=modes_for(fast, layer.weight, layer.mask is not None),
        channels=layer.out_channels,
    )
    if pending is None:
        entry = Entry(None, None, None, unit.rsign.shift, unit.beta)
    else:
        entry = Entry(pending.shift_in, pending.slope, pending.shift_out, unit.rsign.shift, unit.beta)
    if not torch.is_grad_enabled():
        prepared = None if projection is None else projection.prepared_weight()
        return unit_forward(x, entry, layer.prepared_weight(), prepared, rule, layer.kept_rows, keep=True)
    tensors = [layer.latent_weight(), layer.gain, layer.mask]
    tensors += [None] * 3 if projection is None else [projection.latent_weight(), projection.gain, projection.mask]
    return cast(Tensor, UnitStep.apply(x, *entry, *tensors, layer.kept_rows, rule)[0])

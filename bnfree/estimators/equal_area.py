"""Estimators brought to one area, so that they differ in shape alone.

A network of 16 units multiplies 16 slopes on the way back: an estimator with half as much area again lets a gradient
grow that Adam hides in one layer but not from layer to layer. Divided by half of its area, an estimator has the area 2
of `approx`, `ste` and `sigmoid`. Our own.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from bnfree.binarize import SignEstimator
from bnfree.estimators.ede import EDE
from bnfree.estimators.exponential import Exponential
from bnfree.estimators.reste import ReSTE
from bnfree.estimators.wide_ste import WideSTE

AREA = 2.0


class EqualArea(SignEstimator):
    """Another estimator, whose `area(progress)` is known, times 2 / area.

    One of your own is a subclass with `of`, and `jumps` and `scheduled` of that estimator.
    """

    of: ClassVar[Any]
    scheduled = True

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        of = cls.of

        def slope(x: Tensor, progress: Any = 0.0) -> Tensor:
            unscaled = of.slope(x, progress) if of.scheduled else of.slope(x)
            return unscaled * (AREA / of.area(progress))

        cls.slope, cls.jumps = staticmethod(slope), of.jumps


class WideSTEEqualArea(EqualArea):
    """`wide_ste` at two thirds of its height."""

    name, of = "wide_ste_equal_area", WideSTE


class ExponentialEqualArea(EqualArea):
    """`exponential` with the area 2 at every moment."""

    name, of = "exponential_equal_area", Exponential


class ReSTEEqualArea(EqualArea):
    """`reste` with the area 2 at every moment."""

    name, of = "reste_equal_area", ReSTE


class EDEEqualArea(EqualArea):
    """`ede` with the area 2 at every moment: t (1 - tanh(t x)^2)."""

    name, of = "ede_equal_area", EDE

"""Moments of training that a ticket is rewound to: `init`, `500it`, `2ep`, `3%`.

Source: Frankle et al., "Linear mode connectivity and the lottery ticket hypothesis" (ICML 2020, arXiv 1912.05671),
where 0.1 to 7 % of training make tickets of large networks; the notation of iterations and epochs is that of open_lth.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from bnfree.errors import InputError


@dataclass(frozen=True)
class RewindPoint:
    """A moment before an optimizer step."""

    amount: float
    """How many units of training lie before it; 0: none, the network is fresh."""
    unit: Literal["it", "ep", "%"]
    """Optimizer steps, epochs, or hundredths of all optimizer steps."""

    @classmethod
    def parse(cls, text: str) -> RewindPoint:
        """Reads `init`, or a number followed by `it`, `ep` or `%`.

        Raises:
            InputError: anything else, a fraction of a step or epoch, or 100 % and more.
        """
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(it|ep|%)", text.strip()) if isinstance(text, str) else None
        if text == "init":
            return cls(0, "it")
        if match is None:
            raise InputError(
                f"rewind_point={text!r} is not known; give init, optimizer steps (500it), epochs (2ep) or a share of "
                "all steps (3%)."
            )
        amount, unit = float(match[1]), match[2]
        if unit == "%" and amount >= 100:
            raise InputError(f"rewind_point={text!r} must lie before the end of training: below 100%.")
        if unit != "%" and amount != int(amount):
            raise InputError(
                f"rewind_point={text!r} must be a whole number of {'epochs' if unit == 'ep' else 'steps'}."
            )
        return cls(amount, unit)  # type: ignore[arg-type]

    def step(self, steps_per_epoch: int, total: int | float) -> int:
        """The number of the optimizer step that it lies before, which is how many steps have been taken.

        Args:
            steps_per_epoch: optimizer steps in an epoch.
            total: optimizer steps of the whole training; may be infinite.

        Raises:
            InputError: it does not lie before the last step, or it is a share of a training without an end.
        """
        if self.unit == "%":
            if total == float("inf"):
                raise InputError(
                    f"rewind_point={self} is a share of a training whose length is not known; give steps, such as "
                    "500it, or set trainer.max_epochs."
                )
            step = round(self.amount / 100 * total)
        else:
            step = int(self.amount) * (steps_per_epoch if self.unit == "ep" else 1)
        if step >= total:
            raise InputError(
                f"rewind_point={self} does not lie before the end of training, which takes {total:g} steps of which "
                f"{steps_per_epoch} make an epoch; give an earlier one."
            )
        return step

    def __str__(self) -> str:
        """As it is written in a config."""
        return f"{self.amount:g}{self.unit}" if self.amount else "init"

"""`bnfree lottery report`: tables, figures and a verdict of a lottery run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnfree.lightning_modules.reports.lottery.writing import write_report

__all__ = ["write_report"]


def __getattr__(name: str) -> Any:
    # Imported on first use: `--help` must not wait for torch and matplotlib.
    if name == "write_report":
        from bnfree.lightning_modules.reports.lottery.writing import write_report

        return write_report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

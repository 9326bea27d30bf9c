"""The manual of `bnfree lottery early-bird` and its options, which answer without importing torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bnfree.errors import InputError

HELP = """usage: bnfree lottery early-bird FILE --density D [--window 5] [--tolerance 0.1] [--run_dir DIR] [options]

Looks for the ticket early: trains the dense network only until the mask that pruning would give has settled, then
prunes once, puts the surviving weights back to the rewind point, and trains them. The dense training is stopped when
the masks of the last --window epochs all differ from the newest one in less than --tolerance of the weights (Drawing
early-bird tickets, ICLR 2020).

  FILE                 the YAML file of bnfree lottery run; score, scope, rewind, rewind_point and seeds are its own
  --density D          share of the weights that the ticket keeps (default: the file's, if it has one level only)
  --window N           epochs whose masks are compared (default: 5)
  --tolerance T        share of the weights, 0 to 1 (default: 0.1). Two unrelated masks of density D differ in
                       2 * D * (1 - D) of the weights: 0.5 at density 0.5, 0.32 at 0.2, 0.1 at 0.05. A tolerance that
                       is not below is refused; at low densities give a smaller one
  --run_dir DIR        where everything goes (default: runs/<name of the file>, as for bnfree lottery run)
  --seeds 0,1,2        one search and one ticket for each
  --lottery.KEY=VALUE  another setting of the file's section lottery

Any other option is one of `bnfree fit` and holds for both trainings:

  bnfree lottery early-bird configs/digits_lottery.yaml --density 0.5 --trainer.max_epochs=20

What it leaves, beside what bnfree lottery run left in the same directory:

  DIR/seed_0/early_bird/density_0.5/search/     the dense run, which stopped early; ticket.pt is the mask with the
                                                weights of that moment, metrics.csv has ticket/mask_distance
  DIR/seed_0/early_bird/density_0.5/level_01/   the ticket's run, as a level of bnfree lottery run
  DIR/report.md, levels.csv, *.png              what bnfree lottery report writes, with the early-bird tickets

The length of the schedule is that of the file in both trainings: a search that stops early has not seen its end.
The same command again goes on where it was stopped. A mask that has not settled by the end of the search is an error.
"""


@dataclass(frozen=True)
class EarlyBirdArguments:
    """What the user has asked for."""

    density: float | None
    """Density of the ticket; None: the file's."""
    window: int
    """Epochs whose masks are compared."""
    tolerance: float
    """Share of the weights in which they may differ."""
    rest: list[str]
    """What `bnfree lottery run` would take."""


def parse_early_bird(arguments: Sequence[str]) -> EarlyBirdArguments:
    """Takes the options of its own from the command line.

    Args:
        arguments: what follows `bnfree lottery early-bird`.

    Raises:
        InputError: an option without a value, or with one that is no number.
    """
    own: dict[str, str] = {}
    rest: list[str] = []
    remaining = iter(arguments)
    for token in remaining:
        name, equals, value = token.partition("=")
        if name not in ("--density", "--window", "--tolerance"):
            rest.append(token)
            continue
        own[name] = value if equals else next(remaining, "")
    try:
        density = float(own["--density"]) if "--density" in own else None
        window, tolerance = int(own.get("--window", 5)), float(own.get("--tolerance", 0.1))
    except ValueError:
        wrong = next(name for name, value in own.items() if not _is_number(value, whole=name == "--window"))
        kind = "a whole number" if wrong == "--window" else "a number"
        raise InputError(f"{wrong} {own[wrong]!r} must be {kind}.") from None
    return EarlyBirdArguments(density, window, tolerance, rest)


def run(arguments: Sequence[str]) -> None:
    """Looks for early-bird tickets, or prints the manual.

    Args:
        arguments: `early-bird` and its options.

    Raises:
        InputError: a mistake in what the user gave.
    """
    if len(arguments) < 2 or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return
    given = parse_early_bird(arguments[1:])
    from bnfree.lightning_modules.experiments.lottery import early_bird_levels

    early_bird_levels.run(arguments[0], given)


def _is_number(text: str, whole: bool) -> bool:
    try:
        int(text) if whole else float(text)
    except ValueError:
        return False
    return True

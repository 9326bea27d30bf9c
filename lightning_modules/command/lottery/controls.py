"""The manual of `bnfree lottery controls` and its options, which answer without importing torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from bnfree.errors import InputError
from bnfree.names import did_you_mean
from bnfree.plugins import BUILT_IN

CONTROLS = tuple(BUILT_IN["control"])

HELP = """usage: bnfree lottery controls DIR [--controls LIST] [--levels 1-3] [--seeds 0,1] [options]

Trains sanity controls beside the tickets of a lottery run. A ticket has a mask, early weights and their signs; each
control takes one of these away and leaves the rest, and is trained exactly as its ticket was. Where a control does as
well as the ticket, what it lacks does not matter there.

  DIR               directory of bnfree lottery run, which may have been stopped before its last level
  --controls LIST   some of random_layerwise,random_global,reinit,shuffle_signs (default: all four)
  --levels LIST     levels to check, such as 2 or 1-3,5 (default: every level that has finished)
  --seeds LIST      seeds of the run, such as 0,1 (default: all of them)

Any other option is one of `bnfree fit` and says where it runs, such as --trainer.devices=2; one that would train
otherwise than the run did is refused. Paths in the run's settings are taken from the directory that the command is
given in, so give it where the run was started.

controls:
  random_layerwise  the mask: each layer keeps as many weights as in the ticket, in places drawn at random
  random_global     the mask and the densities of its layers: as many weights in all, anywhere in the pruned layers
  reinit            the weights: the ticket's mask, and in the pruned layers fresh normal weights, with the standard
                    deviation that the layer's weights have where the ticket starts
  shuffle_signs     the signs: the ticket's mask and weights, but in each filter the signs of the survivors have
                    changed places; a filter keeps its numbers of positive and negative weights

What a control starts from, by the run's rewind (bnfree lottery run --help):
  weights        The weights at the rewind point, as the ticket. All that is not drawn (gains, shifts, stem, classifier)
                 is that of the rewind point too. So are step, epoch, order of the images and learning rate, which go on
                 from there. The optimizer's momentum of that moment is kept under a random mask, whose weights have it;
                 where weights or signs are others, it begins afresh.
  sign           the same, and then of the survivors nothing but their signs; the optimizer begins afresh, as the
                 ticket's does
  learning_rate, Random masks: the trained weights of the dense network, the only ones that have all weights. The
  none           others: the trained weights that the ticket starts from, where reinit draws with the standard
                 deviation of the dense network. Schedule as in the ticket, optimizer afresh.
  With find_in: step1, a control is made where the ticket was found: it is trained with real weights in step 1, and its
  mask and weights are carried to step 2, as the ticket's were.

How to read the outcome:
  all controls below the ticket   its mask fits its weights: a ticket
  random_layerwise as good        only the layers' densities matter; if random_global is worse, they do matter
  random_global as good           any network of this size would do
  reinit as good                  a good architecture for any weights: the mask matters, the early weights do not
  shuffle_signs as good           magnitudes and places matter, the signs do not
Differences below a point mean little with few seeds; the spread over the seeds stands beside them. Survivors are
larger than other weights, also where a ticket starts, and reinit draws without regard to that. Large weights change
their signs slowly: signs that were shuffled are held more firmly than fresh ones, and may do worse than them.

What it leaves:
  DIR/seed_0/controls/reinit/level_01/   as a level of the run: ticket.pt with what the control starts from, written
                                         before it trains; finished.yaml, written last
  DIR/report.md, levels.csv, *.png       what bnfree lottery report writes, controls included

Draws depend on the run's seed, the level and the control alone: the same in all processes and every time. The same
command again goes on where it was stopped, and finished controls are not repeated.

Examples:
  bnfree lottery controls runs/digits_lottery
  bnfree lottery controls runs/digits_lottery --controls random_layerwise,reinit --levels 2-3 --seeds 0
"""
FORBIDDEN = {
    "--run_dir": "the run's directory comes first",
    "--ckpt_path": "controls go on by themselves from where they stopped",
    "--seed_everything": "choose among the run's seeds with --seeds",
    "--data.seed": "choose among the run's seeds with --seeds",
}


@dataclass(frozen=True)
class ControlArguments:
    """What the user has asked for."""

    directory: str
    """Directory of the lottery run."""
    kinds: tuple[str, ...] = CONTROLS
    """Controls, in the order of `CONTROLS`."""
    levels: tuple[int, ...] | None = None
    """Levels; None: all that have finished."""
    seeds: tuple[int, ...] | None = None
    """Seeds; None: all of the run."""
    options: list[str] = field(default_factory=list)
    """Of `bnfree fit`."""


def parse_controls(arguments: Sequence[str]) -> ControlArguments:
    """Reads what follows `bnfree lottery controls`.

    Args:
        arguments: the directory and its options.

    Raises:
        InputError: no directory, an option without its value or with a wrong one, or one that the run decides.
    """
    if not arguments or arguments[0].startswith("-"):
        raise InputError(
            "bnfree lottery controls wants the directory of a lottery run first: bnfree lottery controls "
            "runs/digits_lottery."
        )
    own: dict[str, str] = {}
    options: list[str] = []
    remaining = iter(arguments[1:])
    for token in remaining:
        name, equals, value = token.partition("=")
        if name in FORBIDDEN or name.startswith("--lottery."):
            instead = FORBIDDEN.get(name, "controls are trained with the settings of the run")
            raise InputError(f"{name} is no option of bnfree lottery controls: {instead}.")
        if name not in ("--controls", "--levels", "--seeds"):
            options.append(token)
            continue
        own[name] = value if equals else next(remaining, "")
        if not own[name] or own[name].startswith("-"):
            raise InputError(f"{name} needs a value.")
    return ControlArguments(
        arguments[0],
        parse_kinds(own["--controls"]) if "--controls" in own else CONTROLS,
        _numbers(own["--levels"], "--levels", "1-3,5") if "--levels" in own else None,
        _numbers(own["--seeds"], "--seeds", "0,1") if "--seeds" in own else None,
        options,
    )


def parse_kinds(text: str) -> tuple[str, ...]:
    """The controls in a list like `random_layerwise,reinit`, in the order of `CONTROLS`.

    Raises:
        InputError: a control that is not known, or none.
    """
    named = [name.strip() for name in text.split(",") if name.strip()]
    for name in named:
        if name not in CONTROLS:
            remedy = did_you_mean(name, CONTROLS) or f"choose from {', '.join(CONTROLS)}."
            raise InputError(f"control {name!r} in --controls is not known; {remedy}")
    if not named:
        raise InputError(f"--controls={text!r} names no control; choose from {', '.join(CONTROLS)}.")
    return tuple(kind for kind in CONTROLS if kind in named)


def take_kinds(arguments: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Takes `--controls LIST` from the command line of `bnfree lottery run`.

    Returns:
        The controls, none without the option, and what is left.

    Raises:
        InputError: the option has no value, or a control that is not known.
    """
    kinds: tuple[str, ...] = ()
    rest: list[str] = []
    remaining = iter(arguments)
    for token in remaining:
        name, equals, value = token.partition("=")
        if name != "--controls":
            rest.append(token)
            continue
        value = value if equals else next(remaining, "")
        if not value or value.startswith("-"):
            raise InputError("--controls needs a value.")
        kinds = parse_kinds(value)
    return kinds, rest


def run(arguments: Sequence[str]) -> None:
    """Trains controls, or prints the manual.

    Args:
        arguments: `controls` and its options.

    Raises:
        InputError: a mistake in what the user gave.
    """
    if len(arguments) < 2 or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return
    given = parse_controls(arguments[1:])
    from bnfree.lightning_modules.experiments.lottery import control_levels

    control_levels.run(given)


def _numbers(text: str, name: str, example: str) -> tuple[int, ...]:
    numbers: list[int] = []
    for part in filter(None, text.replace(" ", "").split(",")):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise InputError(f"{name}={text!r} must be numbers and ranges, such as {example}.")
        numbers += range(int(match[1]), int(match[2] or match[1]) + 1)
    if not numbers:
        raise InputError(f"{name}={text!r} names none; give numbers and ranges, such as {example}.")
    return tuple(sorted(set(numbers)))

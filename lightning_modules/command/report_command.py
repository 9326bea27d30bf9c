"""`bnfree report`: reads runs, writes a figure and a table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from bnfree.errors import InputError
from bnfree.lightning_modules.reports.runs import markdown
from bnfree.lightning_modules.reports.runs.groups import Comparison, Group, compare, short_name
from bnfree.lightning_modules.reports.runs.reading import read_run
from bnfree.lightning_modules.reports.runs.summaries import accuracies, epochs
from bnfree.lightning_modules.training.run_directory import choose_run_directory
from bnfree.names import did_you_mean

REPORT, FIGURE = "report.md", "report.png"
DESCRIPTION = """\
Writes what runs have measured: report.md with a table, report.png with the curves.

Runs whose configs differ in seeds alone are shown as one, mean and spread; the others side by side, labelled by what
differs in their configs. A figure has a panel for whatever the runs have recorded: accuracy, loss, learning rate,
clipped fraction (bnfree.callbacks.AdaptiveGradientClipping), sign flips and gains (bnfree.callbacks.WeightDynamics)."""
EXAMPLES = """\
examples:
  bnfree report runs/quickstart/20260101-120000
  bnfree report runs/bn_free-* runs/batch_norm-* --output comparison
  bnfree report A B --label "with clipping" --label without"""
MISSING_RUN = "RUN is required and not given; name one or several run directories of bnfree fit."


class Parser(argparse.ArgumentParser):
    """Answers a mistake with one sentence.

    Args:
        prog: the command.
        description: what it does.
        examples: commands, below the options in the help.
        missing: what is said without the argument that is required.
    """

    def __init__(self, prog: str, description: str, examples: str, missing: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._missing = missing

    def error(self, message: str) -> NoReturn:
        """Raises InputError."""
        if message.startswith("unrecognized arguments: "):
            option = message.removeprefix("unrecognized arguments: ").split()[0]
            remedy = did_you_mean(option.partition("=")[0], self._option_string_actions) or f"see {self.prog} --help."
            raise InputError(f"option {option!r} is not known; {remedy}")
        if message.startswith("the following arguments are required"):
            raise InputError(self._missing)
        raise InputError(f"{message}; see {self.prog} --help.")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of `bnfree report`.

    Raises:
        InputError: an unknown option, one without its value, or no run.
    """
    parser = Parser("bnfree report", DESCRIPTION, EXAMPLES, MISSING_RUN)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="directory of bnfree fit or bnfree recipe")
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="where the report goes; by default RUN/report, of several runs runs/reports/<date>-<time>",
    )
    parser.add_argument("--title", metavar="TEXT", help="heading of the report and the figure")
    parser.add_argument(
        "--label",
        metavar="TEXT",
        action="append",
        default=[],
        help="name of a group of runs, in place of what differs; given once for each, in the order of the runs",
    )
    return parser.parse_args(arguments)


def run(arguments: Sequence[str]) -> None:
    """Writes a report.

    Args:
        arguments: `report` and its options.

    Raises:
        InputError: a mistake in what the user gave; nothing has been written then.
    """
    options = parse(arguments[1:])
    runs = list({run.directory.resolve(): run for run in map(read_run, options.runs)}.values())
    comparison = compare(runs, options.label)
    directory = _output(options.output, [run.directory for run in runs])
    title = options.title or _title(comparison)
    from bnfree.lightning_modules.reports.runs.figure import draw, save_png

    png = save_png(draw(comparison.groups, title))
    text = markdown.report(comparison, title, FIGURE, directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / FIGURE).write_bytes(png)
        (directory / REPORT).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"output={str(directory)!r} cannot be written to ({error.strerror}); give another directory with --output."
        ) from error
    for line in gist(comparison):
        print(line)
    print(f"Table: {directory / REPORT}")
    print(f"Figure: {directory / FIGURE}")


def gist(comparison: Comparison) -> list[str]:
    """A line for each group, with its runs, epochs and accuracies, and below it one for each stage of a recipe."""
    width = max(len(group.label) for group in comparison.groups)
    lines = []
    for group in comparison.groups:
        number = f"{len(group.runs)} run{'s' * (len(group.runs) > 1)}"
        lines.append(f"{group.label:<{width}}  {number}  epochs {epochs(group)}  {_figures(group, -1)}".rstrip())
        for index, stage in enumerate(group.stages if len(group.stages) > 1 else []):
            lines.append(f"  {stage}: epochs {epochs(group, [index])}  {_figures(group, index)}".rstrip())
    return lines


def _figures(group: Group, stage: int) -> str:
    found = accuracies(group, stage)
    return "  ".join(f"{heading} {summary.percent(singly=False)} %" for heading, summary in found.items())


def _title(comparison: Comparison) -> str:
    groups = comparison.groups
    number = sum(len(group.runs) for group in groups)
    if number == 1:
        return short_name(groups[0].runs[0])
    if len(groups) == 1:
        return f"{short_name(groups[0].runs[0])} and {number - 1} more seed{'s' * (number > 2)}"
    return f"{number} runs with {len(groups)} settings"


def _output(given: str | None, runs: list[Path]) -> Path:
    """Where the report goes: a directory without a report, or with an earlier one of the same runs.

    Raises:
        InputError: the directory is taken.
    """
    if given is not None:
        directory = Path(given).expanduser()
    elif len(runs) == 1:
        directory = runs[0] / "report"
    else:
        return choose_run_directory(None, "reports", {})
    earlier = directory / REPORT
    taken = next((path for path in (earlier, directory / FIGURE) if path.exists()), None)
    if taken is None:
        return directory
    mine = markdown.mark([markdown.link(run, directory) for run in runs])
    if earlier.is_file() and mine in earlier.read_text(encoding="utf-8", errors="replace").splitlines():
        return directory
    raise InputError(
        f"output={str(directory)!r} holds {taken.name} of something else than these runs; give another directory with "
        "--output."
    )

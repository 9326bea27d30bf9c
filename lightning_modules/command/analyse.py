"""`bnfree analyse` and `bnfree score-data`: what a network does with its training images."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from bnfree.errors import InputError
from bnfree.lightning_modules.command.parsing import ActionParser, add_output
from bnfree.lightning_modules.reports.analysis import (
    ANALYSES,
    SCORES,
    AnalysisSettings,
    ScoreSettings,
    analyse,
    score_data,
)
from bnfree.text_tables import table

ANALYSE = """\
Looks at a network. SOURCE is a YAML config, a run directory or a checkpoint; options of it, such as
--data.data_dir=DIR, beat it.

  sensitivity    how much the loss bends along each layer's weights (HAWQ), most sensitive first: which layers should
                 stay real. Of a network with real weights, as after step 1 of a recipe
  trainability   condition of the tangent kernel (lower is better) and number of activation patterns (higher is better)
                 of a network that need not be trained (TE-NAS)
  complexity     how many different features each layer's filters are (iterative feature merging)"""
SCORE_DATA = """\
Scores every training image by how much it teaches, and writes a CSV file that --data.scores takes. SOURCE is a run
directory or a checkpoint; of several the scores are averaged, which is usual: ten trainings of a few epochs.

  el2n    length of the error of the probabilities, after a few epochs
  grand   length of the gradient of the image's loss, at the start of a training"""
EXAMPLES = {
    "analyse": "  bnfree analyse RUN/checkpoints/best.ckpt sensitivity --num_images=256\n"
    "  bnfree analyse quickstart trainability",
    "score-data": "  bnfree score-data RUN-0 RUN-1 --output=scores.csv\n"
    "  bnfree fit --config quickstart --data.scores=scores.csv --data.keep=0.5",
}


def run(arguments: Sequence[str]) -> None:
    """Runs one of the two.

    Args:
        arguments: subcommand and options.

    Raises:
        InputError: a mistake in what the user gave.
    """
    subcommand, words = arguments[0], arguments[1:]
    # Options of a config have a dot in their name.
    dotted = [word for word in words if word.startswith("--") and "." in word.partition("=")[0]]
    options = dict(_option(word) for word in dotted)
    parser = _parser(subcommand)
    own = parser.parse_args([word for word in words if word not in dotted])
    if subcommand == "score-data":
        _score_data(own, options)
        return
    found = analyse(AnalysisSettings(own.source, own.analysis, own.num_images, options))
    if own.json:
        print(json.dumps(dict(found), indent=2))
        return
    columns = list(found[0][1]) if found else []
    rows = [(name, *(f"{value:.4g}" for value in figures.values())) for name, figures in found]
    print(table(("layer", *columns), rows))


def _score_data(own: argparse.Namespace, options: dict[str, str]) -> None:
    output = Path(own.output)
    if output.exists() and not own.overwrite:
        raise InputError(f"output={own.output!r} is there already; give another name, or --overwrite.")
    number = score_data(ScoreSettings(own.sources, output, own.score, options))
    print(f"{own.score} of {number:,} training images: {output}")


def _option(word: str) -> tuple[str, str]:
    name, equals, value = word.removeprefix("--").partition("=")
    if not equals:
        raise InputError(f"option --{name!s} has no value; write --{name}=VALUE.")
    return name, value


def _parser(subcommand: str) -> ActionParser:
    description = SCORE_DATA if subcommand == "score-data" else ANALYSE
    parser = ActionParser(f"bnfree {subcommand}", description, EXAMPLES[subcommand])
    if subcommand == "score-data":
        parser.add_argument("sources", nargs="+", metavar="SOURCE", help="run directory or checkpoint")
        parser.add_argument("--score", choices=SCORES, default="el2n", help="el2n unless given")
        add_output(parser, "the scores")
        return parser
    parser.add_argument("source", metavar="SOURCE", help="YAML config, run directory or checkpoint")
    parser.add_argument("analysis", choices=ANALYSES, metavar="ANALYSIS", help=", ".join(ANALYSES))
    parser.add_argument("--num_images", type=int, default=64, metavar="N", help="training images; 64 unless given")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    return parser

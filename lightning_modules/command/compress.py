"""`bnfree compress`: its manual, its options, and what it prints."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from bnfree.compression.inner_channels import InnerChannels
from bnfree.errors import InputError
from bnfree.lightning_modules.command.parsing import ActionParser, add_output
from bnfree.lightning_modules.deployment.compress import ALL, CompressSettings, PartCost, compress
from bnfree.plugins import resolve
from bnfree.text_tables import fields, short_count, table


class Method(NamedTuple):
    """What the manual says of a built-in method, and its options: name, type, what they are."""

    manual: str
    options: Mapping[str, tuple[type, str, str]]


METHODS = {
    "merge": Method(
        "channels that are alike become one (iterative feature merging)",
        {
            "beta": (float, "SHARE", "merge what is closer than this share of the largest squared distance; 0: only "
                     "equal channels (default: 0.1)"),
            "max_ratio": (float, "SHARE", "greatest share of a block's channels that may go (default: 1)"),
        },
    ),
    "datafree": Method(
        "the weakest channels go, weights are rounded if wanted, and the next convolution makes up for both",
        {
            "ratio": (float, "SHARE", "share of each block's channels that go (default: 0.5)"),
            "alpha": (float, "NUMBER", "penalty on what is made up for, in units of the layer's mean squared filter; "
                      "inf: plain pruning (default: 1)"),
            "bits": (int, "N", "round the weights of the blocks to 2^N - 1 values a filter, N from 2 to 16; the file "
                     "stays one of float32 (default: they are not rounded)"),
        },
    ),
}  # fmt: skip
MANUAL = """\
Writes a checkpoint of a smaller network: without data, without training, in seconds.

SOURCE is a checkpoint, or a run directory, of which it is the last one, of an NFResNet18: a real-valued network
without batch norm, as teachers are. It has fewer channels afterwards between the two convolutions of each block, which
become plain ones: standardisation and gain are folded into their weights. Trunk and shortcuts stay as they are.

methods:
{methods}
  PATH       a function of your own, package.module.function, see bnfree.compression.inner_channels

bnfree test, predict and summary read the new file like any other, and so does --model.teacher.weights."""
EXAMPLES = """\
  bnfree compress RUN merge --beta=0.9 --max_ratio=0.25 --output=small.ckpt
  bnfree compress RUN datafree --ratio=0.25 --output=small.ckpt
  bnfree test --ckpt_path=small.ckpt
  bnfree fit --config distilled --model.teacher.weights=small.ckpt"""


def run(arguments: Sequence[str]) -> None:
    """Compresses a network, and prints what it was and is.

    Args:
        arguments: `compress` and its options.

    Raises:
        InputError: a mistake in what the user gave.
    """
    given = _parser().parse_args(arguments[1:])
    options = {} if given.image_shape is None else {"image_shape": given.image_shape}
    result = compress(CompressSettings(given.source, _method(given), given.output, given.overwrite, options))
    rows = [(name, *_cells(*parts)) for name, parts in result.parts.items() if name != ALL]
    titles = ("block", "channels", "parameters", "OPs")
    print(table(titles, rows, ("network", *_cells(*result.parts[ALL]))))
    counts = ",".join(map(str, result.inner_channels))
    shape = "x".join(map(str, result.image_shape))
    said = [("OPs", f"multiply-accumulates of one image of {shape}")]
    if given.bits is not None:
        grid = f"{2**given.bits - 1} values a filter in the blocks"
        said.append(("weights", f"{grid}, as float32 numbers: no format of bnfree export stores them in fewer bits"))
    print("\n" + fields([*said, ("written", str(result.path))]))
    words = ["--config", "CONFIG", f"--model.init_from={result.path}", f"--model.backbone.inner_channels=[{counts}]"]
    print(f"To train it on: bnfree fit {shlex.join(words)}")


def _cells(before: PartCost, after: PartCost) -> tuple[str, ...]:
    pairs = ((getattr(before, name), getattr(after, name)) for name in ("channels", "parameters", "ops"))
    return tuple(f"{short_count(old)} -> {short_count(new)} ({new / old:.1%})" for old, new in pairs)


def _method(given: argparse.Namespace) -> Callable[[InnerChannels], InnerChannels]:
    """The method with its options.

    Raises:
        InputError: no such method, an option of another one, or a value out of range.
    """
    found = resolve("compression", given.method, "method")
    known = METHODS[given.method].options if given.method in METHODS else {}
    every = [name for method in METHODS.values() for name in method.options]
    chosen = {name: getattr(given, name) for name in every if getattr(given, name) is not None}
    foreign = [name for name in chosen if name not in known]
    if foreign:
        takes = f"takes {', '.join(f'--{name}' for name in known)}" if known else "takes none"
        raise InputError(f"{foreign[0]}={chosen[foreign[0]]} is no option of {given.method!r}, which {takes}.")
    method: Callable[[InnerChannels], InnerChannels] = found(**chosen) if isinstance(found, type) else found
    return method


def _parser() -> ActionParser:
    methods = "\n".join(f"  {name:<10} {method.manual}" for name, method in METHODS.items())
    usage = "bnfree compress SOURCE METHOD --output FILE [options]"
    parser = ActionParser("bnfree compress", MANUAL.format(methods=methods), EXAMPLES, usage)
    parser.add_argument("source", metavar="SOURCE", help="checkpoint or run directory")
    parser.add_argument("method", metavar="METHOD", help=f"{', '.join(METHODS)}, or PATH")
    add_output(parser, "the new checkpoint")
    for name, method in METHODS.items():
        group = parser.add_argument_group(f"options of {name}")
        for option, (kind, metavar, text) in method.options.items():
            group.add_argument(f"--{option}", type=kind, metavar=metavar, help=text)
    parser.add_argument("--image_shape", metavar="C,H,W", help="of the images, where no data section says it")
    return parser

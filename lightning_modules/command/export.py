"""`bnfree export`: its manual, its options, and what it prints."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jsonargparse import Namespace

from bnfree.errors import InputError
from bnfree.lightning_modules.command.register import check_registration, register
from bnfree.lightning_modules.deployment.check import Check
from bnfree.lightning_modules.deployment.export import NO_CHECKPOINT, ExportResult, ExportSettings, export
from bnfree.lightning_modules.deployment.packed_files import names_packed_file
from bnfree.lightning_modules.training.class_names import OPTION
from bnfree.lightning_modules.training.config.explanations import explain
from bnfree.lightning_modules.training.config.parser import CommandParser, ParseFailure
from bnfree.lightning_modules.training.config.sources import options_of, take_positionals
from bnfree.lightning_modules.training.messages import say
from bnfree.lightning_modules.training.network import add_network_arguments, parse
from bnfree.packing import PackedNetwork
from bnfree.packing.bits import TernaryWeight
from bnfree.packing.c_source.arithmetic import CArithmetic
from bnfree.packing.file_layout import MaskForm
from bnfree.packing.real_weights import PRECISIONS, RealPrecision, RealWeight
from bnfree.text_tables import fields

FORMATS = (
    "Kind of file: packed, c, openvino, torch_export, onnx, qonnx, qonnx_channels_last, or the dotted path of an "
    "ExportFormat of your own"
)
OWN_FLAGS = ("--check", "--overwrite")
# What the parser adds to the config of a network.
OWN_OPTIONS = (
    "output", "format", "overwrite", "classifier_precision", "convolution_precision", "masks", "check", "images",
    "num_images", "engine", "c_name", "ram_limit", "c_arithmetic",
)  # fmt: skip
MOST_NAMES = 6
DESCRIPTION = """Turns a trained network with binary weights into one file: bits, one scale a filter, one threshold a
channel, and how its images are normalised, its class names and its accuracy. CKPT is a checkpoint, a ticket file, or a
run directory, of which it is the last checkpoint; or a packed file or the NAME of a pretrained network, which becomes
another --format, such as C. The file is there as a whole or not at all, and never in place of
another unless --overwrite is given. With --check it is read back and compared with the trained network on real images;
where they differ without a reason, nothing is written, and the exit code is 1."""


def run(arguments: Sequence[str]) -> int:
    """Exports a network.

    Args:
        arguments: `export`, checkpoint and options.

    Returns:
        The exit code: 0, and 1 if the check has failed.

    Raises:
        InputError: a mistake in what the user gave.
    """
    settings, config = _settings(arguments)
    registry = check_registration(config.register, config.url, config.registry, config.format, config.overwrite)
    found = export(settings)
    if found.missing_data:
        say(f"The data are not there ({found.missing_data}), so the file says of them only what is known without.")
    if found.check is not None:
        say(f"Check on {found.checked_on}:\n{_check(found.check)}")
        if not found.check.passed:
            say(f"Check failed: {found.check.unexplained} images differ without a reason; nothing was written.")
            return 1
        say("Check passed.")
    say(_written(found))
    if registry is not None:
        checkpoint = config.ckpt_path if isinstance(settings.source, Namespace) else str(settings.source)
        card = register(found, checkpoint, config.register, config.url, registry)
        say(f"Registered as {config.register} in {registry}; its card is {card}.")
    return 0


def _settings(arguments: Sequence[str]) -> tuple[ExportSettings, Namespace]:
    sources, rest = take_positionals(arguments[1:], OWN_FLAGS)
    source: str | Namespace
    if len(sources) == 1 and names_packed_file(sources[0]) and not {"--help", "-h"} & set(rest):
        parser = _new_parser()
        _add_own_options(parser)
        try:
            source, config = sources[0], parser.parse_args(rest)
        except ParseFailure as failure:
            raise InputError(explain(failure.message, ["export", *rest], {"export": parser})) from None
    else:
        source = config = parse(_parser(), [arguments[0], *_source_as_options(arguments[1:])])
    return ExportSettings(source, **{name: config[name] for name in OWN_OPTIONS}), config


def _source_as_options(arguments: Sequence[str]) -> list[str]:
    sources, rest = take_positionals(arguments, OWN_FLAGS)
    names = {argument.partition("=")[0] for argument in arguments}
    if not sources and not names & {"--ckpt_path", "--help", "-h"} and not any(n.endswith(".help") for n in names):
        raise InputError(NO_CHECKPOINT)
    return [*options_of(sources[0]), *rest, *sources[1:]] if sources else list(arguments)


def _parser() -> CommandParser:
    parser = _new_parser()
    _add_own_options(parser)
    add_network_arguments(parser, shown_too=["data", OPTION])
    return parser


def _new_parser() -> CommandParser:
    return CommandParser(
        prog="bnfree export", usage="bnfree export CKPT|NAME [options]", description=DESCRIPTION, allow_abbrev=False
    )


def _add_own_options(parser: CommandParser) -> None:
    parser.add_argument("--format", type=str, default="packed", help=f"{FORMATS}; see docs/packing.md.")
    parser.add_argument(
        "--output", type=str | None, default=None, help="File to write (c: folder); by default beside CKPT."
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace a file that is there.")
    parser.add_argument(
        "--classifier_precision",
        type=RealPrecision | None,
        default=None,
        help="How a packed file stores the classifier; by default float16.",
    )
    parser.add_argument(
        "--convolution_precision",
        type=RealPrecision | None,
        default=None,
        help="How a packed file stores stem and real shortcuts; by default float32: rounding turns activations over.",
    )
    parser.add_argument(
        "--masks",
        type=MaskForm,
        default="planes",
        help="How a packed file stores pruned binary weights: two bit planes, or five ternary digits a byte.",
    )
    parser.add_argument("--check", action="store_true", help="Compare the file with the trained network.")
    parser.add_argument(
        "--images",
        type=str | None,
        default=None,
        help="Folder of images to check on; by default the run's test images, or else its validation images.",
    )
    parser.add_argument("--num_images", type=int, default=1000, help="How many images to check on, at most.")
    parser.add_argument(
        "--engine", type=str, default="auto", help="What the check runs a packed file with; see docs/packing.md."
    )
    parser.add_argument(
        "--c_name",
        type=str | None,
        default=None,
        help="What the function of the format c is called, before _predict; by default as the folder.",
    )
    parser.add_argument(
        "--ram_limit",
        type=int | None,
        default=None,
        help="Bytes of static memory that a network in the format c may take; more is refused.",
    )
    parser.add_argument(
        "--c_arithmetic",
        type=CArithmetic | None,
        default=None,
        help="What the format c computes with: float (float32), or fixed (whole numbers); by default float.",
    )
    parser.add_argument(
        "--register", type=str | None, default=None, metavar="NAME",
        help="Name that predict, test and bench take for the file from now on; a model card is written, too.",
    )  # fmt: skip
    parser.add_argument(
        "--url", type=str | None, default=None, help="Where others download the file from; goes into the registry."
    )
    parser.add_argument(
        "--registry", type=str | None, default=None, help="File of the registry; by default the user's own."
    )


def _check(found: Check) -> str:
    differing = found.by_rounding + found.by_threshold + found.unexplained
    rows = [
        ("same class", f"{found.same_class} of {found.images} images"),
        ("logits", f"differ by {found.largest_difference:.1e} of an image's largest at most"),
        ("on threshold", f"{found.near_threshold} activations lie within {_power(found.tolerance)} of their threshold"),
        ("differing", f"{differing} images get another class, or logits that differ by more than 1e-3:"),
        ("", f"{found.by_rounding} by rounded real layers, {found.by_threshold} by an activation on its threshold, "
             f"{found.unexplained} without a reason"),
    ]  # fmt: skip
    if found.labelled:
        trained, exported = (100 * count / found.labelled for count in (found.trained_correct, found.exported_correct))
        rows.append(("accuracy", f"{trained:.2f} % trained, {exported:.2f} % exported"))
    return _indented(rows)


def _written(found: ExportResult) -> str:
    real = found.float32_size
    more = f", {real / found.size:.1f} times as much" if real > found.size else ""
    place = found.paths[0].parent if found.format.folder else found.paths[0]
    rows = [
        *_contents(found.packed, found.format.weights), *found.format.facts(found.packed, place),
        ("sha256", found.sha256),
    ]  # fmt: skip
    if found.format.folder:
        files = ", ".join(path.name for path in found.paths)
        return f"Written to {place}: {files}; {_size(real)} in float32\n{_indented(rows)}"
    return (
        f"Written to {' and '.join(map(str, found.paths))}: {_size(found.size)}; {_size(real)} in float32{more}\n"
        f"{_indented(rows)}"
    )


def _power(tolerance: float) -> str:
    return f"{tolerance:.0e}".replace("e-0", "e-")


def _indented(rows: list[tuple[str, str]]) -> str:
    return fields([(f"  {name}", text) for name, text in rows], width=18)


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def _contents(packed: PackedNetwork, weights: str) -> list[tuple[str, str]]:
    """Title and text of each line.

    Args:
        packed: the network.
        weights: how its binary weights are stored.
    """
    layers, info = packed.layers, packed.info
    binary: list[TernaryWeight] = []
    real: dict[str, RealWeight] = {"stem": layers.stem.weight, "classifier": layers.classifier.weight}
    for index, unit in enumerate(layers.units):
        binary.append(unit.weight)
        if isinstance(unit.projection, TernaryWeight):
            binary.append(unit.projection)
        elif unit.projection is not None:
            real[f"shortcut {index}"] = unit.projection
    count = sum(math.prod(weight.shape) for weight in binary)
    kept = sum(int(weight.values().count_nonzero()) for weight in binary)
    pruned = f", of which {kept / count:.2%} survive" if kept < count else ""
    forms = {dtype: name for name, dtype in PRECISIONS.items()}
    groups: dict[str, tuple[int, list[str]]] = {}
    for name, weight in real.items():
        form, group = forms[weight.values.dtype], name.split()[0]
        total, members = groups.get(form, (0, []))
        groups[form] = total + weight.values.numel(), [*members, *([group] if group not in members else [])]
    lines = [
        ("network", f"{layers.architecture}, {len(layers.units)} binary units, {packed.num_classes} classes"),
        ("binary weights", f"{count}{pruned}, as {weights}"),
        ("real weights", "; ".join(f"{n} in {form} ({', '.join(names)})" for form, (n, names) in groups.items())),
    ]
    if info.image_shape is not None:
        crop = f", files' shorter side resized to {info.resize}" if info.resize is not None else ""
        lines.append(("images", f"{'x'.join(map(str, info.image_shape))}{crop}"))
    if info.mean is not None and info.std is not None:
        lines.append(("normalisation", f"mean {_numbers(info.mean)}, std {_numbers(info.std)}"))
    if info.class_names is not None:
        more = ", ..." if len(info.class_names) > MOST_NAMES else ""
        lines.append(("class names", ", ".join(info.class_names[:MOST_NAMES]) + more))
    if info.accuracy is not None:
        lines.append(("accuracy", f"{info.accuracy:.2%} on test images"))
    if info.source_run is not None:
        lines.append(("source", info.source_run))
    return lines


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)

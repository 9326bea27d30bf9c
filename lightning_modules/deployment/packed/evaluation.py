"""`bnfree test` with a packed network: its accuracy on a data module's test images."""

from __future__ import annotations

import math
from argparse import SUPPRESS
from collections.abc import Sequence

from lightning.pytorch import LightningDataModule
from torch.nn import functional as F

from bnfree.datamodules.batches import RawBatch
from bnfree.errors import InputError
from bnfree.lightning_modules.deployment.packed.model import OptionsParser, load_model
from bnfree.lightning_modules.training.class_names import KEY, OPTION, check_class_names
from bnfree.lightning_modules.training.config.parser import CommandParser
from bnfree.lightning_modules.training.config.sources import take_positionals
from bnfree.lightning_modules.training.messages import say
from bnfree.lightning_modules.training.network import add_network_arguments, build_data, parse
from bnfree.packing import NetworkInfo, PackedNetwork

DESCRIPTION = """Tests a packed network on the test images of a data module, which --data or the data section of a
--config names: bnfree test network.safetensors --config RUN/config.yaml"""


def run(arguments: Sequence[str]) -> None:
    """Prints loss and accuracy of a packed network.

    Args:
        arguments: `test` and its options.

    Raises:
        InputError: a mistake in what the user gave, or data that do not fit the network.
    """
    positionals, rest = take_positionals(arguments[1:])
    own = OptionsParser("bnfree test", add_help=False, allow_abbrev=False)
    own.add_argument("--ckpt_path", "--model")
    own.add_argument("--engine", default="auto")
    own.add_argument("--threads", type=int, default=None)
    given, options = own.parse_known_args(rest)
    names = [*([given.ckpt_path] if given.ckpt_path is not None else []), *positionals]
    if len(names) > 1:
        raise InputError(f"{names[1]!r} is one network too many; give one packed file.")
    config = parse(_parser(), [arguments[0], *options])
    network = load_model(names[0], given.engine, given.threads)
    if config.get("data") is None:
        raise InputError(
            "data are not given; name them with --config RUN/config.yaml, or with "
            "--data=bnfree.datamodules.CIFAR10DataModule --data.data_dir=DIR."
        )
    data = build_data(config)
    _check_fits(network, data)
    for name, value in test(network, data, bool(config.get(OPTION))).items():
        say(f"{name}: {value:.4f}")


def test(
    network: PackedNetwork,
    data: LightningDataModule,
    allow_other_classes: bool = False,  # noqa: PT028 - a function, not a test
) -> dict[str, float]:
    """`test/loss`, `test/acc` and, with 100 classes or more, `test/acc5`: means over all test images.

    Args:
        network: the network.
        data: gives batches of images and labels; 8-bit ones go to the network as they are, if it has their
            normalisation.
        allow_other_classes: also where the classes of the data are called otherwise than those of the network.

    Raises:
        InputError: they are, and that is not allowed.
    """
    data.prepare_data()
    data.setup("test")
    name, present = f"data={type(data).__name__}", getattr(data, KEY, None)
    check_class_names(network.info.class_names, present, "the packed network", name, allow_other_classes)
    count, sums = 0, {"test/loss": 0.0, "test/acc": 0.0}
    if network.num_classes >= 100:
        sums["test/acc5"] = 0.0
    here = NetworkInfo(getattr(data, "mean", None), getattr(data, "std", None)).normalization
    alike = here is not None and here == network.info.normalization
    for batch in data.test_dataloader():
        if alike and isinstance(batch, RawBatch):
            images, labels = batch.images, batch.targets
        else:
            images, labels = data.on_after_batch_transfer(batch, 0)
        logits = network(images)
        count += len(labels)
        sums["test/loss"] += F.cross_entropy(logits, labels, reduction="sum").item()
        sums["test/acc"] += int((logits.argmax(1) == labels).sum())
        if "test/acc5" in sums:
            sums["test/acc5"] += int((logits.topk(5).indices == labels[:, None]).sum())
    data.teardown("test")
    return {name: value / count for name, value in sums.items()}


def _check_fits(network: PackedNetwork, data: LightningDataModule) -> None:
    name, shape = type(data).__name__, getattr(data, "image_shape", None)
    classes = getattr(data, "num_classes", network.num_classes)
    if classes != network.num_classes:
        raise InputError(f"data={name} has {classes} classes, the network {network.num_classes}; give its own data.")
    if shape is not None and shape[0] != network.in_channels:
        raise InputError(f"data={name} has images of {shape[0]} channels, the network takes {network.in_channels}.")
    for key in ("mean", "std"):
        trained, here = getattr(network.info, key), getattr(data, key, None)
        if trained is not None and here is not None and not all(map(math.isclose, trained, here)):
            say(f"{name} normalises with {key} {tuple(here)}, but the network was trained with {trained}.")


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="bnfree test", usage="bnfree test FILE|NAME [options]", description=DESCRIPTION, allow_abbrev=False
    )
    parser.add_argument("--engine", type=str, default="auto", help="auto, numba, torch or openvino.")
    parser.add_argument("--threads", type=int | None, default=None, help="Processor threads.")
    add_network_arguments(parser, shown_too=["data", OPTION], required=False)
    for action in parser._actions:
        # Accepted in a config, and of no use here.
        if action.dest.partition(".")[0] in ("model", "image_shape"):
            action.help = SUPPRESS
    return parser

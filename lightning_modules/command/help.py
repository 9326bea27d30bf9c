"""The short help of `bnfree fit`, `validate`, `test` and `predict`, and the arguments of a class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from bnfree.errors import InputError

ALL = "--help-all"
FIT = """usage: bnfree fit --config NAME|FILE [--config MORE] [options]

Trains a network. Later configs win over earlier ones, options over configs.

what to train
  --config NAME|FILE              a recipe (bnfree configs lists them) or a YAML file of your own
  --model.backbone.width=N        any argument of the config, by its dotted name
  --model.optimizer.lr=RATE       learning rate
  --model.init_from=FILE          start from the weights of a checkpoint, and from nothing else in it
  --data.data_dir=DIR             where the images are
  --data.batch_size=N             images a batch on each process
  --seed_everything=N             seed of weights; --data.seed=N of the order of images

how long, and on what
  --trainer.max_epochs=N          epochs
  --trainer.accelerator=cpu|gpu   default: what is there; --trainer.devices=N, --trainer.precision=bf16-mixed
  --trainer.callbacks+=CLASS      add a callback; --trainer.logger+=CLASS a logger

the run
  --run_dir=DIR                   default: runs/<config>/<date>-<time>
  --ckpt_path=CKPT                go on from a checkpoint, exactly
  --test_after_fit=true|auto      test the best checkpoint at the end; auto: where there are test images

more help
  bnfree fit --help CLASS         arguments of a class, such as ReActNet18, ImageFolderDataModule or torch.optim.SGD
  bnfree fit --help-all           every option, about 850 lines
  bnfree fit ... --print_config   the config that the options make, without training
"""
EVALUATE = {
    "validate": """usage: bnfree validate --ckpt_path CKPT [options]

Evaluates a checkpoint on the validation images of its run.
""",
    "test": """usage: bnfree test --ckpt_path CKPT [options]
       bnfree test FILE|NAME --config RUN/config.yaml [--engine NAME] [--threads N]

Evaluates a checkpoint, or a packed network, on the test images.
""",
    "predict": """usage: bnfree predict --ckpt_path CKPT [options]
       bnfree predict --ckpt_path CKPT IMAGE... [--top N] [--json]
       bnfree predict [--model] FILE|NAME IMAGE... [--top N] [--json]

Predicts classes: of image files, by a checkpoint or a packed network (more: bnfree predict IMAGE --help), or without
them of the test images of a checkpoint's run.
""",
}
COMMON = """
  --ckpt_path=CKPT                checkpoint or ticket; its run says which network and which data
  --run_dir=RUN --ckpt_path=best  the checkpoint of a run
  --data.data_dir=DIR             the images elsewhere; any other argument of the config likewise
  --allow_other_classes           take data with other class names
  --trainer.accelerator=cpu|gpu   where it runs

  bnfree {name} --help CLASS      arguments of a class
  bnfree {name} --help-all        every option
"""


def asks_for_help(options: Sequence[str]) -> bool:
    """Whether a command line asks for what this module prints."""
    return bool({"-h", "--help"} & set(options)) or any(_key(option) is not None for option in options)


def print_help(subcommand: str, options: Sequence[str]) -> None:
    """Prints the short help, or the arguments of the class that is named after it.

    Args:
        subcommand: `fit`, `validate`, `test` or `predict`.
        options: what follows it.

    Raises:
        InputError: a class that is not known.
    """
    named = _class_asked_for(options)
    if named is not None:
        print_class(*named)
    else:
        print(FIT if subcommand == "fit" else EVALUATE[subcommand] + COMMON.format(name=subcommand), end="")


def print_class(name: str, key: str) -> None:
    """Prints the arguments of a class.

    Args:
        name: short name or dotted path.
        key: dotted name of the option that takes it, such as `model.backbone`; empty: any.

    Raises:
        InputError: a class that is not known.
    """
    # It imports the classes that have short names.
    from bnfree.lightning_modules.training import command_line as _short_names  # noqa: F401
    from bnfree.lightning_modules.training.config.known_classes import class_named
    from bnfree.lightning_modules.training.config.parser import CommandParser

    found = class_named(name, key)
    path = f"{found.__module__}.{found.__qualname__}"
    first = next(iter((found.__doc__ or "").strip().splitlines()), "")
    parser = CommandParser(prog=name, usage=path, description=first, add_help=False)
    known = parser.add_class_arguments(found, fail_untyped=False, skip=_given_by_code(found))
    if not known:
        print(f"usage: {path}\n\n{first}\n\nIt takes no arguments.")
        return
    # Of torch's modules there are hundreds.
    print(re.sub(r",?\s*known\s+subclasses:[^()]*", "", parser.format_help()), end="")


def _given_by_code(found: type) -> set[str]:
    """What a schedule and an optimizer are given, and no config says."""
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    return {"params"} if issubclass(found, Optimizer) else {"optimizer"} if issubclass(found, LRScheduler) else set()


def _key(option: str) -> str | None:
    """`model.backbone` of `--model.backbone.help` and `--model.backbone.help=CLASS`."""
    name = option.partition("=")[0]
    return name[2:-5] if name.startswith("--") and name.endswith(".help") else None


def _class_asked_for(options: Sequence[str]) -> tuple[str, str] | None:
    """Name of a class and the option that takes it; None where no class is asked for."""
    for place, option in enumerate(options):
        key, value = _key(option), option.partition("=")[2]
        if key is None and option not in ("-h", "--help"):
            continue
        after = options[place + 1] if place + 1 < len(options) else ""
        name = value or ("" if after.startswith("-") else after)
        if name:
            return name, key or ""
        if key is not None:
            return _class_in_config(options, key), key
    return None


def _class_in_config(options: Sequence[str], key: str) -> str:
    """The class that configs and options give to an argument.

    Raises:
        InputError: none of them gives one.
    """
    import yaml

    from bnfree.lightning_modules.training.config.shipped import find_config
    from bnfree.lightning_modules.training.config.sources import CONFIG_OPTIONS, values_of

    given = values_of(options, f"--{key}", f"--{key}.class_path")
    if given:
        return given[-1]
    for config in reversed(values_of(options, *CONFIG_OPTIONS)):
        value = yaml.safe_load(Path(find_config(config)).read_text())
        for part in key.split("."):
            value = value.get("init_args", value) if isinstance(value, dict) else {}
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, dict) and isinstance(value.get("class_path"), str):
            return str(value["class_path"])
    raise InputError(f"--{key}.help needs a class: --{key}.help=CLASS, or a --config that names one.")

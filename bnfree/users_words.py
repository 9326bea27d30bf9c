"""What the user has named: the classes on the command line and in their own configs, and what a flag permits.

A file that is read, such as a checkpoint, is not the user speaking. `bnfree.trust` asks here which names beyond its own
roots a file may use.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from bnfree.errors import InputError

FLAG = "allow_classes"
# More than any config has, and little enough to be looked through at once.
DEEPEST, MOST_VALUES, MOST_LETTERS = 40, 200_000, 200_000
# Without one of these a text is no mapping or list in YAML; and no file name is one.
_CONTAINER, _PLAIN = re.compile(r"[{\[:!?-]"), re.compile(r"[A-Za-z0-9_./+-]*")
# Of these everybody names something, by which nobody means all that is in them.
_EVERYBODYS = {
    "torch", "torchvision", "torchmetrics", "lightning", "lightning_fabric", "pytorch_lightning", "jsonargparse",
    "numpy", "scipy", "sklearn", "yaml", "PIL", "safetensors", "callbacks", "datamodules", "lightning_modules",
}  # fmt: skip
_FILES = (".ckpt", ".pt", ".pth", ".yaml", ".yml", ".json", ".safetensors", ".csv", ".npz", ".zip", ".tar", ".gz")

_named: set[str] = set()
_packages: set[str] = set()
_allowed: set[str] = set()


def is_dotted(text: str) -> bool:
    """Whether a text can be the path of a class: `package.module.Class`."""
    return "." in text and all(part.isidentifier() for part in text.split("."))


def texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in plain values, with the key that it stands under; of a text that is YAML, what it says, too.

    Parsers of configs read a text once more where they expect a mapping, so that `"{class_path: x.Y}"` is a class.

    Args:
        value: plain values.
        key: the key that they stand under.

    Raises:
        InputError: values nested more deeply than any config is, or more of them than any config has.
    """
    # A stack, since a file can be nested as deeply as it likes, and Python cannot.
    stack: list[tuple[Any, str, int]] = [(value, key, 0)]
    values = letters = 0
    while stack:
        item, at, depth = stack.pop()
        values += 1
        is_text = isinstance(item, str) and bool(_CONTAINER.search(item)) and not _PLAIN.fullmatch(item)
        letters += len(item) if is_text else 0
        if depth > DEEPEST or values > MOST_VALUES or letters > MOST_LETTERS:
            raise InputError(f"under {at[:40]!r} it holds more values, or more deeply nested ones, than a config has.")
        if isinstance(item, Mapping):
            # A key with dots means the same as mappings in each other.
            stack += [(inner, str(name).rpartition(".")[2], depth + 1) for name, inner in item.items()]
        elif isinstance(item, list | tuple | set):
            stack += [(inner, at, depth + 1) for inner in item]
        elif isinstance(item, str) and item.startswith("--") and "=" in item:
            # A word of a command line.
            argument, _, word = item.partition("=")
            stack.append((word, argument.lstrip("-").rpartition(".")[2], depth + 1))
        elif isinstance(item, str):
            yield at, item
            said = _said_by(item) if is_text else None
            stack += [] if said is None else [(said, at, depth + 8)]


def _said_by(text: str) -> Any:
    """The mapping or list that a text is when it is read as YAML."""
    # Packed networks predict without it, and have no text to read.
    import yaml

    try:
        said = yaml.safe_load(text)
    # Whatever is no YAML stays a text; dates beyond the calendar and the like raise other errors.
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError):
        return None
    return said if isinstance(said, dict | list | set) else None


def note(value: Any) -> None:
    """Remembers the classes that the user has named in their own words, for this process.

    Files may use them, and the classes of their packages, unless a package is everybody's, such as torch.

    Args:
        value: words of a command line, or plain values of a config.
    """
    if isinstance(value, list | tuple):
        value = [word.partition("=")[2] if isinstance(word, str) and word.startswith("-") else word for word in value]
    # What is beyond the bounds of a config is not looked for names in.
    with suppress(InputError):
        for _, text in texts(value):
            if not is_dotted(text) or text.endswith(_FILES):
                continue
            name(text)
            if not is_everybodys(text):
                _packages.add(text.partition(".")[0])


def name(path: str) -> None:
    """Remembers one class that the user has named.

    Args:
        path: its dotted path.
    """
    _named.add(path)


def allow(*names: str) -> None:
    """Permits files to use what lies under these names, in this process; `--allow_classes` of the command does it, too.

    Args:
        names: packages, modules or classes, such as `my_package` or `my_package.nets.Net`; `*`: everything, as if the
            files were the user's own code.

    Raises:
        InputError: no such names.

    Example:
        >>> from bnfree.users_words import allow
        >>> allow("my_package")
    """
    for name in names:
        if name != "*" and not all(part.isidentifier() for part in name.split(".")):
            raise InputError(f"{FLAG}={name!r} is no name of a package or class; give one such as my_package.")
        _allowed.add(name)


def take_allowed(words: Sequence[str]) -> list[str]:
    """The words without `--allow_classes`, whose values are permitted from now on.

    Args:
        words: of a command line.

    Raises:
        InputError: the option without a value, or one that is no name.
    """
    rest: list[str] = []
    remaining = iter(words)
    for word in remaining:
        name, equals, value = word.partition("=")
        if name != f"--{FLAG}":
            rest.append(word)
            continue
        names = [part for part in re.split(r"[\[\],'\"\s]+", value if equals else next(remaining, "")) if part]
        if not names or names[0].startswith("-"):
            raise InputError(f"--{FLAG} needs a value; give the name of a package, such as --{FLAG}=my_package.")
        allow(*names)
    return rest


def forget() -> None:
    """Forgets all that was noted and allowed: what comes next in this process is another user's word."""
    for names in (_named, _packages, _allowed):
        names.clear()


def named(path: str) -> bool:
    """Whether the user has named exactly this class or function, or a flag permits it."""
    return path in _named or "*" in _allowed or under(path, _allowed)


def of_named_package(path: str) -> bool:
    """Whether it lies in a package of which the user has named a class."""
    return path.partition(".")[0] in _packages


def is_everybodys(path: str) -> bool:
    """Whether it lies in a package of which naming one class says nothing of the others."""
    package = path.partition(".")[0]
    return package in _EVERYBODYS or package in sys.stdlib_module_names


def under(path: str, roots: set[str] | tuple[str, ...]) -> bool:
    """Whether a dotted path is one of the roots, or lies below one."""
    return any(path == root or path.startswith(f"{root}.") for root in roots)

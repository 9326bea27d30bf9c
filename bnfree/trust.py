"""Which classes a file may name: a checkpoint, a ticket, a teacher's file, the config that lies beside a checkpoint.

What comes out of a file is not what the user says. Before anything of it is imported or built, all of it is looked
through, at every depth: each text that can be the path of a class must be, by its name alone,

    a class of bnfree, torch.nn, torch.optim, torchvision.models or Lightning's callbacks and plain loggers, where it
        must then turn out to be a real class of a kind that runs are made of, defined there and not merely imported;
    a plugin that bnfree has by name, or that an installed package adds;
    something that the user has named on this command line or in their own config, or a real class of its package;
    something that `--allow_classes` permits; or
    something that the same user's bnfree has written: beside each class of other packages a file has a signature over
        its path and all its arguments, under a key that this user alone can read (`bnfree.user_key`).

Everything else is refused in one sentence. `signatures` and `approve` are for those who write files.
"""

from __future__ import annotations

import hmac
import importlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from bnfree.errors import InputError
from bnfree.import_names import PARTS, class_path_of_today
from bnfree.plugins import BUILT_IN, ENTRY_POINTS
from bnfree.user_key import signature
from bnfree.users_words import FLAG, is_dotted, is_everybodys, name, named, of_named_package, texts, under

ROOTS = (
    "bnfree",
    "torch.nn",
    "torch.optim",
    "torchvision.models",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers.csv_logs",
    "lightning.pytorch.loggers.tensorboard",
)
# Shorter ways to some of them.
_ALIASES = {
    "lightning.pytorch.loggers.CSVLogger": "lightning.pytorch.loggers.csv_logs.CSVLogger",
    "lightning.pytorch.loggers.TensorBoardLogger": "lightning.pytorch.loggers.tensorboard.TensorBoardLogger",
    "lightning.pytorch.cli.ReduceLROnPlateau": "torch.optim.lr_scheduler.ReduceLROnPlateau",
}
# What the parts of a run are subclasses of, by name, since most of it is not imported here.
KINDS = {
    "torch.nn.modules.module.Module",
    "torch.optim.optimizer.Optimizer",
    "torch.optim.lr_scheduler.LRScheduler",
    "lightning.pytorch.core.datamodule.LightningDataModule",
    "lightning.pytorch.callbacks.callback.Callback",
    "lightning.pytorch.loggers.logger.Logger",
    "bnfree.lightning_modules.modules.teacher.Teacher",
    "bnfree.binarize.SignEstimator",
    "bnfree.tickets.scores.Score",
}
KEY = "class_signatures"
"""Where a checkpoint or a ticket has the signatures of its classes."""
_COMMENT = re.compile(rf"^# {KEY}: ([0-9a-f ]+)$", re.MULTILINE)
# Arguments that are names of files and of other things, never of classes.
_PLAIN_TEXT = {
    "init_from", "weights", "data_dir", "cache_dir", "logits_cache", "architecture", "monitor", "filename", "dirpath",
    "save_dir", "default_root_dir", "run_dir", "ckpt_path", "config", "name", "version", "ticket", "path", "mode",
    "class_names", "source", "include", "exclude", "layers", "rewind_point",
    "train_dir", "val_dir", "test_dir", "root", "url", "archive",
}  # fmt: skip
# Arguments that say where a training writes.
_PLACES = {"dirpath", "filename", "save_dir", "default_root_dir", "run_dir", "root_dir", "log_dir"}
_INSTANTIATOR = "_instantiator"
# Modules can have names that `import` cannot say, and that importlib imports all the same.
_HYPHENATED = re.compile(r"(?:[\w-]+\.)+[A-Za-z_]\w*")

_approved: set[str] = set()


class Entry:
    """A class with its arguments, or a text, that needs someone's word.

    Args:
        path: what is named.
        said: all that is signed: the class with its arguments, or the argument with its text.
    """

    def __init__(self, path: str, said: Any) -> None:
        self.path, self.said = path, said
        self.text = json.dumps(said, sort_keys=True, default=repr)

    @property
    def arguments(self) -> Any:
        """All of a class but its path; None of a text."""
        return {k: v for k, v in self.said[1].items() if k != "class_path"} if isinstance(self.said[1], dict) else None

    @property
    def signature(self) -> str | None:
        """Under the user's key; None without one."""
        return signature(self.text.encode())


def check(content: Any, given: str) -> None:
    """Refuses what names a class that nobody answers for; nothing of it is imported or called then.

    Args:
        content: plain values from a file that something is going to be built from.
        given: how the user gave the file, the subject of the message.

    Raises:
        InputError: it names one; the sentence says which, and which option permits it.
    """
    for entry in _entries(content, given):
        if entry.text in _approved:
            continue
        reason = _objection(entry.path)
        if reason is not None:
            raise InputError(f"{given} names {entry.path[:100]!r}, {reason}")
        # That the class is the user's says nothing of its arguments.
        check(entry.arguments, given)
    approve(content)


def check_size(content: Any, given: str) -> None:
    """Refuses what no config is as large or as deeply nested as.

    Args:
        content: plain values from a file.
        given: the subject of the message.

    Raises:
        InputError: it is.
    """
    try:
        for _ in texts(content):
            pass
    except InputError as error:
        raise InputError(f"{given} describes no network: {error}") from error


def approve(content: Any) -> None:
    """Remembers the classes in a config that has passed, or is the user's own, so that `signatures` signs them.

    Args:
        content: plain values.
    """
    for entry in _entries(content, "the config"):
        _approve(entry)


def approve_signed(content: Any, signatures: Any) -> None:
    """Remembers the classes that a file of this user names.

    Args:
        content: plain values from a file.
        signatures: what the file has as signatures, of any type.
    """
    given = [s for s in signatures if isinstance(s, str) and s.isascii()] if isinstance(signatures, list) else []
    for entry in _entries(content, "the file", earlier=False) if given else ():
        own = entry.signature
        if own is not None and any(hmac.compare_digest(own, other) for other in given):
            _approve(entry)
            for _, text in texts(entry.said):
                if text.partition(".")[0] in PARTS:
                    # What is signed has names of today, so that this is none of ours.
                    name(text)


def is_answered_for(path: str) -> bool:
    """Whether the user has named this class, or has let it pass with some arguments, so that it may be imported.

    Args:
        path: what is named.
    """
    said = (json.loads(text) for text in _approved)
    return named(path) or any(kind == "class" and rest[0]["class_path"] == path for kind, *rest in said)


def signatures(content: Any) -> list[str]:
    """Signatures of the classes in what is going to be written, as far as they are approved.

    Args:
        content: plain values.

    Returns:
        As many as there are classes of other packages; fewer where there is no key, or nobody answers for one.
    """
    found: dict[str, None] = {}
    for entry in _entries(content, "the config"):
        if entry.text in _approved:
            signed = signature(entry.text.encode(), create=True)
            if signed is not None:
                found[signed] = None
    return list(found)


def signature_comment(content: Any) -> str:
    """`signatures` as a line for a YAML file; empty without any."""
    found = signatures(content)
    return f"# {KEY}: {' '.join(found)}\n" if found else ""


def signatures_in(text: str) -> list[str]:
    """The signatures in a YAML file's text."""
    return [signed for line in _COMMENT.findall(text) for signed in line.split()]


def _approve(entry: Entry) -> None:
    _approved.add(entry.text)
    for inner in _walk(entry.arguments, "", earlier=True):
        _approve(inner)


def _entries(content: Any, given: str, earlier: bool = True) -> Iterator[Entry]:
    """The outermost classes and texts of a file that are not beyond doubt.

    Args:
        content: plain values.
        given: the subject of messages.
        earlier: whether an earlier name of a class of ours is beyond doubt.
    """
    # First, since walking into the depth of what is too deep would end the process.
    check_size(content, given)
    yield from _walk(content, "", earlier)


def _walk(value: Any, key: str, earlier: bool) -> Iterator[Entry]:
    if isinstance(value, Mapping):
        path = value.get("class_path", value.get("_class_path"))
        if isinstance(path, str) and not _beyond_doubt(path, "class_path", earlier):
            yield Entry(path, ["class", _as_section(value)])
            return
        for argument, inner in value.items():
            if argument != _INSTANTIATOR:
                yield from _walk(inner, str(argument).rpartition(".")[2], earlier)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _walk(inner, key, earlier)
    elif isinstance(value, str):
        for at, text in texts(value, key):
            if not _beyond_doubt(text, at, earlier):
                yield Entry(text, ["text", at, text])


def _as_section(value: Mapping[Any, Any]) -> dict[Any, Any]:
    """A class with its arguments, also one whose arguments stand beside its path, as Lightning stores them."""
    if "class_path" in value:
        return {k: v for k, v in value.items() if not (k == "init_args" and v == {})}
    arguments = {k: v for k, v in value.items() if k not in ("_class_path", _INSTANTIATOR)}
    return {"class_path": value["_class_path"], **({"init_args": arguments} if arguments else {})}


def _beyond_doubt(text: str, key: str, earlier: bool) -> bool:
    """Whether a text leads to nothing that runs, or to what is allowed to everybody."""
    if key in _PLACES and (Path(text).is_absolute() or text.startswith("~") or ".." in Path(text).parts):
        return False
    if is_dotted(text):
        of_parts = text.partition(".")[0] in PARTS
        return (key in _PLAIN_TEXT and not of_parts) or (
            (earlier or not of_parts) and _of_everybody(class_path_of_today(text))
        )
    if "." in text and (key == "class_path" or (key not in _PLAIN_TEXT and _HYPHENATED.fullmatch(text))):
        return False
    # Parsers take the name of a file in place of a class for a config of that class.
    return key in _PLAIN_TEXT or not _is_file(text)


def _is_file(text: str) -> bool:
    if not text or text in _known_names() or len(text) > 4096 or "\0" in text:
        return False
    try:
        return "://" in text or Path(text).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):
        return False


def _of_everybody(path: str) -> bool:
    path = _ALIASES.get(path, path)
    if path in _known_plugins():
        return True
    if not under(path, ROOTS) or any(part.startswith("_") for part in path.split(".")):
        return False
    found = _found(path)
    return isinstance(found, type) and under(f"{found.__module__}.{found.__qualname__}", ROOTS) and _is_part(found)


def _is_part(found: type) -> bool:
    return any(f"{parent.__module__}.{parent.__qualname__}" in KINDS for parent in found.__mro__)


def _found(path: str) -> Any:
    """What a path below a trusted package leads to; None: nothing."""
    module, _, last = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), last, None)
    # A module of the user's own may raise anything.
    except Exception:
        return None


def _objection(path: str) -> str | None:
    """Why a file may not name this; None: the user has named it, or its package."""
    if named(path) or named(class_path_of_today(path)):
        return None
    permit = f"if you trust the file, add --{FLAG}={{}}."
    if _HYPHENATED.fullmatch(path) and not is_dotted(path):
        return f"which is no path of a class; {permit.format(repr('*'))}"
    if not is_dotted(path):
        return f"a place where no file may make bnfree read or write; {permit.format(repr('*'))}"
    if of_named_package(path) and isinstance(_found(path), type | None):
        # What is not there is for the parser to say.
        return None
    if under(path, ROOTS) and _found(path) is None:
        return f"which cannot be imported, since this bnfree does not have it; {_own_config()}"
    if under(path, ROOTS) or of_named_package(path):
        return f"which is no class that a run is made of; {permit.format(path[:100])}"
    return (
        "which is none of bnfree, torch.nn, torch.optim or torchvision.models, nor named by you, so that it cannot be "
        f"imported; {permit.format(path[:100] if is_everybodys(path) else path.partition('.')[0][:100])}"
    )


def _own_config() -> str:
    return "describe the network with a --config of your own."


@cache
def _known_plugins() -> set[str]:
    found = {path for kind in BUILT_IN.values() for path in kind.values()}
    # Whoever has installed a package has put its plugins there.
    return found | {point.value.replace(":", ".") for point in entry_points(group=ENTRY_POINTS)}


@cache
def _known_names() -> set[str]:
    return {short for kind in BUILT_IN.values() for short in kind}

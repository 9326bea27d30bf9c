"""The classes and arguments that a misspelt name can have meant."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bnfree.errors import InputError
from bnfree.lightning_modules.modules.teacher import Teacher
from bnfree.names import did_you_mean
from bnfree.plugins import imported

KINDS: dict[str, type] = {
    "model": LightningModule,
    "data": LightningDataModule,
    "callbacks": Callback,
    "logger": Logger,
    "optimizer": Optimizer,
    "lr_scheduler": LRScheduler,
    "backbone": nn.Module,
    "network": nn.Module,
    "teacher": Teacher,
    "strategy": Strategy,
    "profiler": Profiler,
}
# torch has hundreds of modules, none of which is a network for a whole image.
NOT_OFFERED = ("torch.nn", "torch.ao", "torchmetrics", "torchvision", "lightning.fabric", "bnfree.activations")


def class_names(key: str) -> list[str]:
    """Short names of the classes that an argument can take, sorted.

    Args:
        key: dotted name of the argument, of which the last known part decides.
    """
    kind = next((KINDS[part] for part in reversed(key.split(".")) if part in KINDS), None)
    if kind is None or key.split(".")[-1] not in KINDS:
        return []
    # The only kind that is a class to be used itself.
    itself = [Teacher] if kind is Teacher else []
    return sorted({c.__name__ for c in (*_subclasses(kind), *itself) if _offered(c)})


def _subclasses(kind: type) -> Iterator[type]:
    subclass: type
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _offered(candidate: type) -> bool:
    if candidate.__name__.startswith("_") or "._" in candidate.__module__ or inspect.isabstract(candidate):
        return False
    return not (issubclass(candidate, nn.Module) and candidate.__module__.startswith(NOT_OFFERED))


def names_in_module(name: str) -> list[str]:
    """Names of the classes that a module offers, and of the modules of a package."""
    try:
        module = importlib.import_module(name)
    except ImportError:
        return []
    public = getattr(module, "__all__", None) or [n for n in dir(module) if inspect.isclass(getattr(module, n, None))]
    inner = [found.name for found in pkgutil.iter_modules(getattr(module, "__path__", []))]
    return [str(name) for name in (*public, *inner)]


def importable_near(name: str) -> str:
    """A remedy for a module that does not exist: the nearest one that does, or an empty string."""
    parent, _, last = name.rpartition(".")
    here = [path.stem for path in Path.cwd().iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    known = [*here, "bnfree", "callbacks", "datamodules", "lightning_modules", "lightning", "torch"]
    if parent:
        known = names_in_module(parent)
    remedy = did_you_mean(last, known)
    return remedy.replace("'", f"'{parent}.", 1) if remedy and parent else remedy


def _imported(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def options_of(class_path: str) -> list[str]:
    """Names of the arguments that a class takes in a config, also those it passes on to its parents."""
    module, _, name = class_path.rpartition(".")
    owner = getattr(_imported(module), name, None)
    if not inspect.isclass(owner):
        return []
    skip = {"params"} if issubclass(owner, Optimizer) else {"optimizer"} if issubclass(owner, LRScheduler) else None
    names = LightningArgumentParser(exit_on_error=False).add_class_arguments(owner, fail_untyped=False, skip=skip)
    return [str(name) for name in names]


def passes_arguments_on(path: str) -> bool:
    """Whether a dotted path is that of a function with `**kwargs`, as `timm.create_model`."""
    module, _, name = path.rpartition(".")
    function = getattr(_imported(module), name, None) if module else None
    if not inspect.isroutine(function):
        return False
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


def class_named(name: str, key: str = "") -> type:
    """A class by its short name or dotted path.

    Args:
        name: the name.
        key: dotted name of the option that takes it, which decides between classes of the same name; empty: any.

    Raises:
        InputError: there is none, or it is no class.
    """
    if "." in name:
        found: object = imported(name, "help")
        if not inspect.isclass(found):
            raise InputError(f"help={name!r} is no class; give the name or the dotted path of one.")
        return found
    kind = next((KINDS[part] for part in reversed(key.split(".")) if part in KINDS), None)
    kinds = [kind] if kind is not None else list(KINDS.values())
    known = {c.__name__: c for k in kinds for c in (k, *_subclasses(k)) if _offered(c)}
    if name not in known:
        remedy = did_you_mean(name, known) or "give the dotted path of a class."
        raise InputError(f"help={name!r} names no known class; {remedy}")
    return known[name]

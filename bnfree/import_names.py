"""One module for each file: the folders of a checkout as parts of `bnfree`, and the names they had before.

`callbacks/`, `datamodules/` and the others lie beside `bnfree/` in a checkout and are installed as `bnfree.callbacks`
and so on. Configs, checkpoints and tickets written before that say `callbacks.X`, `lightning_modules.X`,
`datamodules.X`. Those names lead to the same modules, unless the user has a package of that name: then it is theirs.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from bnfree.users_words import named

PARTS = ("callbacks", "datamodules", "lightning_modules")
"""Packages that were importable on their own."""
DATA = ("configs", "pretrained")
"""Folders of files."""
# Modules that have moved into a room since their names were written into files.
ROOMS = {"lightning_modules": "modules"}
_EARLIER = re.compile(rf"({'|'.join(PARTS)})(\.[A-Za-z_]\w*)+")


class _CheckoutFolders:
    """Finds `bnfree.callbacks` and so on beside the package, where a checkout was not installed or has no links."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        parent, _, part = name.partition(".")
        if parent != "bnfree" or part not in (*PARTS, *DATA):
            return None
        folder = Path(__file__).resolve().parents[1] / part
        initial = folder / "__init__.py"
        if initial.is_file():
            return importlib.util.spec_from_file_location(name, initial, submodule_search_locations=[str(folder)])
        if not folder.is_dir() or not (folder.parent / "pyproject.toml").is_file():
            return None
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        return spec


class _SameModule:
    """Loads nothing: the module of the earlier name is the one of the name of today."""

    def __init__(self, name: str) -> None:
        self.name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.name)
        # The machinery of imports writes the spec of the earlier name over that of the module.
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


class _EarlierNames:
    """Finds `callbacks.X` and so on as modules of `bnfree`, where no package of the user has the name."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        part, _, rest = name.partition(".")
        if part not in PARTS:
            return None
        if not rest:
            users = PathFinder.find_spec(name)
            if users is not None and not _is_ours(users, part):
                return None
            return ModuleSpec(name, _SameModule(f"bnfree.{part}"), is_package=True)  # type: ignore[arg-type]
        if sys.modules.get(part) is not sys.modules.get(f"bnfree.{part}"):
            return None
        for today in (f"bnfree.{name}", f"bnfree.{part}.{ROOMS.get(part, '')}.{rest}"):
            if ".." not in today and _exists(today):
                return ModuleSpec(name, _SameModule(today), is_package=True)  # type: ignore[arg-type]
        return None


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _is_ours(spec: ModuleSpec, part: str) -> bool:
    places = [Path(place).resolve() for place in spec.submodule_search_locations or []]
    return places == [Path(importlib.import_module(f"bnfree.{part}").__path__[0]).resolve()]


def class_path_of_today(path: str) -> str:
    """The dotted path of a class, with the name it has now in place of an earlier one.

    Args:
        path: such as `callbacks.WeightDynamics`. A class of the user's own of that name comes first if they have named
            it: no file makes bnfree import a module of the user's for a look.

    Returns:
        The path of today, or the given one if it is none of an earlier class.
    """
    part, _, rest = path.partition(".")
    if part not in PARTS or not rest or (named(path) and _leads_somewhere(path, users=True)):
        return path
    today = (f"bnfree.{path}", f"bnfree.{part}.{ROOMS.get(part, '')}.{rest}")
    return next((name for name in today if ".." not in name and _leads_somewhere(name)), path)


def class_paths_of_today(value: Any) -> Any:
    """Plain values of a config, a checkpoint or a ticket, in which each text that is a class's path is one of today."""
    if isinstance(value, dict):
        return {key: class_paths_of_today(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [class_paths_of_today(inner) for inner in value]
    return class_path_of_today(value) if isinstance(value, str) and _EARLIER.fullmatch(value) else value


def _leads_somewhere(path: str, users: bool = False) -> bool:
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that is there and needs a missing one is the user's to hear about.
        return error.name is not None and not f"{module_name}.".startswith(f"{error.name}.")
    except Exception:
        return True
    return hasattr(module, name) and not (users and module.__name__.startswith("bnfree."))


def folder(part: str) -> Path:
    """Where a folder of files is: in the package, or beside it in a checkout without links.

    Args:
        part: one of `DATA`.
    """
    inside = Path(__file__).parent / part
    return inside if inside.is_dir() else Path(__file__).resolve().parents[1] / part


def search_working_directory() -> None:
    """Lets the user's own modules be imported: a console script does not look into the directory it is called from."""
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def install() -> None:
    """Makes both kinds of names importable, once for a process."""
    if not any(finder is _EarlierNames for finder in sys.meta_path):
        sys.meta_path.insert(0, _EarlierNames)
        sys.meta_path.append(_CheckoutFolders)


def one_module(name: str) -> None:
    """Called first by each of `PARTS`: imported as `callbacks`, from a checkout's root, it becomes `bnfree.callbacks`.

    Args:
        name: `__name__` of the module that is being imported.
    """
    if not name.startswith("bnfree."):
        sys.modules[name] = importlib.import_module(f"bnfree.{name}")

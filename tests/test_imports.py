"""Which way the arrows of the house go: down from the command to the method, and nowhere in a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FRAMEWORKS = {"lightning", "pytorch_lightning", "lightning_fabric", "torchvision", "torchmetrics", "jsonargparse"}
METHOD = "the method"
# Each room may import from those below it, and from itself.
FLOORS = [
    {"bnfree.__main__"},
    {"bnfree.lightning_modules.cli"},
    {"bnfree.lightning_modules.command"},
    {"bnfree.lightning_modules"},
    {"bnfree.lightning_modules.reports", "bnfree.lightning_modules.deployment"},
    {"bnfree.lightning_modules.experiments"},
    {"bnfree.lightning_modules.training"},
    {"bnfree.lightning_modules.compat"},
    {"bnfree.lightning_modules.modules", "bnfree.callbacks", "bnfree.datamodules"},
    {METHOD},
]
IMPORT_THE_METHOD = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def _files() -> dict[str, Path]:
    """Every module of the package by its name."""
    found = {}
    for folder, prefix in (
        ("bnfree", "bnfree"),
        ("callbacks", "bnfree.callbacks"),
        ("datamodules", "bnfree.datamodules"),
        ("lightning_modules", "bnfree.lightning_modules"),
    ):
        for file in sorted((ROOT / folder).rglob("*.py")):
            inside = file.relative_to(ROOT / folder)
            if folder == "bnfree" and inside.parts[0] in ("callbacks", "datamodules", "lightning_modules"):
                continue
            parts = [part for part in inside.with_suffix("").parts if part != "__init__"]
            found[".".join([prefix, *parts])] = file
    return found


FILES = _files()


def imported_names(file: Path, everywhere: bool = True) -> set[str]:
    """Full names of all that a file imports; those in `if TYPE_CHECKING` left out.

    Args:
        file: the file.
        everywhere: those inside functions, too.
    """
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if not everywhere and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(child, ast.Import):
                names.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.level == 0 and child.module:
                names.update(f"{child.module}.{alias.name}" for alias in child.names)
            visit(child)

    visit(ast.parse(file.read_text(), str(file)))
    return names


def _module_of(name: str) -> str | None:
    while name and name not in FILES:
        name = name.rpartition(".")[0]
    return name or None


def _graph() -> dict[str, set[str]]:
    graph = {}
    for name, file in FILES.items():
        modules = {_module_of(imported) for imported in imported_names(file) if imported.startswith("bnfree.")}
        # That a package is imported before what lies in it makes no circle.
        graph[name] = {m for m in modules if m and m != name and not name.startswith(f"{m}.") and m != "bnfree"}
    return graph


def _room(name: str) -> str:
    rooms = [room for floor in FLOORS for room in floor if name == room or name.startswith(f"{room}.")]
    return max(rooms, key=len) if rooms else METHOD


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The strongly connected components of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            component = set()
            while not component or node not in component:
                component.add(stack.pop())
            if len(component) > 1:
                found.append(component)

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_imports_run_in_a_circle():
    assert len(FILES) > 200
    assert circles(_graph()) == []


def test_arrows_go_down():
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    upwards = []
    for name, others in _graph().items():
        for other in others:
            ours, theirs = _room(name), _room(other)
            if ours != theirs and floor[theirs] <= floor[ours]:
                upwards.append(f"{name} -> {other}")
    assert sorted(upwards) == []


@pytest.mark.parametrize("name", sorted(name for name in FILES if _room(name) == METHOD))
def test_the_method_names_no_framework(name):
    assert not {imported.partition(".")[0] for imported in imported_names(FILES[name])} & FRAMEWORKS


def test_importing_the_method_imports_no_framework():
    names = [name for name in FILES if _room(name) == METHOD]
    assert "bnfree.backbones.residual" in names
    command = [sys.executable, "-c", IMPORT_THE_METHOD, *names]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    loaded = set(output.split())
    assert "torch" in loaded
    assert not loaded & FRAMEWORKS


def test_imports_inside_functions_are_seen(tmp_path):
    file = tmp_path / "module.py"
    file.write_text("from . import near\nimport a.b\ndef f():\n    from c.d import e\n    import g as h\n")
    assert imported_names(file) == {"a.b", "c.d.e", "g"}
    assert imported_names(file, everywhere=False) == {"a.b"}

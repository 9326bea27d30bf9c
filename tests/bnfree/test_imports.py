"""Which way the arrows between the packages go."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OTHERS = {"lightning_modules", "datamodules", "callbacks"}
FRAMEWORKS = {"lightning", "pytorch_lightning", "lightning_fabric", "torchvision", "torchmetrics", "jsonargparse"}

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
import bnfree
names = [module.name for module in pkgutil.walk_packages(bnfree.__path__, "bnfree.")]
assert "bnfree.backbones.residual" in names, names
for name in names:
    importlib.import_module(name)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def imported_packages(file: Path) -> set[str]:
    """Top-level names of every absolute import in the file, those inside functions included."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def assembles_the_command(file: Path) -> bool:
    inside = file.relative_to(ROOT / "lightning_modules")
    return inside.parts[0] in ("cli.py", "command")


def test_importing_the_method_imports_no_framework():
    output = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    loaded = set(output.split())
    assert "torch" in loaded
    assert not loaded & (FRAMEWORKS | OTHERS)


def test_the_method_names_none_of_the_other_packages():
    assert files("bnfree")
    for file in files("bnfree"):
        assert not imported_packages(file) & (FRAMEWORKS | OTHERS), file


@pytest.mark.parametrize("package", sorted(OTHERS))
def test_the_shells_meet_in_the_command_only(package):
    assert files(package)
    for file in files(package):
        if package == "lightning_modules" and assembles_the_command(file):
            continue
        assert not imported_packages(file) & (OTHERS - {package}), file


def test_imports_inside_functions_are_seen(tmp_path):
    file = tmp_path / "module.py"
    file.write_text("from . import near\nimport a.b\ndef f():\n    from c.d import e\n    import g as h\n")
    assert imported_packages(file) == {"a", "c", "g"}

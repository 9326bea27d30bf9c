"""The API reference is built from the docstrings without a warning, and has every public name."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytest.importorskip("pdoc")


@pytest.mark.slow
def test_it_has_a_page_for_every_module_with_all_its_public_names(tmp_path):
    script = ROOT / "docs" / "build.py"
    built = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "site")], cwd=ROOT, capture_output=True, text=True, timeout=1200
    )
    assert built.returncode == 0, built.stderr
    modules = sorted(path for path in (tmp_path / "site" / "bnfree").glob("*.html"))
    assert len(modules) > 15
    for page in modules:
        text = page.read_text()
        for name in getattr(importlib.import_module(f"bnfree.{page.stem}"), "__all__", ()):
            assert f'id="{name}"' in text, f"{name} is not in {page.name}"
    classifier = (tmp_path / "site" / "bnfree" / "lightning_modules.html").read_text()
    # Arguments, as the docstring has them.
    assert "label_smoothing" in classifier
    assert "Raises" in classifier

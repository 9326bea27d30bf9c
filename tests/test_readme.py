"""The README's Python is run as it is printed."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


def snippet(word):
    (found,) = [code for code in SNIPPETS if word in code]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("word", ["fit(FitSettings", "trainer.fit(module", "adaptive_clip_grad_(network"])
def test_a_snippet_runs_in_a_directory_of_its_own(tmp_path, monkeypatch, word):
    code = snippet(word)
    if "adaptive_clip_grad_" in word:
        # The next one goes on with its network.
        code += snippet("tickets.take_snapshot(network)")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "<README>", "exec"), {"__name__": "__main__"})

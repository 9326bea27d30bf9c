"""The cells of docs/notebook.ipynb are run one after the other, with a shorter training."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"


def cells():
    return json.loads(NOTEBOOK.read_text())["cells"]


def test_it_is_kept_without_outputs():
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert len(code) >= 3
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
def test_its_cells_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    printed = []
    for cell in cells():
        if cell["cell_type"] != "code":
            continue
        code = "".join(cell["source"]).replace('"trainer.max_epochs": 8', '"trainer.max_epochs": 1')
        exec(compile(code, "notebook", "exec"), names)
        printed.append(capsys.readouterr().out)
    assert "% of the test images, in " in printed[0]
    assert "body.0.0" in printed[1]
    scale = names["weight"][0].abs().max()
    assert set(names["weight"][0].unique().tolist()) == {-scale.item(), scale.item()}
    assert "the same class for" in printed[3]
    # One epoch tells most digits.
    assert sum(line.split(":")[0] == line.split()[1] for line in printed[4].splitlines()) >= 3

"""`summary` in Python, and `bnfree summary --memory`: bytes kept for the backward pass, by layer."""

import json
from pathlib import Path

import pytest

from bnfree.backbones import ReActNet18
from bnfree.errors import InputError
from bnfree.lightning_modules import SummarySettings, summary
from bnfree.lightning_modules.command.summary import memory_report as memory_report_of
from bnfree.lightning_modules.reports.network_costs import SummaryResult

UNIT = 8 * 16 * 16 * 4


def memory_report(network, name, image_shape, as_json):
    return memory_report_of(SummaryResult(name, None, image_shape, network), as_json)


def test_a_table_with_the_units_in_order_and_their_sum():
    lines = memory_report(ReActNet18(width=8), "ReActNet18", (3, 16, 16), as_json=False).splitlines()
    assert lines[0] == "ReActNet18, images 3x16x16: kept between forward and backward pass, in MiB"
    rows = {line.split()[0]: line.split()[1:] for line in lines[4:] if not line.startswith("-")}
    assert list(rows)[:3] == ["stem.convolution", "body.0.0", "body.0.1"]
    assert rows["body.0.1"][0] == f"{UNIT / 2**20:.4f}"
    assert rows["stem.convolution"][0] == f"{3 * 16 * 16 * 4 / 2**20:.4f}"
    figures = [[float(x) if x != "-" else 0 for x in figures] for figures in rows.values()]
    for column in zip(*figures, strict=True):
        assert column[-1] == pytest.approx(sum(column[:-1]), abs=1e-3)


@pytest.mark.parametrize("norm", ["bn_free", "batch_norm"])
def test_plain_numbers_and_what_lean_is_worth(norm):
    totals = []
    for lean in (True, False):
        network = ReActNet18(width=8, norm=norm, lean=lean)
        report = json.loads(memory_report(network, "ReActNet18", (3, 16, 16), as_json=True))
        assert report["image_shape"] == [3, 16, 16]
        unit = next(row for row in report["layers"] if row["layer"] == "body.0.1")
        assert unit["bytes_per_image"] >= UNIT
        totals.append(report["totals"]["bytes_per_image"])
    assert totals[1] > 1.5 * totals[0]


def test_images_that_do_not_fit():
    with pytest.raises(InputError, match=r"image_shape=\(1, 16, 16\) does not go through ReActNet18"):
        memory_report(ReActNet18(width=4), "ReActNet18", (1, 16, 16), as_json=False)


def test_the_function_gives_what_the_command_prints(bnfree, project):
    config = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
    found = summary(SummarySettings(config, {"model.backbone.width": 8}))
    code, out, err = bnfree("summary", config, "--model.backbone.width=8", "--json")
    assert code == 0, err
    said = json.loads(out)
    assert (found.name, found.checkpoint, list(found.image_shape)) == ("ReActNet18", None, said["image_shape"])
    assert said["totals"] == {name: getattr(found.cost, name) for name in said["totals"]}
    kept = json.loads(bnfree("summary", config, "--model.backbone.width=8", "--json", "--memory")[1])
    assert kept["totals"]["bytes_per_image"] == sum(found.memory.per_image.values())
    assert kept["totals"]["bytes_fixed"] == sum(found.memory.fixed.values())
    larger = summary(SummarySettings(config, {"model.backbone.width": 8}, image_shape=(1, 32, 32)))
    assert larger.cost.bops > 3 * found.cost.bops
    with pytest.raises(InputError, match="does not exist"):
        summary(SummarySettings("nothing"))

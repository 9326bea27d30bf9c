"""The detector in docs/detection.md: it trains a step, is exported, and runs with its body on bits."""

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch

from bnfree.backbones import ReActNet18
from bnfree.calibration import calibrate
from bnfree.packing import pack_features

TEXT = (Path(__file__).parents[1] / "docs" / "detection.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def names():
    found = {}
    for block in (BLOCKS[0], BLOCKS[3]):
        exec(block, found)
    return found


@pytest.fixture
def model(names):
    torch.manual_seed(0)
    body = ReActNet18(stem="imagenet", width=4, blocks_per_stage=[1, 1, 1, 1], features_only=True)
    calibrate(body, torch.randn(8, 3, 64, 64), full=True)
    return names["detector"](body, num_classes=3, size=64, out_channels=8)


@pytest.mark.slow
def test_a_step_moves_every_weight_of_the_body(model):
    images = [torch.rand(3, 64, 64) for _ in range(2)]
    targets = [{"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([1])} for _ in images]
    body = model.backbone.body
    before = {name: p.detach().clone() for name, p in body.named_parameters()}
    losses = model(images, targets)
    sum(losses.values()).backward()
    torch.optim.Adam(model.parameters(), lr=1e-2).step()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(not torch.equal(before[name], p) for name, p in body.named_parameters())


@pytest.mark.slow
def test_it_is_exported_up_to_the_selection_of_boxes(model, names):
    raw, x = names["Raw"](model).eval(), torch.rand(1, 3, 64, 64)
    expected = raw(x)
    program = torch.export.export(raw, (x,))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(program.module()(x), expected, strict=True))
    onnx = pytest.importorskip("onnx", reason="pip install 'bnfree[onnx]'")
    pytest.importorskip("onnxscript", reason="pip install 'bnfree[onnx]'")
    with contextlib.redirect_stdout(io.StringIO()):
        exported = torch.onnx.export(program, dynamo=True)
    onnx.checker.check_model(exported.model_proto)


@pytest.mark.slow
def test_its_boxes_are_the_same_with_the_body_on_bits(model, names):
    model.eval()
    images = [torch.rand(3, 64, 64)]
    expected = model(images)[0]
    model.backbone.body = names["PackedBody"](pack_features(model.backbone.body, engine="torch"))
    found = model(images)[0]
    assert torch.allclose(found["boxes"], expected["boxes"], atol=1e-3)
    assert torch.equal(found["labels"], expected["labels"])


@pytest.mark.slow
def test_the_other_blocks_run_as_they_are_printed(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = [torch.rand(3, 64, 64) for _ in range(2)]
    targets = [{"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([1])} for _ in images]
    given = {**names, "images": torch.randn(2, 3, 64, 64), "list_of_images": images, "list_of_targets": targets}
    exec(BLOCKS[1].replace("width=64", "width=4").replace("num_classes=20", "3, size=64, out_channels=8"), given)
    exec(BLOCKS[2], given)
    assert [tuple(m.shape) for m in given["maps"]] == [(2, 4 * 2**i, 16 // 2**i, 16 // 2**i) for i in range(4)]

"""A packed network as an ONNX model, which has no convolution of bits: float32 weights, for other runtimes."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable

import onnx
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from bnfree.packing.info import NetworkInfo
from bnfree.packing.layers import PackedLayers
from bnfree.packing.torch_program import export_program


def save_onnx(layers: PackedLayers, info: NetworkInfo, path: str | os.PathLike[str]) -> None:
    """Writes a model from `images` (N, C, H, W) to `logits` (N, num_classes), float32.

    Args:
        layers: constants and bits; for which N, H and W, `export_program` says.
        info: goes into the metadata, an entry `bnfree.NAME` in JSON for each field.
        path: file to write, customarily `*.onnx`.
    """
    program = export_program(layers, info)
    # The exporter reports its steps on standard output.
    with contextlib.redirect_stdout(io.StringIO()):
        exported = torch.onnx.export(program, input_names=["images"], output_names=["logits"], dynamo=True)
    if exported is None:
        raise RuntimeError("torch.onnx.export has returned nothing.")
    model = exported.model_proto
    onnx.helper.set_model_props(model, {f"bnfree.{name}": json.dumps(value) for name, value in info.to_dict().items()})
    onnx.checker.check_model(model)
    onnx.save(model, os.fspath(path))


def load_onnx(path: str | os.PathLike[str]) -> Callable[[Tensor], Tensor]:
    """The model computed by ONNX's own reference implementation, in numpy: slow, and independent of all others."""
    evaluator = ReferenceEvaluator(os.fspath(path))

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(evaluator.run(None, {"images": images.contiguous().numpy()})[0])

    return run

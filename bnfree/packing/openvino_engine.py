"""A packed network on OpenVINO: an implementation that shares no code with the other engines."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from typing import Any

import openvino as ov
import torch
from torch import Tensor

from bnfree.packing.info import NetworkInfo
from bnfree.packing.layers import PackedLayers
from bnfree.packing.openvino_model import build_model

# A model is compiled for one shape of images; evaluations have two, full batches and the last one.
COMPILED_MODELS = 4


@cache
def one_core() -> ov.Core:
    """The only `Core` of the process.

    Each has its own CPU plugin, which takes over the thread's alternate signal stack and gives back the one that it
    found. Of two plugins the later gives back that of the earlier, which may be gone: the next signal then ends the
    process, for instance when a worker of a DataLoader exits.
    """
    return ov.Core()


class OpenVINONetwork:
    """From normalised images (N, C, H, W), float32, to logits (N, num_classes), on `torch.get_num_threads()` threads.

    Compiled anew for every shape and number of threads, of which the last four are kept.

    Args:
        model: builds the graph for a shape (N, C, H, W).
    """

    def __init__(self, model: Callable[[tuple[int, int, int, int]], ov.Model]) -> None:
        self._model = model
        self._compiled: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    @classmethod
    def of_layers(cls, layers: PackedLayers) -> OpenVINONetwork:
        """The network of packed layers."""
        return cls(lambda shape: build_model(layers, shape))

    @classmethod
    def of_file(cls, path: str | os.PathLike[str]) -> OpenVINONetwork:
        """The network of an `.xml` file, beside which lies its `.bin`."""
        model = one_core().read_model(path)

        def reshaped(shape: tuple[int, int, int, int]) -> ov.Model:
            copy = model.clone()
            copy.reshape(list(shape))
            return copy

        return cls(reshaped)

    def __call__(self, images: Tensor) -> Tensor:
        """Logits, float32 (N, num_classes)."""
        if len(images) == 0:
            # OpenVINO compiles for no empty shape.
            return self(images.new_zeros(1, *images.shape[1:]))[:0]
        threads = torch.get_num_threads()
        key = (*images.shape, threads)
        if key not in self._compiled:
            while len(self._compiled) >= COMPILED_MODELS:
                self._compiled.popitem(last=False)
            # Rounding to bfloat16, its default on some processors, turns activations over.
            options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
            model = self._model(tuple(images.shape))  # type: ignore[arg-type]
            self._compiled[key] = one_core().compile_model(model, "CPU", options)
        self._compiled.move_to_end(key)
        logits = self._compiled[key](images.contiguous(memory_format=torch.contiguous_format).numpy())[0]
        return torch.from_numpy(logits.copy())


def save_openvino(layers: PackedLayers, info: NetworkInfo, path: str | os.PathLike[str], image_shape: Any) -> None:
    """Writes a model for OpenVINO: `*.xml`, and its weights beside it, `*.bin`.

    Args:
        layers: constants and bits.
        info: goes into the model's runtime information, under `bnfree`.
        path: file to write, which must end in `.xml`.
        image_shape: (C, H, W). The model is for one image of this shape; `Model.reshape` gives it others.
    """
    model = build_model(layers, (1, *image_shape))
    for name, value in info.to_dict().items():
        model.set_rt_info(str(value), ["bnfree", name])
    # Half precision turns activations over.
    ov.save_model(model, path, compress_to_fp16=False)

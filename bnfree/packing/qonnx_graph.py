"""Nodes and constants of a QONNX model as they are added, in the order of axes that a flow wants."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from torch.nn import functional as F

from bnfree.errors import InputError
from bnfree.packing.bits import TernaryWeight
from bnfree.packing.real_weights import RealWeight

DOMAIN = "qonnx.custom_op.general"
CHANNELS_LAST = "qonnx.custom_op.channels_last"
# What qonnx and hls4ml of 2026 write themselves, which no node here exceeds.
OPSET, IR_VERSION = 13, 8


class Graph:
    """ONNX as it is: channels before height and width, PRelu and average pooling.

    Args:
        shape: (N, C, H, W) of the input `images`.
    """

    def __init__(self, shape: tuple[int, int, int, int]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {"images": self._ordered(*shape)}
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def node(self, kind: str, inputs: list[str], shape: Iterable[int], output: str | None = None, **given: Any) -> str:
        """Adds a node.

        Args:
            kind: operator.
            inputs: names of tensors and constants.
            shape: of the output.
            output: its name; None: one of the node's own.
            **given: attributes, and `domain`.

        Returns:
            The name of the output.
        """
        name = f"{kind}_{len(self._nodes)}"
        output = output or f"{name}_out"
        self._nodes.append(helper.make_node(kind, inputs, [output], name=name, **given))
        self.shapes[output] = tuple(shape)
        return output

    def elementwise(self, kind: str, x: str, other: str) -> str:
        """Adds `Add` or `Mul` of a tensor and another one or a constant."""
        return self.node(kind, [x, other], self.shapes[x])

    def constant(self, values: Tensor) -> str:
        """Adds a constant, int64 as it is and all else in float32; its name."""
        name = f"constant_{len(self._constants)}"
        kept = values if values.dtype == torch.int64 else values.float()
        array: NDArray[Any] = kept.contiguous().numpy()
        self._constants.append(numpy_helper.from_array(array, name))
        self.shapes[name] = tuple(array.shape)
        return name

    def channels(self, vector: Tensor) -> str:
        """Adds a constant of a number for each channel."""
        return self.constant(vector.view(self._ordered(1, -1, 1, 1)))

    def bipolar(self, x: str) -> str:
        """Adds the signs of a tensor."""
        return self.node("BipolarQuant", [x, self.constant(torch.ones(1))], self.shapes[x], domain=DOMAIN)

    def quantized(self, x: str, scale: Tensor, bits: int) -> str:
        """Adds a tensor as signed integers of some bits, the lowest one left out, times a scale."""
        constants = [self.constant(value) for value in (scale, torch.zeros(1), torch.tensor(float(bits)))]
        options: dict[str, Any] = {"signed": 1, "narrow": 1, "rounding_mode": "ROUND"}
        return self.node("Quant", [x, *constants], self.shapes[x], domain=DOMAIN, **options)

    def weight(self, weight: TernaryWeight | RealWeight) -> str:
        """Adds the weights of a convolution (O, I, k, k), behind the node that says their bits."""
        if isinstance(weight, TernaryWeight):
            values = self.constant(self._weight_order(weight.values()))
            return self.bipolar(values) if weight.survivors is None else self.quantized(values, torch.ones(1), 2)
        values = self.constant(self._weight_order(weight.expand()))
        of_bits = weight.values.dtype == torch.int8
        return self.quantized(values, weight.scale.view(-1, 1, 1, 1), 8) if of_bits else values

    def convolution(self, x: str, weight: str, kernel: int, stride: int) -> str:
        """Adds a convolution with padding that keeps the size at stride 1."""
        batch, _, *size = self._sizes(x)
        outputs = self.shapes[weight][0]
        return self._convolution(
            x, weight, (batch, outputs, *(-(-pixels // stride) for pixels in size)), [kernel] * 2, stride,
            (kernel - 1) // 2,
        )  # fmt: skip

    def binary_convolution(self, above: str, weight: TernaryWeight, stride: int) -> str:
        """Adds the sums of signs: of `above`, what a tensor is above its thresholds, times weights, zero-padded."""
        return self.convolution(self.bipolar(above), self.weight(weight), weight.shape[-1], stride)

    def max_pool(self, x: str) -> str:
        """Adds maxima of 3x3 pixels with stride 2, padded by 1."""
        batch, channels, *size = self._sizes(x)
        shape = self._ordered(batch, channels, *(-(-pixels // 2) for pixels in size))
        return self.node(
            "MaxPool", [x], shape, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, domain=self._domain
        )  # fmt: skip

    def average_pool(self, x: str) -> str:
        """Adds averages of 2x2 pixels with stride 2, over what there is at odd edges."""
        batch, channels, *size = self._sizes(x)
        # A kernel must not be larger than its image, and flows that do not know ceil_mode take even sizes.
        kernel = [min(2, pixels) for pixels in size]
        ceil: dict[str, Any] = {"ceil_mode": 1} if any(pixels % 2 for pixels in size) else {}
        shape = (batch, channels, *(-(-pixels // 2) for pixels in size))
        return self.node("AveragePool", [x], shape, kernel_shape=kernel, strides=[2, 2], pads=[0] * 4, **ceil)

    def average(self, x: str) -> str:
        """Adds the average of every channel, (N, C)."""
        batch, channels, *_ = self.shapes[x]
        pooled = self.node("GlobalAveragePool", [x], (batch, channels, 1, 1))
        return self.node("Flatten", [pooled], (batch, channels), axis=1)

    def prelu(self, x: str, slope: Tensor) -> str:
        """Adds what is multiplied by a slope for each channel where it is negative."""
        return self.node("PRelu", [x, self.constant(slope.view(-1, 1, 1))], self.shapes[x])

    def repeated(self, x: str, count: int) -> str:
        """Adds the channels of a tensor several times over."""
        batch, channels, *size = self._sizes(x)
        # qonnx's cleanup (1.0) loses the second of two inputs of the same name.
        copies = [self.node("Identity", [x], self.shapes[x]) for _ in range(count)]
        shape = self._ordered(batch, channels * count, *size)
        return self.node("Concat", copies, shape, axis=self._ordered(0, 1, 2, 3).index(1))

    def linear(self, x: str, weight: RealWeight, bias: Tensor) -> None:
        """Adds the classifier, whose output is `logits`; MatMul and Add, since the flows know no Gemm."""
        matrix = self.constant(weight.expand().T)
        if weight.values.dtype == torch.int8:
            matrix = self.quantized(matrix, weight.scale.view(1, -1), 8)
        shape = (self.shapes[x][0], len(bias))
        product = self.node("MatMul", [x, matrix], shape)
        self.node("Add", [product, self.constant(bias)], shape, output="logits")

    def model(self, name: str) -> onnx.ModelProto:
        """All of it, from `images` to `logits`."""
        infos = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in self.shapes.items()}
        first, last = infos.pop("images"), infos.pop("logits")
        for constant in self._constants:
            del infos[constant.name]
        graph = helper.make_graph(
            self._nodes, name, [first], [last], self._constants, value_info=list(infos.values())
        )  # fmt: skip
        domains = {"": OPSET} | {node.domain: 1 for node in self._nodes if node.domain}
        opsets = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="bnfree")

    _domain = ""

    @staticmethod
    def _ordered(batch: int, channels: int, height: int, width: int) -> tuple[int, ...]:
        return batch, channels, height, width

    @staticmethod
    def _weight_order(weight: Tensor) -> Tensor:
        return weight

    def _sizes(self, x: str) -> tuple[int, ...]:
        """N, C, H and W of a tensor."""
        return self.shapes[x]

    def _convolution(
        self, x: str, weight: str, shape: tuple[int, ...], kernel: list[int], stride: int, padding: int, group: int = 1
    ) -> str:
        return self.node(
            "Conv", [x, weight], self._ordered(*shape), kernel_shape=kernel, strides=[stride] * 2, pads=[padding] * 4,
            dilations=[1, 1], group=group, domain=self._domain,
        )  # fmt: skip


class ChannelsLastGraph(Graph):
    """What hls4ml reads: channels behind height and width, and neither PRelu nor average pooling.

    PRelu(x) is Relu(x) + slope * -Relu(-x), the same number; averages are convolutions of each channel by itself.
    """

    _domain = CHANNELS_LAST

    @staticmethod
    def _ordered(batch: int, channels: int, height: int, width: int) -> tuple[int, ...]:
        return batch, height, width, channels

    @staticmethod
    def _weight_order(weight: Tensor) -> Tensor:
        return weight.permute(0, 2, 3, 1)

    def _sizes(self, x: str) -> tuple[int, ...]:
        batch, height, width, channels = self.shapes[x]
        return batch, channels, height, width

    def channels(self, vector: Tensor) -> str:
        """Adds a constant of a number for each channel; hls4ml counts no axis of images."""
        return self.constant(vector)

    def binary_convolution(self, above: str, weight: TernaryWeight, stride: int) -> str:
        """Adds the sums of signs.

        A bit has no third value for pixels outside of the image: hls4ml takes them for -1. Here they are zeros before
        the sign, +1 behind it everywhere, and what they add to the sums is taken away again, the same for all images.
        """
        batch, channels, height, width = self._sizes(above)
        outputs, _, kernel, _ = weight.shape
        pad = (kernel - 1) // 2
        if pad == 0:
            return super().binary_convolution(above, weight, stride)
        ends = torch.tensor([0, pad, pad, 0, 0, pad, pad, 0])
        padded = self.node(
            "Pad", [above, self.constant(ends)], self._ordered(batch, channels, height + 2 * pad, width + 2 * pad)
        )
        values = weight.values().float()
        outside = F.pad(torch.zeros(1, channels, height, width), (pad,) * 4, value=1.0)
        added = F.conv2d(outside, values, None, stride)
        shape = (batch, outputs, *added.shape[2:])
        sums = self._convolution(self.bipolar(padded), self.weight(weight), shape, [kernel] * 2, stride, 0)
        return self.elementwise("Add", sums, self.constant(-added[0].permute(1, 2, 0)))

    def average_pool(self, x: str) -> str:
        """Adds averages of 2x2 pixels with stride 2.

        Raises:
            InputError: an odd size, where the windows at the edge have fewer pixels.
        """
        batch, channels, *size = self._sizes(x)
        if any(pixels % 2 for pixels in size):
            raise InputError(
                f"format='qonnx_channels_last' cannot halve {size[0]}x{size[1]} pixels; take images of a size that "
                "stays even down to the last stage, or format='qonnx'."
            )
        return self._averages(x, (batch, channels, size[0] // 2, size[1] // 2), [2, 2])

    def average(self, x: str) -> str:
        """Adds the average of every channel, (N, C)."""
        batch, channels, *size = self._sizes(x)
        pooled = self._averages(x, (batch, channels, 1, 1), size)
        return self.node("Flatten", [pooled], (batch, channels), axis=1)

    def prelu(self, x: str, slope: Tensor) -> str:
        """Adds what is multiplied by a slope for each channel where it is negative."""
        shape = self.shapes[x]
        negative = self.elementwise("Mul", x, self.constant(torch.tensor(-1.0)))
        below = self.elementwise("Mul", self.node("Relu", [negative], shape), self.channels(-slope))
        return self.elementwise("Add", self.node("Relu", [x], shape), below)

    def _averages(self, x: str, shape: tuple[int, ...], kernel: list[int]) -> str:
        channels = shape[1]
        weight = self.constant(torch.full((channels, *kernel, 1), 1 / (kernel[0] * kernel[1])))
        return self._convolution(x, weight, shape, kernel, max(kernel), 0, channels)

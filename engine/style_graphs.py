"""The style generator as an ONNX graph: one uint8 canvas batch in, one uint8 picture batch out for each style.

Architecture: Johnson, Alahi, Fei-Fei (2016) with conditional instance normalisation of Dumoulin, Shlens, Kudlur (2017):
three contracting convolutions, residual blocks, three expanding ones, every border mirrored. A style is nothing but the
scales and shifts of the normalisations, so all that precedes the first of them is computed once for all styles.

Two rewrites keep the numbers and save a third of the time: an expanding convolution after nearest-neighbour upsampling
becomes one convolution at the small size that makes the four phases of the large one, and the last 9 x 9 convolution
between few channels becomes a 3 x 3 one between the 16 phases of each channel, which fill a vector register.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from substyle.kernels.errors import ConfigError

F32 = NDArray[np.float32]
_PHASES = 4  # along each axis, of the last convolution
_SMALLEST = 32  # canvas side below which a mirrored border would be wider than a feature map


@dataclass(frozen=True)
class Layer:
    """A convolution and what follows it; G styles, Co and Ci channels.

    Attributes:
        weight: (Co, Ci, k, k).
        bias: (Co,), or None.
        scale: (G, Co) scales of the instance normalisation, or None where the layer has none.
        shift: (G, Co) shifts of the instance normalisation, likewise.
    """

    weight: F32
    bias: F32 | None = None
    scale: F32 | None = None
    shift: F32 | None = None

    def of_style(self, style: int) -> tuple[F32, F32]:
        """Scale and shift of one style. Shape: (Co,) each."""
        if self.scale is None or self.shift is None:
            raise ValueError("a layer without normalisation has no style")
        return self.scale[style], self.shift[style]


@dataclass(frozen=True)
class Generator:
    """Weights of the network, for the styles that are wanted."""

    contract: tuple[Layer, Layer, Layer]
    residual: tuple[tuple[Layer, Layer], ...]
    expand: tuple[Layer, Layer, Layer]
    epsilon: float


def style_graph(generator: Generator, names: Sequence[str], *, batch: int, side: int) -> bytes:
    """The serialised ONNX graph: input ``canvas`` (B, S, S, 3) uint8, an output of that shape for each name.

    Args:
        names: one output name for each of the generator's styles.
        batch: B.
        side: S; a multiple of 4, at least 32.
    """
    if side % 4 or side < _SMALLEST:
        raise ConfigError("canvas", side, f"a multiple of 4 of at least {_SMALLEST}, for style transformations")
    graph = _Graph(batch, side)
    x = graph.op("Transpose", graph.op("Cast", "canvas", to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
    x = graph.op("Mul", x, graph.constant(np.float32(1.0 / 255.0)))
    contract = list(zip(generator.contract, (1, 2, 2), strict=True))
    while contract and contract[0][0].scale is None:  # layers before the first normalisation are the same in all styles
        layer, stride = contract.pop(0)
        x = graph.op("Relu", graph.convolve(x, layer, stride))
    if contract:  # and so is the first convolution with one
        layer, stride = contract.pop(0)
        x = graph.convolve(x, layer, stride)
    for style, name in enumerate(names):
        y = x if layer.scale is None else graph.op("Relu", graph.normalise(x, layer, style, generator.epsilon))
        graph.branch(y, contract, generator, style, name)
    return graph.serialise(names)


class _Graph:
    """Nodes and constants under construction."""

    def __init__(self, batch: int, side: int) -> None:
        self.batch, self.side = batch, side
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: NDArray[Any] | np.float32) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def op(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:  # noqa: ANN401
        output = output or f"{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def pad(self, x: str, size: int, mode: str = "reflect") -> str:
        return self.op("Pad", x, self.ints(0, 0, size, size, 0, 0, size, size), mode=mode)

    def convolve(self, x: str, layer: Layer, stride: int = 1) -> str:
        x = self.pad(x, layer.weight.shape[2] // 2)
        bias = () if layer.bias is None else (self.constant(layer.bias),)
        return self.op("Conv", x, self.constant(layer.weight), *bias, strides=[stride, stride])

    def normalise(self, x: str, layer: Layer, style: int, epsilon: float, phases: int = 1) -> str:
        """Instance normalisation; with phases, one channel's statistics span that many neighbouring planes."""
        scale, shift = layer.of_style(style)
        if phases == 1:
            return self.op("InstanceNormalization", x, self.constant(scale), self.constant(shift), epsilon=epsilon)
        centred = self.op("Sub", x, self._mean(x, len(scale), phases))
        variance = self._mean(self.op("Mul", centred, centred), len(scale), phases)
        deviation = self.op("Sqrt", self.op("Add", variance, self.constant(np.float32(epsilon))))
        scale_, shift_ = (self.constant(np.repeat(v, phases).reshape(1, -1, 1, 1)) for v in (scale, shift))
        return self.op("Add", self.op("Mul", centred, self.op("Div", scale_, deviation)), shift_)

    def _mean(self, x: str, channels: int, phases: int) -> str:
        by_phase = self.ints(self.batch, channels, phases)
        mean = self.op("Reshape", self.op("ReduceMean", x, axes=[2, 3], keepdims=1), by_phase)
        mean = self.op("Expand", self.op("ReduceMean", mean, axes=[2], keepdims=1), by_phase)
        return self.op("Reshape", mean, self.ints(self.batch, channels * phases, 1, 1))

    def branch(
        self, y: str, contract: Sequence[tuple[Layer, int]], generator: Generator, style: int, name: str
    ) -> None:
        """What one style computes for itself, from its first activation to the output."""
        epsilon = generator.epsilon
        for layer, stride in contract:
            y = self.op("Relu", self.normalise(self.convolve(y, layer, stride), layer, style, epsilon))
        for first, second in generator.residual:
            z = self.op("Relu", self.normalise(self.convolve(y, first), first, style, epsilon))
            y = self.op("Add", y, self.normalise(self.convolve(z, second), second, style, epsilon))
        for layer in generator.expand[:2]:
            # mirrored about a pixel of the upsampled map, the same small pixel comes again: its edge repeats
            kernel = self.constant(upsampling_kernel(layer.weight))
            y = self.op("Conv", self.pad(y, 1, "edge"), kernel, *self._repeated_bias(layer, 4))
            y = self.op("Relu", self.normalise(y, layer, style, epsilon, phases=4))
            y = self.op("DepthToSpace", y, blocksize=2, mode="CRD")
        last = generator.expand[2]
        y = self.op("SpaceToDepth", self.pad(y, last.weight.shape[2] // 2), blocksize=_PHASES)
        kernel = self.constant(phase_kernel(last.weight))
        y = self.op("Conv", y, kernel, *self._repeated_bias(last, _PHASES**2))
        y = self.op("Sigmoid", self.normalise(y, last, style, epsilon, phases=_PHASES**2))
        y = self.op("Mul", y, self.constant(np.float32(255.0)))
        y = self.op("Cast", self.op("Floor", self.op("Add", y, self.constant(np.float32(0.5)))), to=TensorProto.UINT8)
        small = self.side // _PHASES
        y = self.op("Reshape", y, self.ints(self.batch, 3, _PHASES, _PHASES, small, small))
        y = self.op("Transpose", y, perm=[0, 4, 2, 5, 3, 1])
        self.op("Reshape", y, self.ints(self.batch, self.side, self.side, 3), output=name)

    def _repeated_bias(self, layer: Layer, phases: int) -> tuple[str, ...]:
        return () if layer.bias is None else (self.constant(np.repeat(layer.bias, phases)),)

    def serialise(self, outputs: Sequence[str]) -> bytes:
        shape = [self.batch, self.side, self.side, 3]
        ports = [helper.make_tensor_value_info(name, TensorProto.UINT8, shape) for name in ("canvas", *outputs)]
        graph = helper.make_graph(self.nodes, "styles", ports[:1], ports[1:], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        serialised: bytes = model.SerializeToString()
        return serialised


def upsampling_kernel(weight: F32) -> F32:
    """A 3 x 3 kernel that acts after a doubling by nearest neighbour, as one that acts before it.

    Output channel ``4 c + 2 a + b`` is phase (a, b) of channel c: pixels (2 y + a, 2 x + b) of the doubled map.
    Shape: (Co, Ci, 3, 3) to (4 Co, Ci, 3, 3).
    """
    out, into = weight.shape[:2]
    kernel = np.zeros((out, 2, 2, into, 3, 3), np.float32)
    for a, b, i, j in np.ndindex(2, 2, 3, 3):
        kernel[:, a, b, :, (a + i - 1) // 2 + 1, (b + j - 1) // 2 + 1] += weight[:, :, i, j]
    return kernel.reshape(4 * out, into, 3, 3)


def phase_kernel(weight: F32) -> F32:
    """A 9 x 9 kernel over a padded map, as a 3 x 3 kernel between its 4 x 4 phases.

    Input channel ``(4 a + b) Ci + c`` is phase (a, b) of channel c (as ONNX SpaceToDepth orders them), output channel
    ``16 c + 4 a + b`` likewise of output channel c. Shape: (Co, Ci, 9, 9) to (16 Co, 16 Ci, 3, 3).
    """
    out, into, size = weight.shape[:3]
    q = _PHASES
    kernel = np.zeros((out, q, q, q, q, into, 3, 3), np.float32)
    for a, b, i, j in np.ndindex(q, q, size, size):
        kernel[:, a, b, (a + i) % q, (b + j) % q, :, (a + i) // q, (b + j) // q] += weight[:, :, i, j]
    return kernel.reshape(out * q * q, q * q * into, 3, 3)

"""The style generator as an ONNX graph and as a torch module.

Architecture: Johnson, Alahi, Fei-Fei (2016) with conditional instance normalisation of Dumoulin, Shlens, Kudlur (2017):
three contracting convolutions, residual blocks, three expanding convolutions, all with reflection padding. Styles
differ only in the scales and shifts of the normalisations, so layers before the first of these are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

from substyle.errors import ConfigError
from substyle.kernels import contraction

# Phases: an image (q S, q S, C) is stored as (S, S) cells of q^2 C channels. Pixel (q y + a, q x + b) of channel c is
# channel (q a + b) C + c of cell (y, x). The ONNX graph runs the expanding convolutions on phases, at a quarter of the
# canvas side: nothing is rearranged between them, and more channels fill the CPU's vector and matrix units.

F32 = NDArray[np.float32]


def phased_kernel(weight: F32, q_in: int, q_out: int) -> F32:
    """Convert the kernel of a convolution after nearest-neighbour upsampling by q_out / q_in to one over phases.

    Shape: (Co, Ci, k, k) to (q_out^2 Co, q_in^2 Ci, 3, 3), with k // 2 at most q_out.
    """
    out, into, size = weight.shape[:3]
    times = q_out // q_in
    kernel = np.zeros((q_out, q_out, out, q_in, q_in, into, 3, 3), np.float32)
    for a, b, i, j in np.ndindex(q_out, q_out, size, size):
        y, x = a + i - size // 2, b + j - size // 2  # in the upsampled image, relative to the first pixel of the cell
        phase = (y % q_out // times, x % q_out // times)
        kernel[a, b, :, *phase, :, y // q_out + 1, x // q_out + 1] += weight[:, :, i, j]
    return kernel.reshape(q_out * q_out * out, q_in * q_in * into, 3, 3)


def mirrored_phases(q: int, *, repeat: bool, last: bool) -> list[tuple[int, int]]:
    """Source (cell, phase) of each of the q phases of a padding cell under reflection, cells counted from the edge.

    Args:
        repeat: repeat the edge pixel, so that an image upsampled afterwards is reflected about a pixel.
        last: pad the end of the axis instead of its start.
    """
    distances = [d if repeat else d + 1 for d in range(q)]  # of source pixels from the edge, nearest first
    if last:
        return [(d // q, q - 1 - d % q) for d in distances]
    return [(d // q, d % q) for d in reversed(distances)]


def edge_kernel(channels: int, q: int, *, repeat: bool, last: bool) -> F32:
    """Kernel that computes a row of padding cells from the one or two rows of cells at the edge.

    Arguments as in :func:`mirrored_phases`. Shape: (q^2 C, q^2 C, 1 or 2, 1).
    """
    sources = mirrored_phases(q, repeat=repeat, last=last)
    cells = 1 + max(cell for cell, _ in sources)
    kernel = np.zeros((q, q * channels, q, q * channels, cells), np.float32)
    for phase, (cell, source) in enumerate(sources):
        kernel[phase, :, source, :, cells - 1 - cell if last else cell] = np.eye(q * channels)
    return kernel.reshape(q * q * channels, q * q * channels, cells, 1)


def turned(kernel: F32, channels: int, q: int) -> F32:
    """Transpose rows and columns of a kernel, of cells and of phases."""
    parts = kernel.reshape(q, q, channels, q, q, channels, *kernel.shape[2:])
    return parts.transpose(1, 0, 2, 4, 3, 5, 7, 6).reshape(*kernel.shape[:2], *kernel.shape[:1:-1])


def put_together(cells_BYXP: NDArray[np.uint8], q: int, out_BSSC: NDArray[np.uint8]) -> None:
    """Write the images stored as phases to ``out_BSSC``. Shape: (B, S, S, 3 q^2) to (B, q S, q S, 3)."""
    batch, rows, columns = cells_BYXP.shape[:3]
    whole = f"V{3 * q}"  # copy whole lines of cells instead of bytes
    lines = cells_BYXP.reshape(batch, rows, columns, q, 3 * q).view(whole)[..., 0]
    out_BSSC.reshape(batch, rows, q, columns, 3 * q).view(whole)[..., 0] = lines.transpose(0, 1, 3, 2)


PHASES = 4  # per axis, of the output images
_SMALLEST = 32  # canvas side below which reflection padding would exceed a feature map


@dataclass(frozen=True)
class Layer:
    """Weights of a convolution and its instance normalisation, for G styles.

    Attributes:
        weight: (Co, Ci, k, k).
        bias: (Co,), or None.
        scale, shift: (G, Co) scales and shifts of the normalisation, or None if the layer has none.
    """

    weight: F32
    bias: F32 | None = None
    scale: F32 | None = None
    shift: F32 | None = None

    def of_style(self, style: int) -> tuple[F32, F32]:
        """Scale and shift of one style. Shape: (Co,) each."""
        if self.scale is None or self.shift is None:
            raise ValueError("the layer has no instance normalisation, so no styles")
        return self.scale[style], self.shift[style]


@dataclass(frozen=True)
class Generator:
    """Weights of the network for the requested styles, and the epsilon of its normalisations."""

    contract: tuple[Layer, Layer, Layer]
    residual: tuple[tuple[Layer, Layer], ...]
    expand: tuple[Layer, Layer, Layer]
    epsilon: float


def require_side(side: int) -> None:
    """Raise ConfigError if the style networks do not support the canvas side."""
    if side % 4 or side < _SMALLEST:
        raise ConfigError("canvas", side, f"a multiple of 4, at least {_SMALLEST} (required by style transformations)")


def style_graph(generator: Generator, names: Sequence[str], *, side: int) -> bytes:
    """Build the serialised ONNX graph: uint8 input ``canvas`` (1, S, S, 3), uint8 outputs (1, S / 4, S / 4, 48).

    The 48 channels of an output are the 4 x 4 phases of an image (1, S, S, 3); :func:`put_together` restores it.

    Args:
        names: name of the output of each style of the generator.
        side: canvas side S, a multiple of 4, at least 32.
    """
    require_side(side)
    graph = _Graph(side)
    x = graph.op("Transpose", graph.op("Cast", "canvas", to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
    x = graph.op("Mul", x, graph.constant(np.float32(1.0 / 255.0)))
    contract = list(zip(generator.contract, (1, 2, 2), strict=True))
    while contract and contract[0][0].scale is None:  # shared by all styles
        layer, stride = contract.pop(0)
        x = graph.op("Relu", graph.convolve(x, layer, stride))
    # The next layer is shared but for scale and shift, as is the padding of the layer after it. Left to OpenVINO, it
    # would be shared if there are several styles, and be fused with scale and shift, which rounds otherwise, if not.
    skip = "" if contract else x  # of the first residual block
    shared, stride = contract.pop(0) if contract else (generator.residual[0][0], 1)
    after = contract[0][0] if contract else generator.residual[0][1]
    x = graph.convolve(x, shared, stride)
    one, zero = (graph.constant(np.full(len(shared.weight), value, np.float32)) for value in (1, 0))
    x = graph.op("InstanceNormalization", x, one, zero, epsilon=generator.epsilon)
    x = graph.pad(x, after.weight.shape[2] // 2)
    for style, name in enumerate(names):
        scale, shift = (graph.constant(values.reshape(1, -1, 1, 1)) for values in shared.of_style(style))
        y = graph.op("Relu", graph.op("Add", graph.op("Mul", x, scale), shift))
        graph.branch(y, skip, contract, generator, style, name)
    return graph.serialise(names)


class _Graph:
    """Nodes and constants of the graph being built."""

    def __init__(self, side: int) -> None:
        self.side = side
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

    def convolve(self, x: str, layer: Layer, stride: int = 1, *, padded: bool = False) -> str:
        if not padded:
            x = self.pad(x, layer.weight.shape[2] // 2)
        bias = () if layer.bias is None else (self.constant(layer.bias),)
        return self.op("Conv", x, self.constant(layer.weight), *bias, strides=[stride, stride])

    def normalise(self, x: str, layer: Layer, style: int, epsilon: float, phases: int = 1, *, channels: int = 1) -> str:
        """Instance normalisation; statistics of a channel include all its phases. ``channels``: their axis, 1 or 3."""
        scale, shift = layer.of_style(style)
        if phases == 1:
            return self.op("InstanceNormalization", x, self.constant(scale), self.constant(shift), epsilon=epsilon)
        count = len(scale) * phases**2
        shape = [1, count, 1, 1] if channels == 1 else [1, 1, 1, count]

        def mean(y: str) -> str:
            axes = [2, 3] if channels == 1 else [1, 2]
            by_phase = self.ints(1, phases**2, len(scale))
            means = self.op("Reshape", self.op("ReduceMean", y, axes=axes, keepdims=1), by_phase)
            means = self.op("Expand", self.op("ReduceMean", means, axes=[1], keepdims=1), by_phase)
            return self.op("Reshape", means, self.ints(*shape))

        centred = self.op("Sub", x, mean(x))
        variance = mean(self.op("Mul", centred, centred))
        deviation = self.op("Sqrt", self.op("Add", variance, self.constant(np.float32(epsilon))))
        scale_, shift_ = (self.constant(np.tile(values, phases**2).reshape(shape)) for values in (scale, shift))
        return self.op("Add", self.op("Mul", centred, self.op("Div", scale_, deviation)), shift_)

    def pad_phases(self, x: str, channels: int, phases: int, *, repeat: bool) -> str:
        """Reflection padding of one cell on every side, see :func:`mirrored_phases`."""
        for axis in (2, 3):
            edges = [self._edge(x, axis, channels, phases, repeat=repeat, last=last) for last in (False, True)]
            x = self.op("Concat", edges[0], x, edges[1], axis=axis)
        return x

    def _edge(self, x: str, axis: int, channels: int, phases: int, *, repeat: bool, last: bool) -> str:
        kernel = edge_kernel(channels, phases, repeat=repeat, last=last)
        cells = kernel.shape[2]
        start, stop = (-cells, np.iinfo(np.int64).max) if last else (0, cells)
        line = self.op("Slice", x, self.ints(start), self.ints(stop), self.ints(axis))
        if phases == 1:
            return line
        if axis == 3:
            kernel = turned(kernel, channels, phases)
        # a convolution instead of Gather, which would change the memory layout of all maps
        return self.op("Conv", line, self.constant(kernel))

    def branch(
        self, y: str, skip: str, contract: Sequence[tuple[Layer, int]], generator: Generator, style: int, name: str
    ) -> None:
        """Add the layers of one style.

        Args:
            y: its first activation, padded.
            skip: if the activation is inside the first residual block, the input of the block, else empty.
            contract: contracting convolutions that remain.
        """
        epsilon = generator.epsilon
        for i, (layer, stride) in enumerate(contract):
            y = self.convolve(y, layer, stride, padded=i == 0)
            y = self.op("Relu", self.normalise(y, layer, style, epsilon))
        for first, second in generator.residual:
            z = y if skip else self.op("Relu", self.normalise(self.convolve(y, first), first, style, epsilon))
            z = self.normalise(self.convolve(z, second, padded=bool(skip)), second, style, epsilon)
            y, skip = self.op("Add", skip or y, z), ""
        phases = 1
        for layer, after in zip(generator.expand, (2, 4, PHASES), strict=True):
            # reflecting the upsampled image about its edge pixel repeats the edge pixel of the small one
            y = self.pad_phases(y, layer.weight.shape[1], phases, repeat=after > phases)
            bias = () if layer.bias is None else (self.constant(np.tile(layer.bias, after**2)),)
            y = self.op("Conv", y, self.constant(phased_kernel(layer.weight, phases, after)), *bias)
            if layer is not generator.expand[-1]:
                y = self.op("Relu", self.normalise(y, layer, style, epsilon, after))
            phases = after
        y = self.op("Transpose", y, perm=[0, 2, 3, 1])
        y = self.op("Sigmoid", self.normalise(y, generator.expand[-1], style, epsilon, phases, channels=3))
        y = self.op("Mul", y, self.constant(np.float32(255.0)))
        y = self.op("Floor", self.op("Add", y, self.constant(np.float32(0.5))))
        self.op("Cast", y, to=TensorProto.UINT8, output=name)

    def serialise(self, outputs: Sequence[str]) -> bytes:
        small = self.side // PHASES
        ports = [
            helper.make_tensor_value_info(name, TensorProto.UINT8, [1, side, side, channels])
            for name, side, channels in [("canvas", self.side, 3), *((name, small, 3 * PHASES**2) for name in outputs)]
        ]
        graph = helper.make_graph(self.nodes, "styles", ports[:1], ports[1:], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        serialised: bytes = model.SerializeToString()
        return serialised


_ENLARGED = (2, 2, 1)  # upsampling factor before each expanding convolution
_STRIDES = (1, 2, 2)  # of the contracting convolutions


class StyleModule(nn.Module):
    """The style generator for a GPU.

    Instance normalisation always runs in float32: on a uniform image it divides rounding errors by almost 0.

    Args:
        generator: weights for G styles.
        dtype: dtype of the convolutions.
    """

    def __init__(self, generator: Generator, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.epsilon = dtype, generator.epsilon
        self.contract = nn.ModuleList(_Convolution(*pair) for pair in zip(generator.contract, _STRIDES, strict=True))
        self.residual = nn.ModuleList(_Convolution(layer) for pair in generator.residual for layer in pair)
        self.expand = nn.ModuleList(_Convolution(layer) for layer in generator.expand)
        (self.styles,) = {len(layer.scale) for layer in _layers(generator) if layer.scale is not None}
        self.contracted = contraction.contract
        convolutions = [*self.contract, *self.residual, *self.expand]
        for convolution in convolutions:
            convolution.to(dtype)
        for layer, convolution in zip(_layers(generator), convolutions, strict=True):
            convolution.normalised = layer.scale is not None
            if layer.scale is not None and layer.shift is not None:
                convolution.register_buffer("scale_GC", torch.from_numpy(layer.scale.copy()).float())
                convolution.register_buffer("shift_GC", torch.from_numpy(layer.shift.copy()).float())
        for convolution in convolutions[1 : len(self.contract)]:
            if convolution.normalised:
                convolution.register_buffer("kernel_TCO", contraction.taps(convolution.weight))

    def forward(self, canvas_BSSC: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Stylise a canvas (B, S, S, 3) uint8. Returns one tensor of the same shape and dtype per style."""
        require_side(canvas_BSSC.shape[1])
        x = canvas_BSSC.permute(0, 3, 1, 2).float() * (1.0 / 255.0)
        contract = [each for each in self.contract if isinstance(each, _Convolution)]
        while contract and not contract[0].normalised:  # shared by all styles
            convolution = contract.pop(0)
            x = functional.relu(convolution(_padded(x, convolution, self.dtype)))
        if not contract:
            return tuple(self._styled(x, style) for style in range(self.styles))
        last = contract.pop(0)
        x_XBHWC = last(_padded(x, last, self.dtype)).permute(0, 2, 3, 1)[None]  # shared but for its scale and shift
        variance_XBC, mean_XBC = torch.var_mean(x_XBHWC.float(), dim=(2, 3), correction=0)
        for convolution in contract:
            factor_GBC = torch.rsqrt(variance_XBC + self.epsilon) * last.scale_GC[:, None]
            offset_GBC = last.shift_GC[:, None] - mean_XBC * factor_GBC
            x_XBHWC, mean_XBC, variance_XBC = self.contracted(x_XBHWC, factor_GBC, offset_GBC, convolution.kernel_TCO)
            last = convolution
        factor_XBC = torch.rsqrt(variance_XBC + self.epsilon)
        pictures = []
        for style in range(self.styles):
            of = style % len(x_XBHWC)
            centred_BHWC = (x_XBHWC[of].float() - mean_XBC[of][:, None, None]) * factor_XBC[of][:, None, None]
            y = functional.relu(_scaled(centred_BHWC.permute(0, 3, 1, 2), last, style))
            pictures.append(self._styled(y, style))
        return tuple(pictures)

    def _styled(self, y: torch.Tensor, style: int) -> torch.Tensor:
        """Residual and expanding layers of one style."""
        for i in range(0, len(self.residual), 2):
            # the padded input of the block is also its residual, so that it is in memory once
            padded = _padded(y, self.residual[i], self.dtype)
            z = functional.relu(_scaled(self._centred(self.residual[i](padded)), self.residual[i], style))
            y = padded[..., 1:-1, 1:-1].float() + self._normalised(z, self.residual[i + 1], style)
        for convolution, times in zip(self.expand, _ENLARGED, strict=True):
            if times > 1:
                y = functional.interpolate(y.to(self.dtype), scale_factor=times, mode="nearest")
            y = self._normalised(y, convolution, style)
            if convolution is not self.expand[-1]:
                y = functional.relu(y)
        picture = torch.floor(torch.sigmoid(y) * 255.0 + 0.5).to(torch.uint8)
        return picture.permute(0, 2, 3, 1).contiguous()

    def _normalised(self, x: torch.Tensor, convolution: nn.Module, style: int) -> torch.Tensor:
        return _scaled(self._centred(convolution(_padded(x, convolution, self.dtype))), convolution, style)

    def _centred(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise each channel of each image to mean 0 and variance 1, in float32."""
        x = x.float()
        variance, mean = torch.var_mean(x, dim=(2, 3), correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + self.epsilon)


class _Convolution(nn.Module):
    """A convolution of an input that `_padded` has padded."""

    normalised: bool
    scale_GC: torch.Tensor
    shift_GC: torch.Tensor
    kernel_TCO: torch.Tensor  # of contracting ones

    def __init__(self, layer: Layer, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.from_numpy(layer.weight.copy()), requires_grad=False)
        bias = None if layer.bias is None else torch.from_numpy(layer.bias.copy())
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, padded: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(padded, self.weight, self.bias, self.stride)


def _padded(x: torch.Tensor, convolution: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """The input of a convolution, with reflection padding."""
    weight = convolution.weight
    assert isinstance(weight, torch.Tensor)
    return functional.pad(x.to(dtype), (weight.shape[2] // 2,) * 4, "reflect")


def _scaled(x: torch.Tensor, convolution: nn.Module, style: int) -> torch.Tensor:
    scale_GC, shift_GC = convolution.scale_GC, convolution.shift_GC
    assert isinstance(scale_GC, torch.Tensor)
    assert isinstance(shift_GC, torch.Tensor)
    return x * scale_GC[style].view(1, -1, 1, 1) + shift_GC[style].view(1, -1, 1, 1)


def _layers(generator: Generator) -> list[Layer]:
    return [*generator.contract, *(layer for pair in generator.residual for layer in pair), *generator.expand]

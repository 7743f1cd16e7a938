"""The style generator as a torch module, for a GPU: one uint8 canvas batch in, a uint8 picture out for each style.

The same network as :mod:`.style_graphs` makes an ONNX graph of, from the same weights, and written as it was published:
there, enlarged pictures are taken apart into phases for the sake of a CPU's matrix units. All that precedes the first
scaling by a style is computed once. Instance normalisation is in float32 whatever the convolutions are in: of a plain
picture it divides what rounding leaves by next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from substyle.engine.style_graphs import Generator, Layer, require_side

_ENLARGED = (2, 2, 1)  # by what the picture is enlarged before each expanding convolution
_STRIDES = (1, 2, 2)  # of the contracting ones


class StyleModule(nn.Module):
    """A generator for G styles.

    Args:
        generator: its weights.
        dtype: of the convolutions.
    """

    def __init__(self, generator: Generator, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.epsilon = dtype, generator.epsilon
        self.contract = nn.ModuleList(_Convolution(*pair) for pair in zip(generator.contract, _STRIDES, strict=True))
        self.residual = nn.ModuleList(_Convolution(layer) for pair in generator.residual for layer in pair)
        self.expand = nn.ModuleList(_Convolution(layer) for layer in generator.expand)
        self.styles = _styles(generator)
        convolutions = [*self.contract, *self.residual, *self.expand]
        for convolution in convolutions:
            convolution.to(dtype)
        for layer, convolution in zip(_layers(generator), convolutions, strict=True):
            convolution.normalised = layer.scale is not None
            if layer.scale is not None and layer.shift is not None:
                convolution.register_buffer("scale_GC", torch.from_numpy(layer.scale.copy()).float())
                convolution.register_buffer("shift_GC", torch.from_numpy(layer.shift.copy()).float())

    def forward(self, canvas_BSSC: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, S, S, 3) uint8 to G tensors (B, S, S, 3) uint8."""
        require_side(canvas_BSSC.shape[1])
        x = canvas_BSSC.permute(0, 3, 1, 2).float() * (1.0 / 255.0)
        contract = list(self.contract)
        while contract and not contract[0].normalised:  # the same in all styles
            x = functional.relu(contract.pop(0)(x, self.dtype))
        first = contract.pop(0) if contract else None
        if first is not None:  # and so is this one, but for its scale and shift
            x = self._centred(first(x, self.dtype))
        return tuple(self._styled(x, first, contract, style) for style in range(self.styles))

    def _styled(
        self, x: torch.Tensor, first: nn.Module | None, contract: Sequence[nn.Module], style: int
    ) -> torch.Tensor:
        y = x if first is None else functional.relu(_scaled(x, first, style))
        for convolution in contract:
            y = functional.relu(self._normalised(y, convolution, style))
        for i in range(0, len(self.residual), 2):
            z = functional.relu(self._normalised(y, self.residual[i], style))
            y = y + self._normalised(z, self.residual[i + 1], style)
        for convolution, times in zip(self.expand, _ENLARGED, strict=True):
            if times > 1:
                y = functional.interpolate(y.to(self.dtype), scale_factor=times, mode="nearest")
            y = self._normalised(y, convolution, style)
            if convolution is not self.expand[-1]:
                y = functional.relu(y)
        picture = torch.floor(torch.sigmoid(y) * 255.0 + 0.5).to(torch.uint8)
        return picture.permute(0, 2, 3, 1).contiguous()

    def _normalised(self, x: torch.Tensor, convolution: nn.Module, style: int) -> torch.Tensor:
        return _scaled(self._centred(convolution(x, self.dtype)), convolution, style)

    def _centred(self, x: torch.Tensor) -> torch.Tensor:
        """Each channel of each picture with mean 0 and variance 1, float32."""
        x = x.float()
        variance, mean = torch.var_mean(x, dim=(2, 3), correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + self.epsilon)


class _Convolution(nn.Module):
    """A convolution whose borders are mirrored about the edge pixels."""

    normalised: bool

    def __init__(self, layer: Layer, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.from_numpy(layer.weight.copy()), requires_grad=False)
        bias = None if layer.bias is None else torch.from_numpy(layer.bias.copy())
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        x = functional.pad(x.to(dtype), (self.weight.shape[2] // 2,) * 4, "reflect")
        return functional.conv2d(x, self.weight, self.bias, self.stride)


def _scaled(x: torch.Tensor, convolution: nn.Module, style: int) -> torch.Tensor:
    scale_GC, shift_GC = convolution.scale_GC, convolution.shift_GC
    assert isinstance(scale_GC, torch.Tensor)
    assert isinstance(shift_GC, torch.Tensor)
    return x * scale_GC[style].view(1, -1, 1, 1) + shift_GC[style].view(1, -1, 1, 1)


def _layers(generator: Generator) -> list[Layer]:
    return [*generator.contract, *(layer for pair in generator.residual for layer in pair), *generator.expand]


def _styles(generator: Generator) -> int:
    (count,) = {len(layer.scale) for layer in _layers(generator) if layer.scale is not None}
    return count

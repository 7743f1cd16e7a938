"""`control:pixels` and `control:statistics`: untrained baselines for backbones."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, conv2d

from substyle.engine import cache
from substyle.engine.backbones.families import timm
from substyle.engine.backbones.family import Family, LoadContext, register_family
from substyle.engine.backbones.spec import Backbone, BackboneSpec, split
from substyle.engine.backbones.weights import HUB
from substyle.errors import ConfigError
from substyle.kernels import cpu
from substyle.kernels.tables import LUMA
from substyle.pipelines import packaged_photographs

_BINS = 16
_PAIRS = ((0, 1), (0, 2), (1, 2))
_IN_CACHE = 8
_GRID = 16
# used instead of a hash of weights: increment when a control's computation changes
_VERSIONS = {"pixels": "pixels-1", "statistics": "statistics-2"}


class Pixels(nn.Module):
    """The canvas downscaled to 16 × 16 by area: 768 numbers in [0, 1]."""

    def forward(self, canvas_BSSC: torch.Tensor) -> torch.Tensor:
        """(B, S, S, 3) uint8 to (B, 768) float32."""
        x = canvas_BSSC.permute(0, 3, 1, 2).contiguous().float()
        return adaptive_avg_pool2d(x, _GRID).flatten(1) / 255.0


class Statistics(nn.Module):
    """175 low-level statistics of the canvas, as used in image forensics.

    - histogram of each channel, 16 bins (48), means and standard deviations (6), correlations of channels (3);
    - mean log-energy of each of the 64 coefficients of the 8 × 8 block DCT of luma, on JPEG's blocks (64);
    - at scales 1, 2, 4: histogram of the log gradient magnitude, 12 bins, and the entries of the structure tensor,
      energies of the horizontal and vertical gradient and their product (45);
    - colourfulness: means and deviations of the two opponent axes, and shares of black, white and saturated values (9).
    """

    dct: torch.Tensor
    luma: torch.Tensor
    axes: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("dct", _dct_filters(), persistent=False)
        self.register_buffer("luma", torch.tensor(LUMA), persistent=False)
        self.register_buffer("axes", torch.tensor([[1.0, -1.0, 0.0], [0.5, 0.5, -1.0]]), persistent=False)

    def forward(self, canvas_BSSC: torch.Tensor) -> torch.Tensor:
        """(B, S, S, 3) uint8 to (B, 175) float32."""
        # small batches stay in a CPU's cache; a GPU takes all at once
        size = _IN_CACHE if canvas_BSSC.device.type == "cpu" else len(canvas_BSSC)
        return torch.cat([self._some(part) for part in torch.split(canvas_BSSC, size)])

    def _some(self, canvas_BSSC: torch.Tensor) -> torch.Tensor:
        x = canvas_BSSC.permute(0, 3, 1, 2).contiguous().float()  # transposing bytes is 15 times as fast as floats
        grey = (canvas_BSSC.float() @ self.luma).unsqueeze(1)
        return torch.cat([self._colour(canvas_BSSC, x), self._bands(grey), *self._gradients(grey)], dim=1)

    def _colour(self, canvas_BSSC: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        batch = len(x)
        # every second pixel of every second row
        codes = (canvas_BSSC[:, ::2, ::2] >> 4).int() + torch.arange(3, dtype=torch.int32) * _BINS
        histogram = _counts(codes.flatten(1), 3 * _BINS) / (codes.numel() // (batch * 3))
        some = x[:, :, ::2, ::2]
        # sums of integers are exact in float64 in any order; in a uniform image the differences are rounding only
        flat = some.flatten(2).double()
        exact = flat.mean(2) / 255.0
        # all second moments, from one small matrix product; those of the opponent axes follow
        second = flat @ flat.transpose(1, 2) / (flat.shape[2] * 255.0**2)
        covariance = (second - exact[:, :, None] * exact[:, None, :]).float()
        mean = exact.float()
        deviation = covariance.diagonal(dim1=1, dim2=2).clamp_min(0.0).sqrt() + 1e-3
        pairs = torch.stack([covariance[:, a, b] / (deviation[:, a] * deviation[:, b]) for a, b in _PAIRS], 1)
        opponent = (self.axes @ covariance @ self.axes.T).diagonal(dim1=1, dim2=2).clamp_min(0.0).sqrt()
        spread = some.amax(1) - some.amin(1)
        shares = torch.stack([(spread > 255.0 * level).float().mean((1, 2)) for level in (0.02, 0.25, 0.75)], 1)
        ends = torch.stack([histogram[:, ::_BINS].mean(1), histogram[:, _BINS - 1 :: _BINS].mean(1)], 1)
        return torch.cat([histogram, mean, deviation, pairs, mean @ self.axes.T, opponent, shares, ends], 1)

    def _bands(self, grey: torch.Tensor) -> torch.Tensor:
        energy = conv2d(grey, self.dct, stride=8).square()
        return torch.log1p(energy).mean((2, 3))

    @staticmethod
    def _gradients(grey: torch.Tensor) -> list[torch.Tensor]:
        out = []
        for scale in (1, 2, 4):
            level = grey if scale == 1 else avg_pool2d(grey, scale)
            dx = (level[:, 0, :-1, 1:] - level[:, 0, :-1, :-1]).flatten(1)
            dy = (level[:, 0, 1:, :-1] - level[:, 0, :-1, :-1]).flatten(1)
            magnitude = (dx.square() + dy.square())[:, :: max(4 // scale, 1)]
            bins = torch.log2(1 + magnitude).mul(0.75).int().clamp(0, 11)  # 1 + 2·255² < 2^17, so 12 bins
            share = _counts(bins, 12) / max(bins.shape[1], 1)
            tensor = torch.stack([(a * b).mean(1) for a, b in ((dx, dx), (dy, dy), (dx, dy))], 1)
            out += [share, tensor.sign() * torch.log1p(tensor.abs())]
        return out


def _counts(code_BN: torch.Tensor, bins: int) -> torch.Tensor:
    """Number of each code in each row. Shape: (B, N) int32 to (B, bins)."""
    batch = len(code_BN)
    codes = (code_BN + (torch.arange(batch, dtype=torch.int32) * bins).view(batch, 1)).flatten()
    on_cpu = codes.device.type == "cpu"
    found = torch.bincount(codes, minlength=batch * bins) if on_cpu else _scattered(codes, batch * bins)
    return found.view(batch, bins)


def _scattered(code_N: torch.Tensor, bins: int) -> torch.Tensor:
    """``bincount`` that does not make the host wait for the largest code; sums of integers do not depend on order."""
    ones = torch.ones(1, dtype=torch.int32).expand(len(code_N))
    return torch.zeros(bins, dtype=torch.int32).scatter_add_(0, code_N.long(), ones)


def _dct_filters() -> torch.Tensor:
    """The 64 basis images of the orthonormal 8 × 8 DCT-II. Shape: (64, 1, 8, 8)."""
    k = torch.arange(8, dtype=torch.float64)
    basis = torch.cos(math.pi * (2 * k[None, :] + 1) * k[:, None] / 16) * math.sqrt(2 / 8)
    basis[0] /= math.sqrt(2)
    return torch.einsum("ux,vy->uvxy", basis, basis).reshape(64, 1, 8, 8).float()


def load(name: str, kind: str, *, canvas: int) -> Backbone:
    """Create the control ``pixels`` or ``statistics``."""
    module: nn.Module = {"pixels": Pixels, "statistics": Statistics}[kind]()
    with torch.inference_mode():
        dim = int(module(torch.zeros(1, canvas, canvas, 3, dtype=torch.uint8)).shape[-1])
    spec = BackboneSpec(
        name=name,
        architecture=kind,
        dim=dim,
        input_side=canvas,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        pooling="none",
        weights="none: arithmetic",
        weights_hash=_VERSIONS[kind],
        licence="not applicable",
        control=True,
    )
    return Backbone(spec, module.eval(), compiled=False)


_ARITHMETIC = ("pixels", "statistics")
_RANDOM = "random:"
CALIBRATION_IMAGES = 32  # photographs that normalise an untrained network


def _load(name: str, rest: str, context: LoadContext) -> Backbone:
    if rest in _ARITHMETIC:
        return load(name, rest, canvas=context.canvas)
    model, readout = split(name, rest.removeprefix(_RANDOM))
    return timm.load_random(
        *(name, model),
        canvas=context.canvas,
        calibration_BSSC=packaged_photographs.canvases(CALIBRATION_IMAGES, context.canvas)[0],
        seed=context.seed,
        readout=readout,
    )


def _identify(name: str, rest: str, context: LoadContext) -> dict[str, Any] | None:
    if not rest.startswith(_RANDOM):
        return {"arithmetic": rest}
    photographs = cache.versions(*packaged_photographs.SOURCES)
    return {"seed": context.seed, "photographs": photographs, "device": cpu.identity()}


def _check(name: str, rest: str) -> None:
    model, _ = split(name, rest)
    architecture = model.removeprefix(_RANDOM)
    random = architecture != model and architecture and not architecture.startswith(HUB)
    if rest not in _ARITHMETIC and not random:
        raise ConfigError(f"backbone {name}", rest, "pixels, statistics, random:<timm model>")


register_family(
    Family(
        *("control", "pixels|statistics|random:<timm model>", "untrained baselines"),
        *(_load, _identify),
        check=_check,
        position=8,
    )
)

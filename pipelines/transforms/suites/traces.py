"""Traces of processing: 16 classes of JPEG compression, sharpening, resizing and interpolation.

After Ramos et al., "Processing and acquisition traces in visual encoders: What does CLIP know about your camera?", ICCV
2025, and their code. As there, every picture is encoded as JPEG exactly once, so that no class is known by the absence
of compression: those of JPEG with their own settings, all others last of all with quality 95 and 4:4:4 chroma. The
class of quality 95 and 4:4:4 is thus the unprocessed picture, encoded like the others. The published unprocessed
classes of sharpening (factor 1) and resizing (scale 1) would be this one again; in their place are a factor of 8 and a
scale of 3/4. A resized picture is brought back to the canvas with bicubic interpolation.

Pictures pass through Pillow on a CPU. Elsewhere, sums of integers give the same pixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from substyle.kernels import jpeg_codec
from substyle.kernels.dispatch import for_each_image, upload
from substyle.kernels.noise import F32
from substyle.pipelines.transforms.base import SUITES, Arrays, Choice, Parameter, Role, Uniform, kernel
from substyle.pipelines.transforms.suites.fields import Keys, per_image

SUITES["traces16"] = (
    "identity",
    *(f"traces_jpeg{quality}_{chroma}" for quality in (75, 85, 95) for chroma in (420, 444)),
    *(f"traces_sharpen{factor}" for factor in (2, 4, 8)),
    *(f"traces_resize_{scale}" for scale in ("half", "three_quarters", "double")),
    *(f"traces_interpolate_{filter}" for filter in ("box", "bilinear", "bicubic", "lanczos")),
)

PREFIX = "traces_"
LAST = 95  # quality of the last encoding, with 4:4:4 chroma
FILTERS = {filter.name.lower(): filter for filter in (
    Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS,
)}  # fmt: skip
# half the width of each filter, and its value; Pillow's bicubic has a = -1/2
_KERNELS: dict[str, tuple[float, Callable[[NDArray[np.float64]], NDArray[np.float64]]]] = {
    "box": (0.5, lambda x: ((x > -0.5) & (x <= 0.5)).astype(np.float64)),
    "bilinear": (1.0, lambda x: 1.0 - np.abs(x)),
    "bicubic": (2.0, lambda x: np.where(
        np.abs(x) < 1, (1.5 * np.abs(x) - 2.5) * x**2 + 1, ((-0.5 * np.abs(x) + 2.5) * np.abs(x) - 4) * np.abs(x) + 2
    )),
    "lanczos": (3.0, lambda x: np.sinc(x) * np.sinc(x / 3)),
}  # fmt: skip


@lru_cache(maxsize=256)
def weights(inputs: int, outputs: int, interpolation: str) -> NDArray[np.float64]:
    """Pillow's weights to resize a line, antialiased where it shrinks. Shape: (outputs, inputs)."""
    half, value = _KERNELS[interpolation]
    scale = inputs / outputs
    stretch = max(scale, 1.0)
    centre_O = (np.arange(outputs) + 0.5) * scale
    first_O = np.maximum((centre_O - half * stretch + 0.5).astype(np.int64), 0)
    end_O = np.minimum((centre_O + half * stretch + 0.5).astype(np.int64), inputs)
    at_I = np.arange(inputs)
    inside_OI = (at_I >= first_O[:, None]) & (at_I < end_O[:, None])
    weight_OI = np.where(inside_OI, value((at_I - centre_O[:, None] + 0.5) / stretch), 0.0)
    return np.asarray(weight_OI / weight_OI.sum(1, keepdims=True), np.float64)


_FRACTION = 22  # bits of Pillow's weights


@lru_cache(maxsize=512)
def _few_weights(inputs: int, outputs: int, interpolation: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The columns of `weights` that are not 0, and their values as Pillow rounds them. Shape: (outputs, K) each."""
    exact_OI = weights(inputs, outputs, interpolation) * (1 << _FRACTION)
    fixed_OI = (exact_OI + np.copysign(0.5, exact_OI)).astype(np.int32)  # cut towards 0
    count = int((fixed_OI != 0).sum(1).max())
    column_OK = np.argsort(fixed_OI == 0, 1, kind="stable")[:, :count]
    return column_OK.astype(np.int32), np.take_along_axis(fixed_OI, column_OK, 1)


def _matrices(sizes_B: Sequence[tuple[int, int]], interpolation: str, device: torch.device) -> torch.Tensor:
    """Weights to resize each image's line from so many pixels to so many, padded with zeros. Shape: (B, O, I)."""
    few_B = [_few_weights(*sizes, interpolation) for sizes in sizes_B]
    inputs, outputs = (max(lengths) for lengths in zip(*sizes_B, strict=True))
    place_2BOK = np.zeros((2, len(few_B), outputs, max(column.shape[1] for column, _ in few_B)), np.int32)
    for i, few in enumerate(few_B):
        for values, padded_BOK in zip(few, place_2BOK, strict=True):
            padded_BOK[i, : values.shape[0], : values.shape[1]] = values
    column_BOK, value_BOK = upload(place_2BOK, device)
    matrix_BOI = torch.zeros(len(few_B), outputs, inputs, dtype=torch.float64, device=device)
    return matrix_BOI.scatter_add_(2, column_BOK.long(), value_BOK.double())


def resized(canvas_BSSC: torch.Tensor, scale_B: NDArray[np.floating], interpolation: str) -> torch.Tensor:
    """Resize each picture and bring it back with bicubic interpolation, in plain torch. Shape: (B, S, S, C) uint8.

    Products are of integers below 2 ** 53 in float64, so they are exact in any order.
    """
    side, device, x_BSSC = canvas_BSSC.shape[1], canvas_BSSC.device, canvas_BSSC
    other_B = [_scaled(side, scale) for scale in scale_B.tolist()]
    there = _matrices([(side, other) for other in other_B], interpolation, device)
    back = _matrices([(other, side) for other in other_B], "bicubic", device)
    for matrix in (there, there, back, back):  # across, then down, rounded after each pass
        sums = matrix @ x_BSSC.transpose(1, 2).flatten(2).double()
        levels = sums.mul_(2.0**-_FRACTION).add_(0.5).floor_().clamp_(0, 255).to(torch.uint8)
        x_BSSC = levels.view(*levels.shape[:2], -1, x_BSSC.shape[3])
    return x_BSSC


def sharpened(canvas_BSSC: torch.Tensor, factor_B: F32) -> torch.Tensor:
    """Extrapolate from a smoothed picture, in plain torch. Shape: (B, S, S, C) uint8."""
    x, inner = canvas_BSSC.short(), (slice(None), slice(1, -1), slice(1, -1))
    lines = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    around = lines[:, :, :-2] + lines[:, :, 1:-1] + lines[:, :, 2:]
    smooth = x.clone()  # the outermost pixels stay as they are
    smooth[inner] = (2 * (around + 4 * x[inner]) + 13) // 26  # 5 parts of 13 of the pixel, 1 of each around it
    return (smooth + per_image(factor_B, x.device) * (x - smooth)).clamp(0, 255).to(torch.uint8)


def _scaled(side: int, scale: float) -> int:
    return max(int(side * round(scale, 6)), 1)


def _by_pillow(canvas_BSSC: torch.Tensor, change: Callable[[Image.Image, int], Image.Image]) -> torch.Tensor:
    """Change each picture, with its number, by Pillow."""
    source, out_BSSC = canvas_BSSC.numpy(), torch.empty_like(canvas_BSSC)
    target = out_BSSC.numpy()

    def one(i: int) -> None:
        target[i] = np.asarray(change(Image.fromarray(source[i]), i))

    for_each_image(len(source), one)
    return out_BSSC


def _encoded(picture: Image.Image, quality: int, chroma: str) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, subsampling=chroma)
    return Image.open(file)


def _last(canvas_BSSC: torch.Tensor) -> torch.Tensor:
    return jpeg_codec.compressed(canvas_BSSC, np.full(len(canvas_BSSC), LAST, np.int32), whole_chroma=True)


def _register(name: str, kind: str, role: Role, function: Callable[..., torch.Tensor], *parameters: Parameter) -> None:
    operation = {"quality": "jpeg", "sharpening": "sharpen", "resampling": "resize"}[kind]
    made = kernel(PREFIX + name, operation=operation, kind=kind, role=role, parameters=parameters, subtle=True)
    made(function)


def _jpeg(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys, *, chroma: str) -> torch.Tensor:
    quality_B = args["quality"].astype(np.int32)
    if canvas_BSSC.device.type == "cpu":
        return _by_pillow(canvas_BSSC, lambda picture, i: _encoded(picture, int(quality_B[i]), chroma))
    return jpeg_codec.compressed(canvas_BSSC, quality_B, whole_chroma=chroma == "4:4:4")


def _sharpen(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    factor_B = args["factor"]
    if canvas_BSSC.device.type != "cpu":
        return _last(sharpened(canvas_BSSC, factor_B))

    def sharper(picture: Image.Image, i: int) -> Image.Image:
        return _encoded(ImageEnhance.Sharpness(picture).enhance(float(factor_B[i])), LAST, "4:4:4")

    return _by_pillow(canvas_BSSC, sharper)


def _resize(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys, *, interpolation: str) -> torch.Tensor:
    side, scale_B = canvas_BSSC.shape[1], args["scale"]
    if canvas_BSSC.device.type != "cpu":
        return _last(resized(canvas_BSSC, scale_B, interpolation))

    def there_and_back(picture: Image.Image, i: int) -> Image.Image:
        length = _scaled(side, float(scale_B[i]))
        other = picture.resize((length, length), FILTERS[interpolation])
        return _encoded(other.resize((side, side), Image.Resampling.BICUBIC), LAST, "4:4:4")

    return _by_pillow(canvas_BSSC, there_and_back)


for _chroma in ("4:2:0", "4:4:4"):
    for _quality in (75, 85, 95):
        _register(
            f"jpeg{_quality}_{_chroma.replace(':', '')}", "quality", "held_out" if _quality == 85 else "train",
            partial(_jpeg, chroma=_chroma), Choice("quality", (_quality,), within=(1, 100)),
        )  # fmt: skip
for _factor in (2, 4, 8):
    _register(
        f"sharpen{_factor}", "sharpening", "held_out" if _factor == 4 else "train",
        _sharpen, Choice("factor", (_factor,)),
    )  # fmt: skip
for _name, _scale in (("half", 0.5), ("three_quarters", 0.75), ("double", 2.0)):
    _register(
        f"resize_{_name}", "resampling", "held_out" if _name == "three_quarters" else "train",
        partial(_resize, interpolation="bilinear"), Choice("scale", (_scale,)),
    )  # fmt: skip
for _interpolation in FILTERS:
    _register(
        f"interpolate_{_interpolation}", "resampling", "held_out" if _interpolation == "bicubic" else "train",
        partial(_resize, interpolation=_interpolation), Uniform("scale", 0.8, 1.2),
    )  # fmt: skip

"""Traces of processing: 16 classes of JPEG compression, sharpening, resizing and interpolation.

After Ramos et al., "Processing and acquisition traces in visual encoders: What does CLIP know about your camera?", ICCV
2025, and their code. As there, every picture is encoded as JPEG exactly once, so that no class is known by the absence
of compression: those of JPEG with their own settings, all others last of all with quality 95 and 4:4:4 chroma. The
class of quality 95 and 4:4:4 is thus the unprocessed picture, encoded like the others. The published unprocessed
classes of sharpening (factor 1) and resizing (scale 1) would be this one again; in their place are a factor of 8 and a
scale of 3/4. A resized picture is brought back to the canvas with bicubic interpolation.

Pictures pass through Pillow on a CPU. Elsewhere, resizing and sharpening differ from it by rounding, JPEG does not.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from torch.nn.functional import conv2d

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


def _resized(planes_CSS: torch.Tensor, side: int, interpolation: str) -> torch.Tensor:
    """Resize levels, rounded after each pass. Shape: (C, side, side) float32."""
    matrix = upload(weights(planes_CSS.shape[-1], side, interpolation).astype(np.float32), planes_CSS.device)
    across = (planes_CSS @ matrix.mT + 0.5).floor().clamp(0, 255)
    return (matrix @ across + 0.5).floor().clamp(0, 255)


def resized(canvas_BSSC: torch.Tensor, scale_B: NDArray[np.floating], interpolation: str) -> torch.Tensor:
    """Resize each picture and bring it back with bicubic interpolation, in plain torch. Shape: (B, S, S, C) uint8."""
    side, out_BSSC = canvas_BSSC.shape[1], torch.empty_like(canvas_BSSC)
    for i, scale in enumerate(scale_B.tolist()):
        other = _resized(canvas_BSSC[i].permute(2, 0, 1).float(), _scaled(side, scale), interpolation)
        out_BSSC[i] = _resized(other, side, "bicubic").permute(1, 2, 0)
    return out_BSSC


def sharpened(canvas_BSSC: torch.Tensor, factor_B: F32) -> torch.Tensor:
    """Extrapolate from a smoothed picture, in plain torch. Shape: (B, S, S, C) uint8."""
    batch, side, _, channels = canvas_BSSC.shape
    planes = canvas_BSSC.permute(0, 3, 1, 2).reshape(batch * channels, 1, side, side).float()
    kernel_33 = torch.ones(1, 1, 3, 3, device=canvas_BSSC.device)
    kernel_33[..., 1, 1] = 5
    smooth = planes.clone()  # the outermost pixels stay as they are
    smooth[..., 1:-1, 1:-1] = (conv2d(planes, kernel_33 / 13.0) + 0.5).floor()
    factor = per_image(factor_B, canvas_BSSC.device).repeat_interleave(channels, 0)
    sharp = (smooth + factor * (planes - smooth)).clamp(0, 255).to(torch.uint8)
    return sharp.view(batch, channels, side, side).permute(0, 2, 3, 1)


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

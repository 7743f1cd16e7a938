"""ImageNet-C: 19 corruptions in five severities.

Constants are those of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019, for a canvas of 224. Where a corruption is an operation of ``substance31`` with other
strengths, it is that operation. Four differ in kind: glass blur moves all pixels at once instead of swapping them one
by one, frost is a synthetic texture instead of one of six photographs, the highlights of water drops are an emboss
filter, and the elastic transformation has the strengths of Michaelis et al., "Benchmarking Robustness in Object
Detection", 2019, without the affine map that comes before it in ImageNet-C. As in the paper, 15 corruptions are for
training and four for validation; these have role ``held_out``.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch.nn.functional import interpolate, pad

from substyle.kernels.dispatch import upload
from substyle.kernels.displacement import Banded
from substyle.pipelines.transforms import blur, noise, quality, warp
from substyle.pipelines.transforms.base import REGISTRY, SUITES, Arrays, Choice, Uniform, kernel, register
from substyle.pipelines.transforms.suites.fields import (
    LUMA,
    SEVERITY,
    Keys,
    bits,
    blurred,
    constant,
    filtered,
    normal,
    one_sided,
    per_image,
    picked,
    pixels,
    plasma,
    row,
    severities,
    streaked,
    unit,
)

# 15 corruptions and the four for validation, whose role is held_out
SUITES["imagenet_c"] = (
    "identity",
    *(
        f"imagenet_c_{name}"
        for name in (
            *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur"),
            *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"),
            *("brightness", "contrast", "saturate"),
            *("jpeg_compression", "pixelate"),
            "elastic_transform",
            *("snow", "frost", "fog", "spatter"),
        )
    ),
)

PREFIX = "imagenet_c_"


def _with(name: str, of: str, role: str, parameter: Choice) -> None:
    """Register an existing transformation with the strengths of ImageNet-C."""
    known = REGISTRY[of]
    kept = tuple(replace(parameter, within=p.within) if p.name == parameter.name else p for p in known.parameters)
    register(replace(known, name=PREFIX + name, role=role, parameters=kept))  # type: ignore[arg-type]


__all__ = ["blur", "noise", "quality", "warp"]  # their transformations are registered on import
_with(
    "gaussian_noise", "gaussian_noise", "train", severities("std", 0.08, 0.12, 0.18, 0.26, 0.38, unit="of full range")
)
_with("shot_noise", "shot_noise", "train", severities("rate", 60, 25, 12, 5, 3, unit="photons at full range"))
_with(
    "impulse_noise",
    "impulse_noise",
    "train",
    severities("amount", 0.03, 0.06, 0.09, 0.17, 0.27, unit="share of values"),
)
_with("gaussian_blur", "gaussian_blur", "held_out", severities("sigma", 1, 2, 3, 4, 6, unit="px"))
_with("defocus_blur", "defocus_blur", "train", severities("radius", 3, 4, 6, 8, 10, unit="px"))
_with(
    "motion_blur", "motion_blur", "train", severities("line", (10, 3), (15, 5), (15, 8), (15, 12), (20, 15), unit="px")
)
_with("zoom_blur", "zoom_blur", "train", severities("zoom", 1.10, 1.15, 1.20, 1.24, 1.30))
_with("jpeg_compression", "jpeg", "train", severities("quality", 25, 18, 15, 10, 7))
_with("elastic_transform", "elastic", "train", severities("amplitude", 14, 18.2, 23.8, 28, 33.6, unit="px"))


def _hsv(x_BSSC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Value and chroma of colours. Shape: (B, S, S, 1) each."""
    value = x_BSSC.amax(-1, keepdim=True)
    return value, value - x_BSSC.amin(-1, keepdim=True)


@kernel(PREFIX + "speckle_noise", operation="speckle_noise", kind="noise", role="held_out", parameters=[SEVERITY])
def speckle_noise(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Gaussian noise in proportion to the value."""
    device, x = canvas_BSSC.device, unit(canvas_BSSC)
    std = per_image(row((0.15, 0.2, 0.35, 0.45, 0.6), args), device)
    return pixels(x + x * std * normal(keys_B, PREFIX + "speckle_noise", tuple(x.shape[1:]), device))


_GLASS = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))  # sigma, largest move in px, iterations


@kernel(PREFIX + "glass_blur", operation="glass_blur", kind="blur", role="train", parameters=[SEVERITY])
def glass_blur(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Blur, move every pixel by a few random pixels, several times, and blur again."""
    side, device = canvas_BSSC.shape[1], canvas_BSSC.device
    line = torch.arange(side, device=device, dtype=torch.int32)
    sigma_B, most_B, times_B = row(_GLASS, args).T
    moves = bits(keys_B, PREFIX + "glass_blur", (3, 2, side, side), device)
    x = pixels(blurred(unit(canvas_BSSC), sigma_B))
    for turn in range(3):
        most = upload((most_B * (times_B > turn)).astype(np.int32), device).view(-1, 1, 1, 1)
        step_B2SS = (moves[:, turn] * (2 * most) >> 16) - most  # uniform in [-most, most)
        y, column = (line[:, None] + step_B2SS[:, 0]).clamp(0, side - 1), (line + step_B2SS[:, 1]).clamp(0, side - 1)
        x = picked(x, y, column, np.arange(len(x)))
    return pixels(blurred(unit(x), sigma_B))


# mean and deviation of the flakes, zoom, threshold, radius and sigma of their motion, share of the photograph
_SNOW = (
    *((0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7), (0.55, 0.3, 4, 0.9, 12, 8, 0.7)),
    *((0.55, 0.3, 4.5, 0.85, 12, 8, 0.65), (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55)),
)
_FALL = tuple(one_sided(int(radius), sigma, 25) for _, _, _, _, radius, sigma, _ in _SNOW)


@kernel(
    PREFIX + "snow",
    operation="snow",
    kind="weather",
    role="train",
    parameters=[SEVERITY, Uniform("angle", -135, -45, unit="degree")],
)
def snow(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Falling flakes over a whitened photograph."""
    side, device, x = canvas_BSSC.shape[1], canvas_BSSC.device, unit(canvas_BSSC)
    rows, fields = row(_SNOW, args), normal(keys_B, PREFIX + "snow", (side, side), device)
    mean, deviation, least, share = (per_image(rows[:, i], device) for i in (0, 1, 3, 6))
    flakes, large = mean[..., 0] + deviation[..., 0] * fields, torch.empty_like(fields)
    for severity, (_, _, zoom, *_) in enumerate(_SNOW, 1):
        which = upload(np.flatnonzero(args["severity"] == severity), device)
        cut = int(-(-side // zoom))
        first = (side - cut) // 2
        centre = flakes[which, None, first : first + cut, first : first + cut]
        large[which] = interpolate(centre, (side, side), mode="bilinear", align_corners=True)[:, 0]
    falling = large.clamp(max=1.0).where(large >= least[..., 0], 0.0)
    layers = streaked(falling, row(_FALL, args), args["angle"])
    layer = (layers * 255.0).round()[..., None] / 255.0
    grey = (x @ constant(LUMA, device))[..., None]
    whitened = share * x + (1.0 - share) * torch.maximum(x, grey * 1.5 + 0.5)
    return pixels(whitened + layer + layer.flip(1, 2))


_FOG = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))  # density, decay


@kernel(PREFIX + "fog", operation="fog", kind="weather", role="train", parameters=[SEVERITY])
def fog(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Fractal clouds added to the photograph, which is then darkened to its former maximum."""
    device, x, rows = canvas_BSSC.device, unit(canvas_BSSC), row(_FOG, args)
    density = per_image(rows[:, 0], device)
    brightest = x.amax((1, 2, 3), keepdim=True) if len(x) else x
    # the published fractal multiplies its random part, which is in proportion to a number, by this number again
    clouds = plasma(keys_B, PREFIX + "fog", x.shape[1], rows[:, 1] ** 2, device)[..., None]
    return pixels((x + density * clouds) * brightest / (brightest + density))


_FROST = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))  # shares of the photograph and the frost


@kernel(PREFIX + "frost", operation="frost", kind="weather", role="train", parameters=[SEVERITY])
def frost(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Pale blue crystals over the photograph: ridges of fractal clouds."""
    device, x, rows = canvas_BSSC.device, unit(canvas_BSSC), row(_FROST, args)
    rough = np.full(len(keys_B), 1.5, np.float32)
    fields = [plasma(keys_B, PREFIX + f"frost{octave}", x.shape[1], rough, device) for octave in range(3)]
    ridges = sum((1.0 - (2.0 * field - 1.0).abs() * 3.0).clamp_min(0.0) for field in fields[:2])
    ice = (0.25 * fields[2] + 0.55 * torch.as_tensor(ridges, device=device)).clamp(0.0, 1.0)[..., None]
    tint = constant((0.85, 0.93, 1.0), device)
    kept, added = (per_image(rows[:, i], device) for i in (0, 1))
    return pixels(kept * x + added * ice * tint)


_SPATTER = (  # mean and deviation of the liquid, blur, threshold, strength (water) or edge (mud), mud
    *((0.65, 0.3, 4, 0.69, 0.6, 0), (0.65, 0.3, 3, 0.68, 0.6, 0), (0.65, 0.3, 2, 0.68, 0.5, 0)),
    *((0.65, 0.3, 1, 0.65, 1.5, 1), (0.67, 0.4, 1, 0.65, 1.5, 1)),
)
_EMBOSS = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))
_WATER, _MUD = (238 / 255, 238 / 255, 175 / 255), (63 / 255, 42 / 255, 20 / 255)  # blue, green, red; red, green, blue


@kernel(PREFIX + "spatter", operation="spatter", kind="weather", role="held_out", parameters=[SEVERITY])
def spatter(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Drops of water (severities 1 to 3) or mud (4, 5)."""
    side, device, rows = canvas_BSSC.shape[1], canvas_BSSC.device, row(_SPATTER, args)
    order_B = np.argsort(rows[:, 5], kind="stable")  # water first
    rows, wet = rows[order_B], int((rows[:, 5] == 0).sum())
    x = unit(canvas_BSSC.index_select(0, upload(order_B, device)))
    mean, deviation, least, strength = (per_image(rows[:, i], device) for i in (0, 1, 3, 4))
    fields = normal(keys_B[order_B], PREFIX + "spatter", (side, side, 1), device)
    liquid = blurred(mean + deviation * fields, rows[:, 2])
    liquid = liquid.where(liquid >= least, 0.0)
    drops = pad((liquid[:wet] > 0).float().view(-1, 1, side, side), (1,) * 4, mode="replicate")[:, 0]
    light = sum(w * drops[:, r : r + side, c : c + side] for r, line in enumerate(_EMBOSS) for c, w in enumerate(line))
    lit = torch.as_tensor(light)[..., None].clamp_min(0.0)
    edge_B = np.where(rows[:, 5] == 0, np.float32(1), rows[:, 4])
    smooth = blurred(torch.cat([lit, (liquid[wet:] > least[wet:]).float()]), edge_B)
    shine = liquid[:wet] * (0.3 + smooth[:wet])
    shine = strength[:wet] * shine / shine.amax((1, 2, 3), keepdim=True).clamp_min(1e-6)
    mask = smooth[wet:].where(smooth[wet:] >= 0.8, 0.0)
    water, mud = constant(_WATER[::-1], device), constant(_MUD, device)
    made = torch.cat([pixels(x[:wet] + shine * water), pixels(x[wet:] * (1.0 - mask) + mask * mud)])
    return made.index_select(0, upload(np.argsort(order_B), device))


@lru_cache(maxsize=16)
def _box(side: int, small: float) -> Banded:
    """Mean over the pixels of each of ``small`` equal parts of a line, as Pillow's box filter, repeated over them."""
    edge = np.arange(small + 1) * side / small
    centre = np.arange(side) + 0.5
    inside = (centre >= edge[:-1, None]) & (centre < edge[1:, None])
    return Banded((inside / inside.sum(1, keepdims=True))[(centre * small / side).astype(np.int64)])


@kernel(PREFIX + "pixelate", operation="pixelate", kind="quality", role="train", parameters=[SEVERITY])
def pixelate(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Reduce with a box filter, then enlarge by repeating pixels."""
    scale_B = row((0.6, 0.5, 0.4, 0.3, 0.25), args).astype(np.float64).round(4)
    small_B = np.maximum((canvas_BSSC.shape[1] * scale_B).astype(np.int64), 1).astype(np.float32)
    # rows first, as in Pillow
    return filtered(canvas_BSSC.transpose(1, 2).float(), _box, small_B, levels=True).transpose(1, 2).to(torch.uint8)


@kernel(PREFIX + "brightness", operation="brightness", kind="tone", role="train", parameters=[SEVERITY])
def brightness(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Add to the value of HSV."""
    x = unit(canvas_BSSC)
    value, _ = _hsv(x)
    brighter = (value + per_image(row((0.1, 0.2, 0.3, 0.4, 0.5), args), x.device)).clamp(max=1.0)
    return pixels(torch.where(value > 0, x / value.clamp_min(1e-6) * brighter, brighter))


@kernel(PREFIX + "contrast", operation="low_contrast", kind="tone", role="train", parameters=[SEVERITY])
def contrast(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Scale the difference from each channel's mean."""
    factor = per_image(row((0.4, 0.3, 0.2, 0.1, 0.05), args), canvas_BSSC.device)
    # sums of integers are exact in float64 in any order
    mean = (canvas_BSSC.double().sum((1, 2), keepdim=True) / canvas_BSSC[0, ..., 0].numel() / 255.0).float()
    return pixels((unit(canvas_BSSC) - mean) * factor + mean)


@kernel(PREFIX + "saturate", operation="saturate", kind="tone", role="held_out", parameters=[SEVERITY])
def saturate(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Scale the saturation of HSV and add to it."""
    x, rows = unit(canvas_BSSC), row(((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)), args)
    factor, shift = (per_image(rows[:, i], x.device) for i in (0, 1))
    value, chroma = _hsv(x)
    saturation = chroma / value.clamp_min(1e-6)
    wanted = (saturation * factor + shift).clamp(0.0, 1.0) * value
    # a grey pixel has hue 0, red
    hue = torch.where(chroma > 0, (value - x) / chroma.clamp_min(1e-6), constant((0.0, 1.0, 1.0), x.device))
    return pixels(value - hue * wanted)

"""Kind *sensor*: flaws of lenses and sensors."""

from __future__ import annotations

import numpy as np
import torch

from substyle.kernels.dispatch import upload
from substyle.pipelines.transforms.base import Arrays, Choice, Uniform, kernel
from substyle.pipelines.transforms.suites.fields import (
    LUMA,
    Keys,
    bits,
    constant,
    normal,
    per_image,
    pixels,
    plane,
    product,
    severities,
    unit,
)
from substyle.pipelines.transforms.suites.viewpoint import sampled


@kernel(
    "chromatic_aberration", kind="sensor", role="train",
    parameters=[severities("shift", 2, 3, 4.5, 6, 8, unit="px"), Choice("sign", (-1, 1))],
)  # fmt: skip
def chromatic_aberration(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Red enlarged and blue reduced, or vice versa: by ``shift`` in the middle of an edge."""
    side, device = canvas_BSSC.shape[1], canvas_BSSC.device
    x, y = plane(side, device)
    out_BSSC = canvas_BSSC.clone()
    for channel, sign in ((0, -2.0), (2, 2.0)):
        ratio = 1.0 + per_image(sign * args["shift"] * args["sign"] / side, device)
        out_BSSC[..., channel : channel + 1] = sampled(canvas_BSSC[..., channel : channel + 1], x * ratio, y * ratio)
    return out_BSSC


@kernel(
    "bayer", kind="sensor", role="train",
    parameters=[severities("strength", 0.4, 0.55, 0.7, 0.85, 1.0), Choice("cell", (2,), unit="px", within=(1, 64))],
)  # fmt: skip
def bayer(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """A mosaic of red, green, green and blue filters; each cell loses the other two channels by ``strength``."""
    side, device = canvas_BSSC.shape[1], canvas_BSSC.device
    cell_B = np.maximum(np.rint(args["cell"]), 1).astype(np.int64)
    odd_BS = torch.arange(side, device=device) // upload(cell_B, device)[:, None] % 2
    kind = odd_BS[:, :, None] + odd_BS[:, None]  # 0 red, 1 green, 2 blue
    filters = (kind[..., None] == torch.arange(3, device=device)).float()
    strength = per_image(args["strength"], device)
    # brighter, so that half of the filters' loss is made up for
    return pixels(unit(canvas_BSSC) * (1.0 - strength * (1.0 - filters)) * (1.0 + 0.6 * strength))


@kernel("banding", kind="sensor", role="train", parameters=[severities("levels", 8, 6, 5, 4, 3)])
def banding(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Few levels per channel: smooth gradients become bands."""
    steps = per_image(args["levels"] - 1, canvas_BSSC.device)
    return pixels((unit(canvas_BSSC) * steps + 0.5).floor() / steps)


@kernel(
    "hot_pixels", kind="sensor", role="train",
    parameters=[severities("share", 0.014, 0.022, 0.034, 0.05, 0.07, unit="of the pixels")],
)  # fmt: skip
def hot_pixels(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Single pixels stuck at a bright colour."""
    side, device = canvas_BSSC.shape[1], canvas_BSSC.device
    field = bits(keys_B, "hot_pixels", (side, side, 1), device)
    hot = field < per_image(args["share"] * 65536, device)
    colours = upload(np.array([[255, 40, 40], [40, 255, 40], [60, 60, 255], [255, 255, 255]]), device)
    return torch.where(hot, colours[(field % 4)[..., 0]].to(torch.uint8), canvas_BSSC)


_SPOTS = 28


@kernel(
    "dust", kind="sensor", role="held_out",
    parameters=[
        severities("darkness", 0.4, 0.5, 0.6, 0.72, 0.85), Uniform("place_x", -0.5, 0.5, count=_SPOTS),
        Uniform("place_y", -0.5, 0.5, count=_SPOTS), Uniform("radius", 3, 11, unit="px", count=_SPOTS),
    ],
)  # fmt: skip
def dust(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Soft dark spots: grains of dust on the sensor."""
    side, device = canvas_BSSC.shape[1], canvas_BSSC.device
    line_S = (np.arange(side) + 0.5) / side - 0.5
    across, down = (  # a Gaussian spot is a product
        np.exp(-(((line_S[:, None] - args[f"place_{axis}"][:, None]) * side / args["radius"][:, None]) ** 2))
        for axis in "xy"
    )
    spots = product(*(upload(each.astype(np.float32), device) for each in (down, across.swapaxes(1, 2))))
    cover = (1.6 * spots[..., None] - 0.3).clamp(0.0, 1.0)
    return pixels(unit(canvas_BSSC) * (1.0 - per_image(args["darkness"], device) * cover))


@kernel(
    "rolling_bands", kind="sensor", role="held_out",
    parameters=[
        severities("depth", 0.25, 0.38, 0.5, 0.65, 0.8), Uniform("bands", 3, 8),
        Uniform("phase", 0, 360, unit="degree"),
    ],
)  # fmt: skip
def rolling_bands(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Bright and dark rows: lamps that flicker while the rows are read."""
    side, device = canvas_BSSC.shape[1], canvas_BSSC.device
    turn_BS = 2 * np.pi * (np.arange(side) + 0.5) / side * args["bands"][:, None] + np.radians(args["phase"])[:, None]
    light = upload(np.sin(turn_BS).astype(np.float32), device).view(-1, side, 1, 1)
    tint = constant((1.0, 0.95, 0.8), device)
    return pixels(unit(canvas_BSSC) * (1.0 + per_image(args["depth"], device) * (light - 0.2) * tint))


@kernel("sensor_noise", kind="sensor", role="held_out", parameters=[severities("gain", 0.05, 0.08, 0.11, 0.15, 0.2)])
def sensor_noise(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Noise of a high sensitivity: of photons and of reading, coarser in colour than in luminance, uneven by row."""
    x, side, device = unit(canvas_BSSC), canvas_BSSC.shape[1], canvas_BSSC.device
    gain = per_image(args["gain"], device)
    half = -(-side // 2)
    fine = normal(keys_B, "sensor_noise", (side, side, 1), device)
    rows = normal(keys_B, "sensor_noise.rows", (side, 1, 1), device)
    coarse = normal(keys_B, "sensor_noise.colour", (half, half, 3), device)
    coarse = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :side, :side]
    return pixels(x + gain * (0.3 + x).sqrt() * (0.8 * fine + 0.6 * coarse) + 0.25 * gain * rows)


@kernel("blooming", kind="sensor", role="train", parameters=[severities("strength", 0.3, 0.45, 0.6, 0.75, 0.95)])
def blooming(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Charge that overflows from highlights into their columns: vertical white streaks."""
    levels = canvas_BSSC.int()
    luma = sum(levels[..., i] * round(1024 * weight) for i, weight in enumerate(LUMA))
    luma = torch.as_tensor(luma, device=canvas_BSSC.device)
    brightest = luma.amax((1, 2), keepdim=True)
    excess = (luma * 16 - brightest * 14).clamp_min(0) >> 6
    column = excess.sum(1, keepdim=True)  # of integers: exact in any order
    least, most = column.amin(2, keepdim=True), column.amax(2, keepdim=True)
    streak = ((column - least).float() / (most - least).clamp_min(1).float())[..., None]
    x = unit(canvas_BSSC)
    return pixels(x + per_image(args["strength"], canvas_BSSC.device) * streak * (1.0 - x))

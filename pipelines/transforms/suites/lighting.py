"""Kinds *lighting* and *weather*: where light comes from, how much of it, and what is in the air.

A factor on light is a factor's square root on levels: a gamma of 2.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from substyle.kernels.dispatch import upload
from substyle.pipelines.transforms.base import REGISTRY, Arrays, Choice, Uniform, kernel, register
from substyle.pipelines.transforms.suites import imagenet_c
from substyle.pipelines.transforms.suites.fields import (
    LUMA,
    Keys,
    along,
    bits,
    constant,
    normal,
    one_sided,
    per_image,
    pixels,
    plane,
    plasma,
    severities,
    streaked,
    unit,
)

__all__ = ["imagenet_c"]  # its fog and snow are registered on import
_ANGLE = Uniform("angle", 0, 360, unit="degree")
_PLACE = (Uniform("place_x", -0.35, 0.35, unit="of the side"), Uniform("place_y", -0.4, 0.0, unit="of the side"))


def _distance(args: Arrays, side: int, device: torch.device, times: float = 1.0) -> torch.Tensor:
    """Squared distance from a multiple of each image's place, in sides. Shape: (B, S, S, 1)."""
    x, y = plane(side, device)
    place_x, place_y = (per_image(times * args[f"place_{axis}"], device) for axis in "xy")
    dx, dy = x - place_x, y - place_y
    return dx * dx + dy * dy


def _luma(x_BSSC: torch.Tensor) -> torch.Tensor:
    red, green, blue = (x_BSSC[..., i : i + 1] for i in range(3))
    return red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]


@kernel(
    "directional_light", kind="lighting", role="train",
    parameters=[severities("stops", 2.5, 3.5, 4.5, 5.5, 6.5, unit="stop"), _ANGLE],
)  # fmt: skip
def directional_light(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Warm light from one side that falls off towards the other, by ``stops`` from edge to edge."""
    x, device = unit(canvas_BSSC), canvas_BSSC.device
    slope = along(args["angle"], x.shape[1], device) * per_image(args["stops"] / 2, device)
    warmth = torch.exp2(slope * constant((1.12, 1.0, 0.8), device))
    return pixels(x * warmth)


@kernel(
    "cast_shadow", kind="lighting", role="train",
    parameters=[
        severities("darkness", 0.35, 0.45, 0.55, 0.65, 0.75), _ANGLE, Uniform("shift", -0.2, 0.2, unit="of the side"),
        Uniform("width", 0.25, 0.45, unit="of the side"), Uniform("taper", -0.4, 0.4),
    ],
)  # fmt: skip
def cast_shadow(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """The shadow of something long that tapers, with a narrow penumbra; the sky still lights it."""
    x, device, side = unit(canvas_BSSC), canvas_BSSC.device, canvas_BSSC.shape[1]
    across = along(args["angle"], side, device) - per_image(args["shift"], device)
    length = along(args["angle"] + 90, side, device)
    half = per_image(args["width"] / 2, device) * (1.0 + length * per_image(2 * args["taper"], device))
    inside = ((half - across.abs()) / 0.02 + 0.5).clamp(0.0, 1.0) * ((length + 0.35) / 0.02 + 0.5).clamp(0.0, 1.0)
    return pixels(x * (1.0 - inside * per_image(args["darkness"], device) / constant((0.97, 1.0, 1.08), device)))


@kernel(
    "vignette", kind="lighting", role="held_out",
    parameters=[
        severities("falloff", 1.0, 2.0, 3.5, 5.5, 8.0), *(Uniform(f"place_{axis}", -0.05, 0.05) for axis in "xy"),
    ],
)  # fmt: skip
def vignette(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Darkening towards the corners: light falls as 1 / (1 + falloff r² / 4), r = 1 in the middle of an edge."""
    x, device = unit(canvas_BSSC), canvas_BSSC.device
    square = _distance(args, x.shape[1], device) * (4.0 * per_image(args["falloff"] / 4, device))
    return pixels(x / (1.0 + square))


@kernel(
    "overexposure", kind="lighting", role="train",
    parameters=[severities("stops", 1.0, 1.5, 2.0, 2.6, 3.2, unit="stop")],
)  # fmt: skip
def overexposure(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """More light; highlights clip."""
    return pixels(unit(canvas_BSSC) * per_image(np.exp2(args["stops"] / 2), canvas_BSSC.device))


@kernel(
    "underexposure", kind="lighting", role="train",
    parameters=[severities("stops", 1.5, 2.2, 3.0, 4.0, 5.0, unit="stop")],
)  # fmt: skip
def underexposure(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Less light."""
    return pixels(unit(canvas_BSSC) * per_image(np.exp2(-args["stops"] / 2), canvas_BSSC.device))


@kernel(
    "color_temperature", kind="lighting", role="train",
    parameters=[severities("stops", 0.5, 0.8, 1.1, 1.5, 2.0, unit="stop"), Choice("sign", (-1, 1))],
)  # fmt: skip
def color_temperature(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Light that is warm (red up by half of ``stops``, blue down by ``stops``) or cool (the reverse)."""
    device = canvas_BSSC.device
    stops = per_image(args["stops"] * args["sign"], device)
    return pixels(unit(canvas_BSSC) * torch.exp2(stops * constant((0.25, 0.0, -0.5), device)))


@kernel(
    "night", kind="lighting", role="held_out",
    parameters=[severities("stops", 2.5, 3.2, 4.0, 4.8, 5.6, unit="stop"), *_PLACE, Uniform("reach", 0.15, 0.25)],
)  # fmt: skip
def night(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Dim, bluish light without much colour, a warm lamp, and noise."""
    x, device, side = unit(canvas_BSSC), canvas_BSSC.device, canvas_BSSC.shape[1]
    far = _distance(args, side, device) / per_image(args["reach"] ** 2, device)
    lamp = constant((1.0, 0.72, 0.36), device) * (0.75 / (1.0 + far * far))
    ambient = per_image(np.exp2(-args["stops"] / 2), device) * constant((0.7, 0.9, 1.5), device)
    grain = 0.012 * normal(keys_B, "night", (side, side, 1), device)
    return pixels((0.4 * x + 0.6 * _luma(x)) * (ambient + lamp) + grain)


@kernel(
    "backlight", kind="lighting", role="train",
    parameters=[severities("stops", 2.0, 2.8, 3.6, 4.4, 5.2, unit="stop"), *_PLACE],
)  # fmt: skip
def backlight(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """A light behind the scene: its surroundings wash out, all that faces the camera is dark."""
    x, device = unit(canvas_BSSC), canvas_BSSC.device
    halo = 1.0 / (1.0 + 12.0 * _distance(args, x.shape[1], device))
    halo = halo * halo
    dark = x * per_image(np.exp2(-args["stops"] / 2), device)
    return pixels(dark + 1.15 * halo * (0.35 + x) * constant((1.0, 0.97, 0.88), device))


@kernel(
    "dappled_light", kind="lighting", role="train",
    parameters=[severities("stops", 1.0, 1.5, 2.0, 2.6, 3.2, unit="stop")],
)  # fmt: skip
def dappled_light(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Patches of sunlight between the shadows of leaves."""
    x, device = unit(canvas_BSSC), canvas_BSSC.device
    clouds = plasma(keys_B, "dappled_light", x.shape[1], np.full(len(keys_B), 2.0, np.float32), device)[..., None]
    light = ((clouds - 0.5) * 12.0 + 0.5).clamp(0.0, 1.0) - 0.75
    return pixels(x * torch.exp2(light * per_image(args["stops"] / 2, device)) * constant((1.05, 1.0, 0.9), device))


# ghosts along the line from the light through the centre: position (1 is the light), radius, colour
_GHOSTS = (
    (0.45, 0.035, (0.5, 0.9, 0.6)), (-0.35, 0.06, (0.9, 0.6, 0.3)), (-0.7, 0.03, (0.4, 0.6, 1.0)),
    (-1.1, 0.10, (0.7, 0.4, 0.9)),
)  # fmt: skip


@kernel(
    "lens_flare", kind="lighting", role="held_out",
    parameters=[severities("strength", 0.35, 0.5, 0.65, 0.8, 1.0), *_PLACE, _ANGLE],
)  # fmt: skip
def lens_flare(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """A bright light with six rays, a veil, and coloured ghosts opposite to it."""
    x, device, side = unit(canvas_BSSC), canvas_BSSC.device, canvas_BSSC.shape[1]
    square = _distance(args, side, device)
    rays = torch.zeros_like(square)
    dx, dy = (c - per_image(args[f"place_{axis}"], device) for c, axis in zip(plane(side, device), "xy", strict=True))
    for turn in (0, 60, 120):
        radians_B = np.radians(np.asarray(args["angle"], np.float64) + turn)
        off = dx * per_image(150.0 * np.sin(radians_B), device) - dy * per_image(150.0 * np.cos(radians_B), device)
        rays += off.square_().add_(1.0).reciprocal_()
    glow = 1.6 / (1.0 + 180.0 * square) + 0.25 / (1.0 + 4.0 * square) + 0.7 * rays / (1.0 + 18.0 * square)
    channels = [glow * tint for tint in (1.0, 0.95, 0.8)]  # by channel, so that additions are in place
    for position, radius, colour in _GHOSTS:
        disk = _distance(args, side, device, position).sub_(radius**2).div_(-0.15 * radius**2).clamp_(0.0, 1.0)
        for channel, tint in zip(channels, colour, strict=True):
            channel.add_(disk, alpha=0.35 * tint)
    return pixels(x + per_image(args["strength"], device) * torch.cat(channels, -1))


for _name, _role in (("fog", "train"), ("snow", "held_out")):
    register(replace(REGISTRY[f"imagenet_c_{_name}"], name=_name, role=_role))  # type: ignore[arg-type]


@kernel(
    "rain", kind="weather", role="train",
    parameters=[
        severities("drops", 0.004, 0.007, 0.011, 0.016, 0.022, unit="of the pixels"),
        Uniform("angle", 70, 110, unit="degree"),
    ],
)  # fmt: skip
def rain(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Bright streaks of falling drops before a greyer, darker scene."""
    x, device, side = unit(canvas_BSSC), canvas_BSSC.device, canvas_BSSC.shape[1]
    field = bits(keys_B, "rain", (side, side), device)
    length = max(round(12 * side / 224), 2)
    most = upload((args["drops"].astype(np.float64) * 65536).astype(np.int64), device).view(-1, 1, 1)
    drops = (field < most).float() * (1.0 + field % 3)
    weights = np.array(one_sided(length, length / 1.2, 2 * length + 1), np.float32)
    streaks = streaked(drops, np.tile(weights, (len(keys_B), 1)), args["angle"]) * (0.25 * length)
    dull = (0.6 * x + 0.4 * _luma(x)) * 0.78 + 0.05
    layer = streaks.clamp(0.0, 1.0)[..., None] * 0.6
    return pixels(dull + layer * (constant((0.92, 0.96, 1.0), device) - dull))

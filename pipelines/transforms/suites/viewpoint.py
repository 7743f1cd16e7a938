"""Kind *viewpoint*: where the camera stands, and how its optics and shutter move the picture.

Bilinear; borders are mirrored, except those of a picture that is scaled down, which are black.
"""

from __future__ import annotations

import numpy as np
import torch

from substyle.kernels.dispatch import upload
from substyle.kernels.warp import remap
from substyle.pipelines.transforms.base import SUITES, Arrays, Choice, Uniform, kernel
from substyle.pipelines.transforms.suites.fields import Keys, per_image, plane, severities

SUITES["naturalistic30"] = (
    "identity",
    *("directional_light", "cast_shadow", "vignette", "overexposure", "underexposure", "color_temperature"),
    *("night", "backlight", "dappled_light", "lens_flare"),
    *("fog", "rain", "snow"),
    *("rotation", "perspective", "scale", "crop", "flip"),
    *("barrel", "pincushion", "rolling_shutter", "mirror_tiling"),
    *("chromatic_aberration", "bayer", "banding", "hot_pixels"),
    *("dust", "rolling_bands", "sensor_noise", "blooming"),
)

_SIGN = Choice("sign", (-1, 1))
_ANGLE = Uniform("angle", 0, 360, unit="degree")
_PLACE = (Uniform("place_x", -0.5, 0.5, unit="of the room"), Uniform("place_y", -0.5, 0.5, unit="of the room"))


def sampled(canvas_BSSC: torch.Tensor, x_BSS1: torch.Tensor, y_BSS1: torch.Tensor) -> torch.Tensor:
    """Sample the canvas at coordinates from its centre, in sides. Shape: (B, S, S, C) uint8."""
    side, batch = canvas_BSSC.shape[1], len(canvas_BSSC)
    shift_B2SS = torch.empty(batch, 2, side, side, device=canvas_BSSC.device)
    for axis, (there, here) in enumerate(zip((x_BSS1, y_BSS1), plane(side, canvas_BSSC.device), strict=True)):
        shift_B2SS[:, axis] = ((there - here) * side)[..., 0]
    return remap(canvas_BSSC, shift_B2SS)


@kernel(
    "rotation", kind="viewpoint", role="train",
    parameters=[severities("angle", 10, 18, 26, 35, 45, unit="degree"), _SIGN],
)  # fmt: skip
def rotation(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Rotation about the centre."""
    device = canvas_BSSC.device
    x, y = plane(canvas_BSSC.shape[1], device)
    radians_B = np.radians((args["angle"] * args["sign"]).astype(np.float64))
    cosine, sine = per_image(np.cos(radians_B), device), per_image(np.sin(radians_B), device)
    return sampled(canvas_BSSC, cosine * x + sine * y, cosine * y - sine * x)


@kernel(
    "perspective",
    kind="viewpoint",
    role="held_out",
    parameters=[severities("tilt", 0.4, 0.6, 0.8, 0.95, 1.1), _ANGLE],
)
def perspective(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """The picture seen at a slant: one side is nearer, by a factor of (2 + tilt) / (2 - tilt)."""
    device = canvas_BSSC.device
    x, y = plane(canvas_BSSC.shape[1], device)
    radians_B, tilt_B = np.radians(args["angle"].astype(np.float64)), args["tilt"].astype(np.float64)
    slope_x, slope_y = (per_image(tilt_B * f(radians_B), device) for f in (np.cos, np.sin))
    depth = (1.0 - x * slope_x - y * slope_y) * per_image(1.0 + 0.2 * tilt_B, device)
    return sampled(canvas_BSSC, x / depth, y / depth)


@kernel(
    "scale", kind="viewpoint", role="train",
    parameters=[
        severities("factor", 0.85, 0.75, 0.65, 0.55, 0.45),
        *_PLACE,
    ],
)  # fmt: skip
def scale(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """The picture made smaller, somewhere on black."""
    device, room_B = canvas_BSSC.device, 1.0 - args["factor"]
    x, y = (
        (c - per_image(args[f"place_{axis}"] * room_B, device)) * per_image(1.0 / args["factor"], device)
        for c, axis in zip(plane(canvas_BSSC.shape[1], device), "xy", strict=True)
    )
    inside = (x.abs() <= 0.5) & (y.abs() <= 0.5)
    return sampled(canvas_BSSC, x.clamp(-0.5, 0.5), y.clamp(-0.5, 0.5)) * inside.to(torch.uint8)


@kernel(
    "crop", kind="viewpoint", role="train",
    parameters=[
        severities("share", 0.8, 0.65, 0.52, 0.42, 0.33, unit="of the side"),
        *_PLACE,
    ],
)  # fmt: skip
def crop(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """A part of the picture, enlarged."""
    device, room_B = canvas_BSSC.device, 1.0 - args["share"]
    x, y = (
        c * per_image(args["share"], device) + per_image(args[f"place_{axis}"] * room_B, device)
        for c, axis in zip(plane(canvas_BSSC.shape[1], device), "xy", strict=True)
    )
    return sampled(canvas_BSSC, x, y)


@kernel("flip", kind="viewpoint", role="train", parameters=[severities("kind", 1, 2, 3, 4, 5)])
def flip(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Reflections, the usual ones first: left-right (1), top-bottom (2), both (3), about a diagonal (4, 5)."""
    kind_B, device = args["kind"], canvas_BSSC.device
    order_B = np.argsort(kind_B, kind="stable")
    sorted_BSSC = canvas_BSSC.index_select(0, upload(order_B, device))
    across, down, both, diagonal, other = torch.split(
        sorted_BSSC, [int((kind_B == kind).sum()) for kind in range(1, 6)]
    )
    turned = across.flip(2), down.flip(1), both.flip(1, 2), diagonal.transpose(1, 2), other.transpose(1, 2).flip(1, 2)
    return torch.cat(turned).index_select(0, upload(np.argsort(order_B), device))


def _square(canvas_BSSC: torch.Tensor) -> torch.Tensor:
    """Squared distance from the centre, 1 in the middle of an edge. Shape: (1, S, S, 1)."""
    x, y = plane(canvas_BSSC.shape[1], canvas_BSSC.device)
    return 4.0 * (x * x + y * y)


@kernel("barrel", kind="viewpoint", role="train", parameters=[severities("strength", 0.25, 0.45, 0.7, 1.1, 1.7)])
def barrel(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Barrel distortion, as of a wide-angle lens: r is taken from r (1 + strength r²) / (1 + strength)."""
    strength = per_image(args["strength"], canvas_BSSC.device)
    ratio = (1.0 + strength * _square(canvas_BSSC)) / (1.0 + strength)
    x, y = plane(canvas_BSSC.shape[1], canvas_BSSC.device)
    return sampled(canvas_BSSC, x * ratio, y * ratio)


@kernel("pincushion", kind="viewpoint", role="held_out", parameters=[severities("strength", 0.12, 0.2, 0.3, 0.4, 0.5)])
def pincushion(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Pincushion distortion, as of a telephoto lens: r is taken from r (1 + 2 strength) / (1 + strength r²)."""
    strength = per_image(args["strength"], canvas_BSSC.device)
    ratio = (1.0 + 2.0 * strength) / (1.0 + strength * _square(canvas_BSSC))
    x, y = plane(canvas_BSSC.shape[1], canvas_BSSC.device)
    return sampled(canvas_BSSC, x * ratio, y * ratio)


@kernel(
    "rolling_shutter", kind="viewpoint", role="train",
    parameters=[
        severities("skew", 0.15, 0.25, 0.35, 0.5, 0.65, unit="of the side"), _SIGN,
        Uniform("phase", 0, 360, unit="degree"),
    ],
)  # fmt: skip
def rolling_shutter(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Rows read one after the other from a camera that pans and shakes: a slant and waves."""
    device = canvas_BSSC.device
    x, y = plane(canvas_BSSC.shape[1], device)
    skew = per_image(args["skew"] * args["sign"], device)
    rows = y.double() * (2 * np.pi * 1.5) + per_image(np.radians(args["phase"]), device)
    return sampled(canvas_BSSC, x + skew * (y + 0.1 * torch.sin(rows).float()), y)


@kernel("mirror_tiling", kind="viewpoint", role="held_out", parameters=[severities("tiles", 2, 2.5, 3, 4, 5)])
def mirror_tiling(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """The picture several times along each axis, every other one mirrored, as between mirrors."""
    tiles = per_image(args["tiles"], canvas_BSSC.device)
    x, y = plane(canvas_BSSC.shape[1], canvas_BSSC.device)
    return sampled(canvas_BSSC, x * tiles, y * tiles)

"""The 22 obfuscations of Stimberg et al., "Benchmarking Robustness to Adversarial Image Obfuscations", 2023.

Their generator is unpublished; these follow the names and published descriptions. Operations of other suites are reused
with other parameters. Backgrounds and overlaid photographs are those that installed packages ship, disjoint for test
images. Textures are woven, not transferred by a network.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from substyle.kernels.dispatch import upload
from substyle.pipelines.packaged_photographs import paths
from substyle.pipelines.transforms import halftone, overlay, warp
from substyle.pipelines.transforms.base import (
    REGISTRY,
    SUITES,
    Arrays,
    Choice,
    Parameter,
    Role,
    Uniform,
    kernel,
    register,
)
from substyle.pipelines.transforms.overlay_assets import TEST_EVERY
from substyle.pipelines.transforms.suites import viewpoint
from substyle.pipelines.transforms.suites.fields import Keys, along, per_image, picked, pixels, plane, product, unit
from substyle.pipelines.transforms.suites.traces import weights
from substyle.pipelines.transforms.suites.viewpoint import sampled

# 19 obfuscations and the three that are held out
SUITES["obfuscation22"] = (
    "identity",
    *(
        f"obfuscation_{name}"
        for name in (
            *("adversarial_patches", "background_blur_composition", "color_noise_blocks", "halftoning"),
            *("high_contrast_border", "icon_overlay", "image_overlay", "interleave", "invert_lines", "line_shift"),
            *("perspective_transform", "photo_composition", "rotate_blocks", "rotate_image", "swirl_warp"),
            *("text_overlay", "texturize", "wavy_color_warp"),
            *("color_pattern_overlay", "low_contrast_triangles", "perspective_composition"),
        )
    ),
    "style_starry",
)

PREFIX = "obfuscation_"
__all__ = ["halftone", "overlay", "viewpoint", "warp"]  # their transformations are registered on import
_ANGLE = Uniform("angle", 0, 360, unit="degree")
_PHOTO = (Uniform("photo", 0, 1), Uniform("photo_x", 0, 1), Uniform("photo_y", 0, 1))
_ROOM = 1.25  # side of a photograph to take the background from, in canvas sides


def _with(name: str, of: str, role: Role, *parameters: Parameter) -> None:
    """Register an existing transformation with other parameters."""
    known, other = REGISTRY[of], {parameter.name: parameter for parameter in parameters}
    kept = tuple(other.get(p.name, p) for p in known.parameters)
    register(replace(known, name=PREFIX + name, role=role, parameters=kept))


_with("halftoning", "dot_halftone", "train", Uniform("cell", 8, 13, unit="px", count=3))
_with("invert_lines", "inverted_lines", "train", Uniform("band", 3, 7, unit="px"))
_with("icon_overlay", "icon_overlay", "train", Uniform("pitch", 40, 70, unit="px"), Uniform("alpha", 0.7, 0.95))
_with(
    "text_overlay",
    "text_overlay",
    "train",
    Uniform("pitch", 26, 42, unit="px"),
    Uniform("angle", -60, 60, unit="degree"),
)
_with("color_pattern_overlay", "color_pattern", "held_out", Uniform("pitch", 16, 32, unit="px"))
_with("rotate_image", "rotation", "train", Uniform("angle", 30, 150, unit="degree"))
_with("perspective_transform", "perspective", "train", Uniform("tilt", 0.6, 1.0))
_with("swirl_warp", "swirl", "train", Uniform("radius", 0.7, 0.9, unit="S"), Uniform("strength", 7, 11, unit="rad"))


@lru_cache(maxsize=2)
def _photographs(side: int, device: torch.device) -> torch.Tensor:
    """Squares of the packages' photographs. Shape: (N, S, S, 3) uint8."""
    squares = []
    for path in paths():
        with Image.open(path) as opened:
            squares.append(ImageOps.fit(opened.convert("RGB"), (side, side), Image.Resampling.BICUBIC))
    return upload(np.stack([np.asarray(square) for square in squares]), device)


def _chosen(args: Arrays, side: int) -> dict[str, NDArray[Any]]:
    """``photo``: (B,) int64, from every third photograph for test images, from the others for all others."""
    every = np.arange(len(paths()))
    reserved = every % TEST_EVERY == TEST_EVERY - 1
    index_B = {
        test: some[np.minimum((args["photo"] * len(some)).astype(np.int64), len(some) - 1)]
        for test, some in ((True, every[reserved]), (False, every[~reserved]))
    }
    photo_B = np.where(args["test_B"], index_B[True], index_B[False])
    return {name: values for name, values in args.items() if name != "test_B"} | {"photo": photo_B}


def background(canvas_BSSC: torch.Tensor, args: Arrays) -> torch.Tensor:
    """A part of each image's photograph, in [0, 1]. Shape: (B, S, S, 3) float32."""
    side = canvas_BSSC.shape[1]
    large = round(_ROOM * side)
    first_2B = np.rint(np.stack([args["photo_x"], args["photo_y"]]).astype(np.float64) * (large - side))
    left_BS, top_BS = upload((first_2B[..., None] + np.arange(side)).astype(np.int32), canvas_BSSC.device)
    photographs = _photographs(large, canvas_BSSC.device)
    return unit(picked(photographs, top_BS[:, :, None], left_BS[:, None], args["photo"]))


def _placed(args: Arrays, side: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Coordinates in a picture reduced to ``factor``, turned by ``angle`` and moved. Shape: (B, S, S, 1) each."""
    angle_B = args["angle"] if "angle" in args else np.zeros(len(args["factor"]), np.float32)
    room_B, factor = 1.0 - args["factor"], per_image(1.0 / args["factor"], device)
    radians_B = np.radians(np.asarray(angle_B, np.float64))
    centre_x, centre_y = (args[f"place_{axis}"] * room_B for axis in "xy")
    u = along(angle_B, side, device) - per_image(centre_x * np.cos(radians_B) + centre_y * np.sin(radians_B), device)
    v = along(angle_B + 90, side, device) + per_image(
        centre_x * np.sin(radians_B) - centre_y * np.cos(radians_B), device
    )
    return u * factor, v * factor


def _cover(x: torch.Tensor, y: torch.Tensor, half: float, edge: float) -> torch.Tensor:
    """1 inside the square of so many halves of a side, 0 outside, with a soft edge."""
    return ((half - torch.maximum(x.abs(), y.abs())) / edge + 0.5).clamp(0.0, 1.0)


def _over(below: torch.Tensor, above: torch.Tensor, cover: torch.Tensor) -> torch.Tensor:
    return below + (above - below) * cover


_BLURRED = 10  # pixels along each axis that remain of a blurred background
_COMPOSED = (Uniform("factor", 0.5, 0.65), Uniform("place_x", -0.4, 0.4), Uniform("place_y", -0.4, 0.4))


@kernel(
    PREFIX + "background_blur_composition",
    operation="background_blur_composition",
    kind="viewpoint",
    role="train",
    parameters=_COMPOSED,
)
def background_blur_composition(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """The picture made smaller before an enlarged, blurred copy of itself."""
    side, device = canvas_BSSC.shape[1], canvas_BSSC.device
    below = unit(canvas_BSSC).permute(0, 3, 1, 2)
    for sides in ((side, _BLURRED, "box"), (_BLURRED, side, "bicubic")):
        matrix = upload(weights(*sides).astype(np.float32), device).expand(len(below), 1, -1, -1)
        below = product(product(matrix, below), matrix.mT)
    below = below.permute(0, 2, 3, 1)
    x, y = _placed(args, side, device)
    above = unit(sampled(canvas_BSSC, x.clamp(-0.5, 0.5), y.clamp(-0.5, 0.5)))
    return pixels(_over(below, above, _cover(x, y, 0.5, 2 / side)))


@kernel(
    PREFIX + "photo_composition", operation="photo_composition", kind="viewpoint", role="train",
    parameters=[*_COMPOSED, Uniform("angle", -25, 25, unit="degree"), *_PHOTO], prepare=_chosen, split_assets=True,
)  # fmt: skip
def photo_composition(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """The picture as a print with a white frame, lying on another photograph."""
    side, device = canvas_BSSC.shape[1], canvas_BSSC.device
    x, y = _placed(args, side, device)
    above = unit(sampled(canvas_BSSC, x.clamp(-0.5, 0.5), y.clamp(-0.5, 0.5)))
    below = _over(background(canvas_BSSC, args), torch.ones((), device=device), _cover(x, y, 0.56, 2 / side))
    return pixels(_over(below, above, _cover(x, y, 0.5, 2 / side)))


@kernel(
    PREFIX + "perspective_composition", operation="perspective_composition", kind="viewpoint", role="held_out",
    parameters=[Uniform("tilt", 0.8, 1.2), _ANGLE, *_PHOTO], prepare=_chosen, split_assets=True,
)  # fmt: skip
def perspective_composition(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """The picture at a slant before another photograph."""
    side, device = canvas_BSSC.shape[1], canvas_BSSC.device
    x, y = plane(side, device)
    depth = 0.75 - along(args["angle"], side, device) * per_image(0.75 * args["tilt"], device)
    x, y = x / depth, y / depth
    above = unit(sampled(canvas_BSSC, x.clamp(-0.5, 0.5), y.clamp(-0.5, 0.5)))
    return pixels(_over(background(canvas_BSSC, args), above, _cover(x, y, 0.5, 2 / side)))


@kernel(
    PREFIX + "image_overlay", operation="image_overlay", kind="overlay", role="train",
    parameters=[Uniform("alpha", 0.4, 0.55), *_PHOTO], prepare=_chosen, split_assets=True,
)  # fmt: skip
def image_overlay(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Another photograph, half transparent."""
    alpha = per_image(args["alpha"], canvas_BSSC.device)
    return pixels(_over(unit(canvas_BSSC), background(canvas_BSSC, args), alpha))


def _stripes(band_B: NDArray[np.floating], vertical_B: NDArray[np.floating], side: int) -> NDArray[np.int64]:
    """Number of the stripe of each pixel. Shape: (B, S, S)."""
    row_BS = np.floor((np.arange(side) + 0.5) / np.asarray(band_B, np.float64)[:, None]).astype(np.int64)
    upright = np.asarray(vertical_B)[:, None, None] == 1
    return np.broadcast_to(np.where(upright, row_BS[:, None, :], row_BS[:, :, None]), (len(row_BS), side, side))


@kernel(
    PREFIX + "interleave", operation="interleave", kind="overlay", role="train",
    parameters=[Uniform("band", 6, 14, unit="px"), Choice("vertical", (0, 1)), *_PHOTO],
    prepare=_chosen, split_assets=True,
)  # fmt: skip
def interleave(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Every other stripe is of another photograph."""
    stripes = _stripes(args["band"], args["vertical"], canvas_BSSC.shape[1])
    other = upload(stripes % 2 == 1, canvas_BSSC.device)[..., None]
    return torch.where(other, pixels(background(canvas_BSSC, args)), canvas_BSSC)


_LINES = 96


@kernel(
    PREFIX + "line_shift", operation="line_shift", kind="warp", role="train",
    parameters=[
        Uniform("band", 3, 8, unit="px"), Choice("vertical", (0, 1)), Uniform("reach", 20, 45, unit="px"),
        Uniform("shift", 0.3, 1, unit="of the reach", count=_LINES),
    ],
)  # fmt: skip
def line_shift(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Bands of rows, or of columns, shifted to either side in turn; what leaves comes back on the other side."""
    side, device = canvas_BSSC.shape[1], canvas_BSSC.device
    band_BS = (np.arange(side) / np.maximum(args["band"].astype(np.float64), 1)[:, None]).astype(np.int64)
    reach_BS = args["reach"][:, None] * np.take_along_axis(args["shift"], band_BS % _LINES, 1)
    shift_BS = upload(np.rint(reach_BS * (1 - 2 * (band_BS % 2))).astype(np.int32), device)
    vertical = upload(args["vertical"] == 1, device).view(-1, 1, 1)
    line_S = torch.arange(side, device=device, dtype=torch.int32)
    row = ((line_S[:, None] + shift_BS[:, None]) % side).where(vertical, line_S[:, None])
    column = line_S.where(vertical, (line_S + shift_BS[:, :, None]) % side)
    return picked(canvas_BSSC, row, column, np.arange(len(canvas_BSSC)))


_BLOCKS = 6


@kernel(
    PREFIX + "rotate_blocks", operation="rotate_blocks", kind="warp", role="train",
    parameters=[Choice("blocks", (3, 4, 5, _BLOCKS)), Uniform("turn", 0, 1, count=_BLOCKS**2)],
)  # fmt: skip
def rotate_blocks(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """A grid of blocks, each rotated by 90, 180 or 270 degrees."""
    side, batch = canvas_BSSC.shape[1], len(canvas_BSSC)
    at_B2SS = np.empty((batch, 2, side, side), np.float32)
    for i, blocks in enumerate(args["blocks"].astype(int).tolist()):
        scaled_S = (np.arange(side) + 0.5) / side * blocks
        block_S = np.floor(scaled_S).astype(np.int64)
        local_S = scaled_S - block_S - 0.5
        turn = 1 + np.minimum((args["turn"][i].reshape(_BLOCKS, _BLOCKS) * 3).astype(np.int64), 2)
        turn_SS = turn[block_S[:, None], block_S]
        cosine, sine = np.array([1, 0, -1, 0])[turn_SS], np.array([0, 1, 0, -1])[turn_SS]
        x, y = local_S[None, :], local_S[:, None]
        at_B2SS[i] = np.stack([block_S + 0.5 + cosine * x + sine * y, block_S[:, None] + 0.5 + cosine * y - sine * x])
        at_B2SS[i] = at_B2SS[i] / blocks - 0.5
    at = upload(at_B2SS, canvas_BSSC.device)[..., None]
    return sampled(canvas_BSSC, at[:, 0], at[:, 1])


@kernel(
    PREFIX + "wavy_color_warp", operation="wavy_color_warp", kind="warp", role="train",
    parameters=[
        Uniform("depth", 0.025, 0.05, unit="of the side"), Uniform("waves", 2.5, 5.0, count=2),
        Uniform("phase", 0, 360, unit="degree", count=2), Uniform("apart", 60, 140, unit="degree"),
    ],
)  # fmt: skip
def wavy_color_warp(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Waves that move red, green and blue apart."""
    side, device, out_BSSC = canvas_BSSC.shape[1], canvas_BSSC.device, torch.empty_like(canvas_BSSC)
    x, y = plane(side, device)
    line_S, depth_B1 = (np.arange(side) + 0.5) / side, args["depth"][:, None]
    for channel in range(3):
        waves_BS = [
            depth_B1 * np.sin(
                2 * np.pi * args["waves"][:, axis, None] * line_S
                + np.radians(args["phase"][:, axis, None] + channel * args["apart"][:, None])
            )
            for axis in (0, 1)
        ]  # fmt: skip
        move_x, move_y = (upload(wave.astype(np.float32), device) for wave in waves_BS)
        one = slice(channel, channel + 1)
        moved = x + move_x.view(-1, side, 1, 1), y + move_y.view(-1, 1, side, 1)
        out_BSSC[..., one] = sampled(canvas_BSSC[..., one].contiguous(), *moved)
    return out_BSSC


def _faint(canvas_BSSC: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Differences from mid-grey times a factor, in [0, 1]."""
    return 0.5 + (unit(canvas_BSSC) - 0.5) * factor


_PATCHES = 4


@kernel(
    PREFIX + "adversarial_patches", operation="adversarial_patches", kind="overlay", role="train",
    parameters=[
        Uniform("place_x", -0.4, 0.4, count=_PATCHES), Uniform("place_y", -0.4, 0.4, count=_PATCHES),
        Uniform("radius", 0.09, 0.16, unit="of the side", count=_PATCHES),
        Uniform("wave", 0.3, 1, signed=True, count=12),
    ],
)  # fmt: skip
def adversarial_patches(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Round stickers with vivid, swirling colours."""
    side, device = canvas_BSSC.shape[1], canvas_BSSC.device
    x, y = plane(side, device)

    def wave(i: int, scale: float) -> torch.Tensor:
        return per_image(scale * args["wave"][:, i], device)

    bent = torch.sin(x * wave(0, 50) + y * wave(1, 50)) * 2.5 + torch.sin(x * wave(2, 90) - y * wave(3, 90)) * 1.5
    colours = [
        0.5 + 0.6 * torch.sin(bent + x * wave(4 + 2 * i, 120) + y * wave(5 + 2 * i, 120) + 2.1 * i) for i in range(3)
    ]
    cover = torch.zeros((), device=device)
    for i in range(_PATCHES):
        dx, dy = (c - per_image(args[f"place_{axis}"][:, i], device) for c, axis in ((x, "x"), (y, "y")))
        disk = (per_image(args["radius"][:, i], device) - (dx * dx + dy * dy).sqrt()) * side + 0.5
        cover = torch.maximum(cover, disk.clamp(0.0, 1.0))
    return pixels(_over(unit(canvas_BSSC), torch.cat(colours, -1), cover))


_CELLS = 14


def _table(values_BN: NDArray[np.floating], count_B: NDArray[np.floating], most: int, side: int) -> NDArray[Any]:
    """Spread values over a grid of each image's number of cells. Shape: (B, most * most) to (B, S, S)."""
    cell_BS = ((np.arange(side) + 0.5) / side * np.asarray(count_B)[:, None]).astype(np.int64)
    grid_BCC = values_BN.reshape(-1, most, most)
    image_B11 = np.arange(len(values_BN))[:, None, None]
    return np.asarray(grid_BCC[image_B11, cell_BS[:, :, None], cell_BS[:, None, :]])


@kernel(
    PREFIX + "color_noise_blocks", operation="color_noise_blocks", kind="overlay", role="train",
    parameters=[
        Choice("cells", (8, 10, 12, _CELLS)), Uniform("channel", 0, 3, count=_CELLS**2),
        Uniform("shift", 0.25, 0.6, unit="of full range", signed=True, count=_CELLS**2),
    ],
)  # fmt: skip
def color_noise_blocks(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """A grid of blocks; a random value is added to one channel of each."""
    channel, shift = (_table(args[name], args["cells"], _CELLS, canvas_BSSC.shape[1]) for name in ("channel", "shift"))
    added = np.where(channel.astype(np.int64)[..., None] == np.arange(3), shift[..., None], np.float32(0.0))
    return pixels(unit(canvas_BSSC) + upload(added, canvas_BSSC.device))


@kernel(
    PREFIX + "high_contrast_border", operation="high_contrast_border", kind="overlay", role="train",
    parameters=[
        Uniform("width", 0.1, 0.17, unit="of the side"), Uniform("cell", 6, 12, unit="px"),
        Choice("pattern", (0, 1)), Uniform("slope", -1, 1), Uniform("factor", 0.35, 0.6),
    ],
)  # fmt: skip
def high_contrast_border(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Lower contrast within a border of black and white checks (pattern 0) or stripes (pattern 1)."""
    side, device = canvas_BSSC.shape[1], canvas_BSSC.device
    x, y = plane(side, device)
    cells = per_image(side / args["cell"], device)
    checks = (x * cells).floor() + (y * cells).floor()
    stripes = (x * cells + y * cells * per_image(args["slope"], device)).floor()
    kind = torch.where(per_image(args["pattern"], device) == 1, stripes, checks)
    border = torch.maximum(x.abs(), y.abs()) > per_image(0.5 - args["width"], device)
    pattern = (kind.remainder(2) * 255).to(torch.uint8)
    return torch.where(border, pattern, pixels(_faint(canvas_BSSC, per_image(args["factor"], device))))


@kernel(
    PREFIX + "texturize", operation="texturize", kind="style", role="train",
    parameters=[Uniform("thread", 4, 7, unit="px"), Uniform("depth", 0.55, 0.8), _ANGLE],
)  # fmt: skip
def texturize(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Painted on coarse canvas: threads that pass over and under each other."""
    side, device = canvas_BSSC.shape[1], canvas_BSSC.device
    threads = per_image(side / args["thread"], device)
    u, v = (along(args["angle"] + turn, side, device) * threads for turn in (0, 90))
    over = (u.floor() + v.floor()).remainder(2) == 1
    within = torch.where(over, u - u.floor(), v - v.floor())
    shade = 4.0 * within * (1.0 - within)  # a round thread
    return pixels(unit(canvas_BSSC) * (1.15 - per_image(args["depth"], device) * (1.0 - shade)))


_TRIANGLES = 6


@kernel(
    PREFIX + "low_contrast_triangles", operation="low_contrast_triangles", kind="overlay", role="held_out",
    parameters=[Choice("cells", (3, 4, 5, _TRIANGLES)), Uniform("factor", 0.05, 0.6, count=2 * _TRIANGLES**2)],
)  # fmt: skip
def low_contrast_triangles(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Triangles, each with another, low contrast."""
    side = canvas_BSSC.shape[1]
    lower, upper = (_table(half, args["cells"], _TRIANGLES, side) for half in np.split(args["factor"], 2, axis=1))
    local_BS = (np.arange(side) + 0.5) / side * args["cells"][:, None] % 1.0
    factor_BSS = np.where(local_BS[:, :, None] > local_BS[:, None, :], lower, upper)
    return pixels(_faint(canvas_BSSC, upload(factor_BSS, canvas_BSSC.device)[..., None]))

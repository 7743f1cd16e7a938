"""Kind *overlay*: icons, words or a lattice tiled over the image.

A pattern is a page of an atlas, warped by one matrix per image and blended. Pages are graph inputs: DALI would copy a
constant for every image of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels import tables
from substyle.kernels.dispatch import upload
from substyle.pipelines.transforms import overlay_assets
from substyle.pipelines.transforms.base import Arrays, Choice, Node, Uniform, beside, dali

ALPHA_ONE = 1 << tables.WEIGHT_SHIFT  # opacity in 128ths: (colour - pixel) * opacity fits 16 bits

Build = Callable[[int], overlay_assets.OverlayAssets]

PLACE = (  # page, colour and offset, drawn per image
    Uniform("page", 0, 1),
    Uniform("hue", 0, 360, unit="degree"),
    Uniform("shift_x", 0, 1, unit="cell"),
    Uniform("shift_y", 0, 1, unit="cell"),
)


def vivid(hue_B: NDArray[np.float64]) -> NDArray[np.int16]:
    """Fully saturated RGB colours of full value for hues in degrees (HSV). Shape: (B, 3) int16."""
    sector_B3 = (hue_B[:, None] / 60 + np.array([0, 4, 2])) % 6
    level_B3 = np.rint(np.clip(np.abs(sector_B3 - 3) - 1, 0, 1) * 255)
    return np.asarray(level_B3, dtype=np.int16)


def _pick(
    pages: overlay_assets.OverlayAssets, u_B: NDArray[np.float32], test_B: NDArray[np.bool_] | None
) -> NDArray[np.int64]:
    """Pick pages by uniform random numbers, from those allowed for each image. Shape: (B,) int64."""
    if test_B is None:
        return _index(u_B, len(pages.pages_NPP))
    train, test = pages.choices(test=False), pages.choices(test=True)
    picked: NDArray[np.int64] = np.where(test_B, test[_index(u_B, len(test))], train[_index(u_B, len(train))])
    return picked


def _index(u_B: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    return np.minimum((u_B * count).astype(np.int64), count - 1)  # a rounded u may be 1


def _placed(build: Build, args: Arrays, side: int) -> dict[str, Any]:
    """Page, matrix from canvas to atlas px, colour and opacity of each image."""
    pages = build(side)
    scale_B = pages.cell / args["pitch"].astype(np.float64)
    angle_B = np.radians(args["angle"].astype(np.float64))
    cosine_B, sine_B = scale_B * np.cos(angle_B), scale_B * np.sin(angle_B)
    middle = pages.pages_NPP.shape[1] / 2
    centre_x_B = middle + (args["shift_x"] - 0.5) * pages.cell
    centre_y_B = middle + (args["shift_y"] - 0.5) * pages.cell
    half = side / 2
    matrix_B23 = np.stack(
        [
            np.stack([cosine_B, -sine_B, centre_x_B - half * (cosine_B - sine_B)], axis=1),
            np.stack([sine_B, cosine_B, centre_y_B - half * (sine_B + cosine_B)], axis=1),
        ],
        axis=1,
    )
    return {
        "page": Pages(build, side, _pick(pages, args["page"], args.get("test_B"))),
        "matrix": matrix_B23.astype(np.float32),
        "colour": vivid(args["hue"].astype(np.float64))[:, None, None, :],
        "opacity": (args["alpha"] * (ALPHA_ONE / 255)).astype(np.float32),
    }


class Pages:
    """Each image's page, gathered on the device of the canvas, where the pages of an atlas stay.

    Args:
        page_B: indices of pages.
    """

    on_device = True

    def __init__(self, build: Build, side: int, page_B: NDArray[np.int64]) -> None:
        self.build, self.side, self.page_B = build, side, page_B

    def on(self, device: torch.device) -> NDArray[np.uint8] | torch.Tensor:
        """The pages (B, P, P, 1) uint8."""
        if device.type == "cpu":
            return self.build(self.side).pages_NPP[self.page_B, :, :, None]
        return overlay_assets.on_device(self.build, self.side, device)[upload(self.page_B, device)][..., None]


def _placer(build: Build) -> Callable[[Arrays, int], Arrays]:
    """Return a ``prepare`` for :func:`_blend`."""
    return lambda args, side: _placed(build, args, side)


def _blend(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """Blend a colour by the coverage of the warped page; ``opacity`` converts coverage to 128ths."""
    from nvidia.dali import fn, types

    page = fn.reinterpret(beside(canvas, args["page"]), layout="HWC")
    coverage = fn.warp_affine(page, beside(canvas, args["matrix"]), size=[side, side], interp_type=types.INTERP_LINEAR)
    weight = fn.brightness(coverage, brightness=args["opacity"])
    # three equal channels: arithmetic without broadcasting takes half the time
    weight = fn.color_space_conversion(weight, image_type=types.GRAY, output_type=types.RGB)
    towards = beside(canvas, args["colour"]) - canvas
    return fn.cast(canvas + ((towards * weight) >> types.Constant(7).int16()), dtype=types.UINT8)


@dali(
    "icon_overlay",
    kind="overlay",
    role="train",
    parameters=[
        *PLACE,
        Uniform("pitch", 20, 32, unit="px"),
        Uniform("alpha", 0.4, 0.6),
        Uniform("angle", -20, 20, unit="degree"),
    ],
    prepare=_placer(overlay_assets.icons),
    version=2,
    split_assets=True,
)
def icon_overlay(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """One icon, tiled in a vivid colour."""
    return _blend(canvas, args, side)


@dali(
    "text_overlay",
    kind="overlay",
    role="train",
    parameters=[
        *PLACE,
        Uniform("pitch", 14, 24, unit="px"),
        Choice("alpha", (1.0,)),
        Uniform("angle", -20, 20, unit="degree"),
    ],
    prepare=_placer(overlay_assets.words),
    version=2,
    split_assets=True,
)
def text_overlay(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """One word, repeated in lines of a vivid colour."""
    return _blend(canvas, args, side)


@dali(
    "color_pattern",
    kind="overlay",
    role="held_out",
    parameters=[
        *PLACE,
        Uniform("pitch", 6, 12, unit="px"),
        Uniform("alpha", 0.5, 0.8),
        Uniform("angle", 0, 90, unit="degree"),
    ],
    prepare=_placer(overlay_assets.lattices),
    version=2,
)
def color_pattern(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """A fine lattice in a vivid colour: a grid, dots, checks, bricks or triangles."""
    return _blend(canvas, args, side)

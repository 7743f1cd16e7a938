"""Overlays against plain numpy; coordinates stay inside pages, and test images have disjoint pages."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.pipelines.conftest import make_variant, parameters

from substyle.kernels import philox
from substyle.pipelines.transforms import base, overlay, overlay_assets
from substyle.pipelines.variants import load_all

ATLASES = {
    "icon_overlay": overlay_assets.icons,
    "text_overlay": overlay_assets.words,
    "color_pattern": overlay_assets.lattices,
}


def sample(page: NDArray[np.uint8], matrix: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Sample the page at ``matrix`` times the canvas's pixel centres, bilinearly."""
    y, x = np.mgrid[0:side, 0:side] + 0.5
    u = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] - 0.5
    v = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] - 0.5
    left, top = np.floor(u).astype(int), np.floor(v).astype(int)
    a, b = u - left, v - top
    page = page.astype(np.float64)
    upper = page[top, left] * (1 - a) + page[top, left + 1] * a
    lower = page[top + 1, left] * (1 - a) + page[top + 1, left + 1] * a
    return upper * (1 - b) + lower * b


@pytest.mark.parametrize("name", sorted(ATLASES))
def test_blend(name: str, canvas: NDArray[np.uint8]) -> None:
    made, _ = make_variant(name, canvas)
    side = canvas.shape[1]
    args = parameters(name, side)
    page_BPP1 = base.feed(args["page"])
    for i, (image, result) in enumerate(zip(canvas.astype(np.float64), made, strict=True)):
        coverage = sample(page_BPP1[i, :, :, 0], args["matrix"][i].astype(np.float64), side)
        weight = (coverage * args["opacity"][i] / 128)[..., None]
        expected = image + (args["colour"][i, 0, 0].astype(np.float64) - image) * weight
        # Coverage is rounded to a byte, weights to 128ths and the blend down: up to 3 levels, half of one on average.
        assert np.abs(result - expected).max() <= 3
        assert np.abs(result - expected).mean() <= 0.8


@pytest.mark.parametrize("side", [32, 97, 336])
@pytest.mark.parametrize("name", sorted(ATLASES))
def test_a_canvas_never_leaves_its_page(name: str, side: int) -> None:
    load_all()
    transformation = base.get(name)
    raw = {p.name: p.sample(np.zeros((1, 2)), side) for p in transformation.parameters}
    declared = {p.name: p for p in transformation.parameters}
    pitch, angle = declared["pitch"], declared["angle"]
    assert isinstance(pitch, base.Uniform)
    assert isinstance(angle, base.Uniform)
    corners = np.array([[0, 0, 1], [side, 0, 1], [0, side, 1], [side, side, 1]], np.float64)
    for degrees in np.linspace(angle.low, angle.high, 7):
        for shift_x, shift_y in [(0, 0), (0, 1), (1, 0), (1, 1)]:
            own = {"pitch": pitch.low * side / 224, "angle": degrees, "shift_x": shift_x, "shift_y": shift_y}
            args = raw | {each: np.array([value], np.float32) for each, value in own.items()}
            if transformation.split_assets:
                args["test_B"] = np.zeros(1, np.bool_)
            assert transformation.prepare is not None
            prepared = transformation.prepare(args, side)
            at = corners @ prepared["matrix"][0].T
            assert at.min() >= 1
            assert at.max() <= base.feed(prepared["page"]).shape[1] - 1


@pytest.mark.parametrize("name", ["icon_overlay", "text_overlay"])
def test_test_images_see_other_motifs(name: str) -> None:
    load_all()
    keys = philox.image_keys(0, [str(i) for i in range(3000)])
    raw = dataclasses.replace(base.get(name), prepare=None).draw(keys, 32, np.arange(3000) % 2 == 1)
    pages = ATLASES[name](32)
    picked = overlay._pick(pages, raw["page"], raw["test_B"])
    train, test = set(picked[::2].tolist()), set(picked[1::2].tolist())
    assert not train & test
    assert train | test == set(range(len(pages.pages_NPP)))  # every motif is used
    assert set(overlay._pick(pages, np.ones(2, np.float32), np.array([False, True]))) <= train | test


def test_test_images_change_only_motifs(canvas: NDArray[np.uint8]) -> None:
    none, _ = make_variant("icon_overlay", canvas)
    same, _ = make_variant("icon_overlay", canvas, test_B=np.zeros(len(canvas), np.bool_))
    half = np.arange(len(canvas)) % 2 == 0
    some, _ = make_variant("icon_overlay", canvas, test_B=half)
    assert np.array_equal(none, same)
    assert np.array_equal(none[~half], some[~half])
    assert (none[half] != some[half]).any()


def test_motifs_are_many_and_distinct() -> None:
    icons, words, lattices = (
        build(224).pages_NPP for build in (overlay_assets.icons, overlay_assets.words, overlay_assets.lattices)
    )
    assert len(icons) == 48
    assert len(overlay_assets.icons(224).choices(test=False)) >= 32
    assert len(words) >= 200
    assert len(lattices) >= 4
    cell = overlay_assets.icons(224).cell
    tiles = icons[:, :cell, :cell].reshape(len(icons), -1).astype(np.float64)
    gaps = np.abs(tiles[:, None] - tiles[None]).mean(-1) + 255 * np.eye(len(tiles))
    assert gaps.min() > 4  # grey levels on average between any two icons
    for pages in (icons, words, lattices):
        assert len({page.tobytes() for page in pages}) == len(pages)
        assert (pages.mean((1, 2)) > 20).all()
        assert (pages.mean((1, 2)) < 200).all()


def test_vivid_colours() -> None:
    colours = overlay.vivid(np.array([0, 60, 240, 300, 30], np.float64)).tolist()
    assert colours == [[255, 0, 0], [255, 255, 0], [0, 0, 255], [255, 0, 255], [255, 128, 0]]

"""Stylisations: each depends on its picture and key alone, is visible and unlike the others; arithmetic in loops."""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from tests.determinism.canvases import Picture, stack

from substyle.kernels import philox
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import suite
from substyle.pipelines.transforms.style import by_generator
from substyle.pipelines.transforms.suites import stylize
from substyle.pipelines.variants import VariantMaker

NAMES = suite("styles48")
GENERATORS = {name: [NAMES[i] for i in own] for name, own in by_generator(NAMES).items()}
DRAWN = {name: own for name, own in GENERATORS.items() if base.get(own[0]).made_by == "kernel"}
STYLES = tuple(style for own in DRAWN.values() for style in own)
PICTURES = [Picture(kind, 0) for kind in ("photograph", "scene", "noise")]
KEY = philox.image_keys(0, ["a"])[0]


def made(names: tuple[str, ...], pictures: list[Picture], side: int) -> dict[str, torch.Tensor]:
    maker = VariantMaker(names, side=side, seed=0, batch=len(pictures), threads=1)
    canvas = torch.from_numpy(stack(pictures, side))
    return {each.name: each.pixels_BSSC for each in maker(canvas, [picture.key for picture in pictures])}


def picture(side: int, seed: int = 0) -> NDArray[np.float32]:
    return (Picture("photograph", seed).canvas(side) / 255).astype(np.float32)


def painted(name: str, x: NDArray[np.float32], **parameters: Any) -> NDArray[Any]:  # noqa: ANN401 - numbers or arrays
    """A picture by the generator of a style, with some parameters in place of its own."""
    transformation = base.get(name)
    assert transformation.function is not None
    drawn = transformation.draw(np.array([KEY]), len(x))
    own = {each: values[0] for each, values in drawn.items()} | parameters
    style = getattr(stylize, transformation.generator)
    found: NDArray[Any] = style(x, stylize._random(KEY, "test"), SimpleNamespace(**own))
    return found


def test_the_suite() -> None:
    assert len(NAMES) == 49
    assert len(GENERATORS) == 12
    assert len(DRAWN) == 10
    assert {len(own) for own in GENERATORS.values()} == {4}
    known = [base.get(name) for name in NAMES[1:]]
    assert {each.kind for each in known} == {"style"}
    assert [each.name for each in known if each.role == "train"] == ["style_starry", "style_expressionist"]


@pytest.mark.slow
def test_all_are_visible_and_unlike_each_other() -> None:
    x = torch.from_numpy(stack(PICTURES, 224)).double()
    for own in DRAWN.values():
        variants = {name: pixels.double() for name, pixels in made(tuple(own), PICTURES, 224).items()}
        for name, pixels in variants.items():
            assert float((pixels - x).abs().mean((1, 2, 3)).min()) > 5, name
        for one, other in combinations(own, 2):
            assert float((variants[one] - variants[other]).abs().mean((1, 2, 3)).min()) > 7, (one, other)


def test_the_picture_is_still_there() -> None:
    """Blurred brightness of a style goes with that of its own photograph more than with that of another one."""
    photographs = [Picture("photograph", seed) for seed in (0, 1)]

    def kind(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        return ndimage.gaussian_filter(pixels.mean(-1), 3).ravel()

    own, other = (kind(each.canvas(112)) for each in photographs)
    for name, pixels in made(STYLES, photographs[:1], 112).items():
        found = kind(pixels[0].numpy())
        right, wrong = (abs(np.corrcoef(found, each)[0, 1]) for each in (own, other))
        assert right > max(0.5, wrong), (name, right, wrong)


def test_kuwahara_against_its_definition() -> None:
    x = picture(24)
    radius, sharpness = 2.0, 3.0
    found = painted("style_kuwahara_gouache", x, radius=radius, sharpness=sharpness, vivid=1.0)
    grey = x @ np.array([0.299, 0.587, 0.114])
    mean = ndimage.gaussian_filter(x.astype(np.float64), (1, 1, 0), truncate=2.5)
    square = ndimage.gaussian_filter(grey**2, 1, truncate=2.5)
    expected = np.empty_like(x)
    for row, column in np.ndindex(24, 24):
        total = weights = 0.0
        for turn in (np.arange(8) + 0.5) * np.pi / 4:
            down, across = round(radius * np.sin(turn)), round(radius * np.cos(turn))
            at = min(max(row + down, 0), 23), min(max(column + across, 0), 23)
            variance = square[at] - (mean[at] @ np.array([0.299, 0.587, 0.114])) ** 2
            weight = (max(variance, 0) + 1e-4) ** -sharpness
            total, weights = total + weight * mean[at], weights + weight
        expected[row, column] = total / weights
    np.testing.assert_allclose(found, stylize.stretched(expected), atol=5e-3)


def test_ink_against_its_definition() -> None:
    x = picture(48)
    found = painted("style_ink_pen", x, sigma=1.0, ink=np.zeros(3), paper=np.full(3, 255.0))
    grey = stylize.stretched(stylize.luma(x)).astype(np.float64)
    narrow, wide = (ndimage.gaussian_filter(grey, sigma, truncate=2.5) for sigma in (1.0, 1.6))
    raised = 21 * narrow - 20 * wide
    expected = np.where(raised >= narrow.mean(), 1, 1 + np.tanh(25 * (raised - narrow.mean())))
    np.testing.assert_allclose(found[..., 0], expected, atol=1e-3)


def test_a_line_integral_against_its_definition() -> None:
    x = picture(40)
    found = painted("style_flow_long", x, length=6.0, grain=0.0, vivid=1.0, calm=2.0, turn=0.0)
    heading = stylize.along_edges(stylize.luma(x), 2.0)
    for row, column in ((20, 20), (0, 5), (33, 39)):
        passed = [x[row, column]]
        for sign in (1, -1):
            place, step = complex(column, row), sign * heading[row, column]
            for _ in range(4):
                place += 1.5 * step
                at = min(max(round(place.imag), 0), 39), min(max(round(place.real), 0), 39)
                passed.append(x[at])
                ahead = heading[at]
                step = ahead if (ahead * step.conjugate()).real >= 0 else -ahead
        np.testing.assert_allclose(found[row, column], np.mean(passed, 0), atol=1e-5)


def test_text_is_read_as_itself() -> None:
    """A picture that is a page of blurred characters gets these characters."""
    height, width = 16, 10
    cover = stylize._glyphs(stylize._TEXT, height, width)
    near = np.stack([stylize.blurred(each, height / 8) for each in cover])
    near /= near.mean((1, 2)).max()
    dense = np.flatnonzero((near.max((1, 2)) < 1) | (near.mean((1, 2)) > 0.3))[:36]
    assert len(dense) == 36
    page = np.concatenate([np.concatenate(near[dense[first : first + 8]], 1) for first in range(0, 32, 8)])[:64, :64]
    x = np.repeat((1 - page)[..., None], 3, 2).astype(np.float32)
    top, left = (int(part) for part in stylize._random(KEY, "test")(2) * (height, width))  # of the first cell, cut off
    tone = 1 - stylize.stretched(stylize.luma(x))
    found = painted("style_glyphs_typewriter", x, cell=16.0, ink=np.zeros(3), paper=np.full(3, 255.0), narrow=0.625)
    for row in range(height - top, 64 - height, height):
        for column in range(width - left, 64 - width, width):
            part = slice(row, row + height), slice(column, column + width)
            best = min(range(len(near)), key=lambda k: float(((tone[part] - near[k]) ** 2).sum()))
            np.testing.assert_allclose(found[part][..., 0], 1 - cover[best], atol=1e-5)

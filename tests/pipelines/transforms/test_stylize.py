"""Stylisations: each depends on its picture and key alone, is visible and unlike the others; arithmetic in loops."""

from __future__ import annotations

from itertools import combinations, pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from tests.conftest import slow_after
from tests.determinism.canvases import Picture, stack

from substyle.engine.store.catalog import Definition
from substyle.kernels import philox
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.base import Transformation
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


def test_the_generator_is_no_part_of_the_identity() -> None:
    one, other = (Transformation("t", "style", "train", "network", network="n", generator=g) for g in ("", "g"))
    assert Definition(one.describe()).declared == Definition(other.describe()).declared
    assert one.describe() == other.describe()


def test_generators_of_the_other_suites() -> None:
    assert by_generator(suite("substance31")) == by_generator(suite("obfuscation22")) == {}
    networks = {name: len(own) for name, own in by_generator(suite("substance36")).items()}
    assert networks == {"multistyle": 5, "arbitrary": 5}


@pytest.mark.parametrize("side", slow_after(1, [64, 97]))
def test_pixels_do_not_depend_on_the_company(side: int) -> None:
    torch.set_num_threads(4)
    whole = made(STYLES, PICTURES, side)
    torch.set_num_threads(1)
    order = [2, 0]
    for name, pixels in made(STYLES[::-1], [PICTURES[i] for i in order], side).items():
        assert torch.equal(pixels, whole[name][order]), name


def test_another_key_is_another_picture() -> None:
    maker = VariantMaker(STYLES, side=96, seed=0, batch=5, threads=1)
    canvas = torch.from_numpy(stack(PICTURES[:1], 96)).expand(5, -1, -1, -1)
    for variant in maker(canvas, list("abcde")):
        assert len({pixels.numpy().tobytes() for pixels in variant.pixels_BSSC}) > 1, variant.name


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
        return ndimage.gaussian_filter(pixels.mean(-1), 6).ravel()

    own, other = (kind(each.canvas(224)) for each in photographs)
    for name, pixels in made(STYLES, photographs[:1], 224).items():
        found = kind(pixels[0].numpy())
        right, wrong = (abs(np.corrcoef(found, each)[0, 1]) for each in (own, other))
        assert right > max(0.5, wrong), (name, right, wrong)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [32, 64])
def test_pictures_of_one_colour(side: int) -> None:
    flat = [Picture(kind, 0) for kind in ("black", "white", "grey", "tint")]
    for name, pixels in made(STYLES, flat, side).items():
        assert pixels.shape == (4, side, side, 3), name


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", slow_after(0, STYLES))
def test_large_canvases(name: str) -> None:
    """Parameters in px grow with the canvas: reduced, a large picture is about as light as a small one."""
    small, large = (made((name,), PICTURES[:1], side)[name][0].double() for side in (224, 1024))
    assert float((large.mean((0, 1)) - small.mean((0, 1))).abs().max()) < 25


def test_random_numbers_are_uniform_and_keyed() -> None:
    random = stylize._random(KEY, "a")
    first, second = random(300, 300), random(300, 300)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.02
    assert 0 < first.min() < first.max() < 1
    np.testing.assert_allclose(np.histogram(first, 10, (0, 1))[0], 9000, atol=400)
    np.testing.assert_array_equal(stylize._random(KEY, "a")(300, 300), first)
    assert not np.array_equal(stylize._random(KEY, "b")(300, 300), first)
    assert not np.array_equal(stylize._random(KEY + np.uint64(1), "a")(300, 300), first)


def test_discs_lie_over_earlier_ones() -> None:
    rng = np.random.default_rng(0)
    centre, colour = rng.uniform(-2, 34, 20) + 1j * rng.uniform(-2, 34, 20), rng.random((20, 3)).astype(np.float32)
    canvas = rng.random((32, 32, 3)).astype(np.float32)
    expected = canvas.copy()
    for place, shade in zip(centre, colour, strict=True):
        row, column = (min(max(round(part), 0), 31) for part in (place.imag, place.real))
        for y in range(32):
            for x in range(32):
                if (y - row) ** 2 + (x - column) ** 2 <= 4.2**2:
                    expected[y, x] = shade
    np.testing.assert_array_equal(stylize.discs(canvas, centre, 4.0, colour), expected)
    assert not np.array_equal(expected, canvas)


def test_seams_are_as_wide_as_stated() -> None:
    label = np.zeros((20, 20), np.int64)
    label[:, 10:] = 1
    for width in (1, 3, 5):
        cover = stylize.seams(label, width)
        np.testing.assert_allclose(cover.sum(1), width, atol=1e-6)
        assert (cover[:, 9] == 1).all()
    assert not stylize.seams(label * 0, 3).any()


def test_directions_are_along_the_edges() -> None:
    y, x = np.mgrid[0:40, 0:40].astype(np.float32)
    for angle in (0, 30, 90, 135):
        turn = np.radians(angle)
        stripes = np.sin((x * np.sin(turn) - y * np.cos(turn)) / 2).astype(np.float32)
        heading = stylize.along_edges(stripes, 3)[10:30, 10:30]
        np.testing.assert_allclose(np.abs(heading), 1, atol=1e-5)
        assert np.abs((heading * np.exp(-1j * turn)).real).min() > 0.97


def test_points_move_to_the_middle_of_their_cells() -> None:
    rng = np.random.default_rng(0)
    density = rng.random((24, 24)).astype(np.float32)
    points = np.array([3 + 4j, 18 + 5j, 9 + 20j])
    y, x = np.mgrid[0:24, 0:24]
    nearest = np.abs(points[:, None, None] - (x + 1j * y)).argmin(0)
    expected = [np.average((x + 1j * y)[nearest == k], weights=density[nearest == k]) for k in range(3)]
    np.testing.assert_allclose(stylize._settled(points, density, 1), expected, atol=0.2)  # ties


def test_places_are_drawn_in_proportion() -> None:
    density = np.ones((40, 40), np.float32)
    density[:20] = 3
    places = stylize.drawn_places(density, 4000, stylize._random(KEY, "a"))
    assert float((places.imag < 20).mean()) == pytest.approx(0.75, abs=0.002)
    assert float((places.real < 20).mean()) == pytest.approx(0.5, abs=0.05)


def test_lines_are_averaged() -> None:
    plane = picture(40)[..., 0]
    for angle, cells in (
        (0.0, [(0, k) for k in range(-3, 4)]),
        (np.pi / 4, [(k, k) for k in (-2, -1, -1, 0, 1, 1, 2)]),
    ):
        found = stylize._line_mean(plane, angle, 3)
        expected = np.mean([plane[20 + down, 20 + across] for down, across in cells])
        assert found[20, 20] == pytest.approx(float(expected), abs=1e-6)


def test_tones_of_a_pencil() -> None:
    grey = np.arange(256, dtype=np.float32).reshape(16, 16) / 255
    tones = stylize._pencil_tones(grey, np.array([52, 37, 11], np.float32))
    assert (np.diff(tones.ravel()) >= 0).all()
    assert float((tones > 0.5).mean()) == pytest.approx(0.52 + 0.37 * 0.8, abs=0.03)  # light ones and most others
    assert float((tones < 0.4).mean()) == pytest.approx(0.11, abs=0.02)


def test_panes_have_one_colour() -> None:
    x = picture(96)
    found = painted("style_leaded_window", x, pane=20.0, lead=-1.0, rim=0.0)
    assert 10 < len(np.unique(found.reshape(-1, 3).round(5), axis=0)) < 60
    dark = painted("style_leaded_window", x, rim=0.0) < 1e-6
    assert dark.all(-1).mean() > 0.1


def test_triangles_have_the_mean_of_their_pixels() -> None:
    x = picture(64)
    found = painted("style_lowpoly_coarse", x, facet=0.0, vivid=1.0)
    np.testing.assert_allclose(found.mean((0, 1)), x.mean((0, 1)), atol=1e-5)
    colours, where = np.unique(found.reshape(-1, 3), axis=0, return_inverse=True)
    for k, colour in enumerate(colours):
        np.testing.assert_allclose(x.reshape(-1, 3)[where.ravel() == k].mean(0), colour, atol=1e-5)


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


def test_more_dots_where_it_is_darker() -> None:
    steps = np.repeat(np.linspace(0, 1, 4, dtype=np.float32), 28)
    x = np.broadcast_to(steps[:, None], (112, 112, 3))
    inked = 1 - painted("style_stipple_engraver", x).mean(-1)
    shares = [float(inked[:, first : first + 28].mean()) for first in range(0, 112, 28)]
    assert all(darker > 1.2 * lighter for darker, lighter in pairwise(shares))
    lit = painted("style_stipple_night", x).mean(-1)
    assert lit[:, :28].mean() < 0.2 * lit[:, 84:].mean()


def test_strokes_cover_the_canvas() -> None:
    flat = np.full((96, 96, 3), (0.2, 0.5, 0.7), np.float32)
    np.testing.assert_allclose(painted("style_strokes_bold", flat, jitter=0.0, vivid=1.0), flat, atol=1e-5)
    x = picture(96)
    rough, transformation = (
        np.abs(painted("style_strokes_impressionist", x, jitter=0.0, vivid=1.0, brush=np.array(sizes)) - x).mean()
        for sizes in ((8.0,), (8.0, 4.0, 2.0))
    )
    assert transformation < 0.8 * rough


def test_pigment_darkens_by_its_density() -> None:
    """Bousseau et al.: black and white stay, the middle changes most; without effects the colour stays."""
    plain = {"wet": 0.0, "flow": 0.0, "grain": 0.0, "rim": 0.0, "light": 0.0, "vivid": 1.0, "brush": 1.0}
    x = picture(32)
    np.testing.assert_allclose(painted("style_watercolor_wash", x, **plain), x, atol=0.02)
    grey = np.repeat(np.array([0.0, 0.5, 1.0], np.float32), 32)[:, None, None].repeat(96, 1).repeat(3, 2)
    found = painted("style_watercolor_wash", grey, **plain | {"grain": 1.0})
    deviation = [float((found - grey)[first + 8 : first + 24].std()) for first in (0, 32, 64)]
    assert deviation[0] < 1e-6
    assert deviation[2] < 1e-6
    assert deviation[1] > 0.02


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

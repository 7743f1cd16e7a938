"""Transformations of this package against plain numpy and Pillow. Tolerance, if not told: rounding to a byte."""

from __future__ import annotations

import dataclasses
import io
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tests.pipelines.conftest import make_variant, parameters

from substyle.kernels import philox
from substyle.pipelines.transforms import base, blur, overlay, overlay_assets
from substyle.pipelines.transforms.base import get

BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
# RGB to YIQ, as in DALI's colour operators
YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
F64 = NDArray[np.float64]


def draws(name: str, side: int) -> dict[str, NDArray[Any]]:
    return get(name).draw(philox.image_keys(0, [str(i) for i in range(300)]), side)


# --- blur -------------------------------------------------------------------------------------------------------------


def correlate(image: NDArray[np.uint8], kernel: F64) -> F64:
    rows, columns = kernel.shape
    padded = np.pad(image.astype(np.float64), ((rows // 2,) * 2, (columns // 2,) * 2, (0, 0)), mode="reflect")
    total = np.zeros(image.shape)
    for dy, dx in zip(*np.nonzero(kernel), strict=True):
        total += kernel[dy, dx] * padded[dy : dy + image.shape[0], dx : dx + image.shape[1]]
    return total


def gaussian(sigma: float) -> F64:
    radius = math.ceil(3 * sigma)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return np.outer(weights, weights) / weights.sum() ** 2


def test_gaussian_blur(canvas: NDArray[np.uint8]) -> None:
    made, drawn = make_variant("gaussian_blur", canvas)
    expected = np.stack([correlate(x, gaussian(s)) for x, s in zip(canvas, drawn["sigma"], strict=True)])
    assert np.abs(made - expected).max() <= 0.51


@pytest.mark.parametrize("side", [64, 300])
def test_motion_kernels_are_gaussian_lines(side: int) -> None:
    angle = np.array([-45, -20, 0, 33, 45], np.float32)
    line = np.array([(15, 5), (15, 8), (15, 12), (20, 15), (20, 15)], np.float32) * side / 224
    kernels = blur.motion_kernels({"line": line, "angle": angle}, side)["kernel"].kernel_BKL.astype(np.float64)
    y, x = (np.arange(n) - n // 2 for n in kernels.shape[1:])
    radians = np.radians(angle)
    for kernel, (radius, sigma), cosine, sine in zip(kernels, line, np.cos(radians), np.sin(radians), strict=True):
        along, across = x * cosine + y[:, None] * sine, -x * sine + y[:, None] * cosine
        assert kernel.sum() == pytest.approx(1, abs=1e-6)
        assert np.allclose(kernel, kernel[::-1, ::-1], atol=1e-6)  # centred: the image does not shift
        assert (kernel * across**2).sum() < 0.5  # thin: only the spread of sampling
        t = np.arange(-2 * radius, 2 * radius + 0.5) / 2
        t = t[np.abs(t) <= radius]
        weights = np.exp(-0.5 * (t / sigma) ** 2)
        spread = (weights * t**2).sum() / weights.sum()
        assert (kernel * along**2).sum() == pytest.approx(spread, rel=0.15, abs=0.5)


def test_zoom_blur_is_the_mean_of_sixteen_zooms() -> None:
    """Of a smooth picture, which loses nothing between stages."""
    y, x = np.mgrid[0:96, 0:96] / 96
    smooth = np.stack([127 + 100 * np.sin(9 * x), 127 + 100 * np.cos(8 * y), 255 * x * y], axis=2).astype(np.uint8)
    made, drawn = make_variant("zoom_blur", smooth[None])
    total = np.zeros(smooth.shape)
    for ratio in float(drawn["zoom"][0]) ** (np.arange(16) / 15):
        at = np.clip((np.arange(96) + 0.5 - 48) / ratio + 48 - 0.5, 0, 95)
        low = np.minimum(np.floor(at).astype(int), 94)
        share = at - low
        rows = smooth[low] * (1 - share)[:, None, None] + smooth[low + 1] * share[:, None, None]
        total += rows[:, low] * (1 - share)[:, None] + rows[:, low + 1] * share[:, None]
    assert np.abs(made[0] - total / 16).mean() < 0.7


def test_widths_of_blurs_scale_with_the_side() -> None:
    args = {"radius": np.array([10 * 448 / 224], np.float32)}
    assert blur.disk_kernels(args, 448)["kernel"].kernel_BKL.shape == (1, 45, 45)
    assert blur.gaussian_lines({"sigma": np.array([12], np.float32)}, 448)["across"].kernel_BKL.shape == (1, 1, 73)


# --- colour and tone --------------------------------------------------------------------------------------------------


def in_yiq(canvas: NDArray[np.uint8], matrices: list[F64]) -> F64:
    """Pictures whose luminance and colour differences are multiplied by a matrix each."""
    changed = [x @ (np.linalg.inv(YIQ) @ matrix @ YIQ).T for x, matrix in zip(canvas, matrices, strict=True)]
    return np.clip(np.stack(changed), 0, 255)


def test_hue_shift(canvas: NDArray[np.uint8]) -> None:
    made, drawn = make_variant("hue_shift", canvas)
    turns = [
        np.array([[1, 0, 0], [0, math.cos(a), math.sin(a)], [0, -math.sin(a), math.cos(a)]])
        for a in np.radians(drawn["hue"])
    ]
    assert np.abs(made - in_yiq(canvas, turns)).max() <= 0.51


def test_saturate(canvas: NDArray[np.uint8]) -> None:
    made, drawn = make_variant("saturate", canvas)
    assert np.abs(made - in_yiq(canvas, [np.diag([1, x, x]) for x in drawn["factor"]])).max() <= 0.51


def test_channel_permute(canvas: NDArray[np.uint8]) -> None:
    many = np.repeat(canvas, 5, axis=0)
    made, drawn = make_variant("channel_permute", many)
    orders = drawn["order"].astype(int)
    expected = np.stack([image[..., order] for image, order in zip(many, orders, strict=True)])
    assert np.array_equal(made, expected)
    assert len({tuple(order) for order in orders.tolist()} - {(0, 1, 2)}) == 5  # all except the identity
    assert (orders != [0, 1, 2]).any(1).all()


def test_brightness(canvas: NDArray[np.uint8]) -> None:
    made, drawn = make_variant("brightness", canvas)
    expected = np.clip(canvas + 255.0 * drawn["shift"].reshape(-1, 1, 1, 1), 0, 255)
    assert np.abs(made - expected).max() <= 0.51


# --- noise, warps and halftones ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gaussian_noise", "impulse_noise", "shot_noise"])
def test_strengths_of_noise_are_those_declared(name: str) -> None:
    (parameter,) = get(name).parameters
    drawn = draws(name, 224)[parameter.name]
    assert set(np.round(drawn, 4).tolist()) == {np.round(np.float32(v), 4).item() for v in parameter.values}
    assert np.array_equal(drawn, draws(name, 96)[parameter.name])  # not in px


def test_strengths_of_warps_scale_with_the_canvas() -> None:
    small, large = draws("swirl", 112), draws("swirl", 224)
    for name in ("centre_x", "centre_y", "radius"):
        assert np.allclose(2 * small[name], large[name])
    assert np.allclose(small["strength"], large["strength"])
    assert ((large["radius"] >= 112) & (large["radius"] <= 168)).all()
    assert np.allclose(2 * draws("elastic", 112)["amplitude"], draws("elastic", 224)["amplitude"])


@pytest.mark.parametrize(("name", "size", "turn"), [("dot_halftone", "cell", 90), ("line_halftone", "pitch", 180)])
def test_screens_are_those_declared(name: str, size: str, turn: float) -> None:
    half, full = draws(name, 112), draws(name, 224)
    assert full[size].min() >= 4
    assert full[size].max() <= 8
    assert np.allclose(2 * half[size], full[size])
    assert full["angle"].min() >= 0
    assert np.radians(turn) * 0.97 < full["angle"].max() <= np.radians(turn)


def test_inverted_lines(canvas: NDArray[np.uint8]) -> None:
    many = np.repeat(canvas, 3, axis=0)
    made, drawn = make_variant("inverted_lines", many)
    line = np.arange(many.shape[1]) + 0.5
    for image, result, band, phase, vertical in zip(
        many, made, drawn["band"], drawn["phase"], drawn["vertical"], strict=True
    ):
        inverted = np.floor(line / band + 2 * phase) % 2 == 1
        inverted = inverted[None, :, None] if vertical else inverted[:, None, None]
        assert np.array_equal(result, np.where(inverted, 255 - image, image))
    assert set(drawn["vertical"]) == {0, 1}


# --- quality, as Pillow's codec and filters make it -------------------------------------------------------------------


def test_jpeg_is_what_pillow_saves(canvas: NDArray[np.uint8]) -> None:
    made, drawn = make_variant("jpeg", canvas)
    for image, result, quality in zip(canvas, made, drawn["quality"], strict=True):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=int(quality))
        # Bit-identical with the JPEG library of the wheels; another build may round differently.
        difference = np.abs(result.astype(int) - np.asarray(Image.open(file)))
        assert difference.mean() <= 0.5


def test_pixelate(canvas: NDArray[np.uint8]) -> None:
    made, drawn = make_variant("pixelate", canvas)
    side = canvas.shape[1]
    for image, result, scale in zip(canvas, made, drawn["scale"], strict=True):
        small = int(np.rint(scale * side))
        reduced = np.asarray(Image.fromarray(image).resize((small, small), BILINEAR))
        at = (np.arange(side) + 0.5) * small / side
        clear = np.abs(at - np.rint(at)) > 1e-3  # a pixel centre on the border of two cells may be assigned to either
        index = np.floor(at[clear]).astype(int)
        difference = np.abs(result[clear][:, clear].astype(int) - reduced[index][:, index])
        inner = (index > 0) & (index < small - 1)
        assert difference[inner][:, inner].max() <= 1
        assert difference.max() <= 20  # at borders DALI replicates the last pixel, Pillow renormalises the weights


def test_low_resolution(canvas: NDArray[np.uint8]) -> None:
    made, drawn = make_variant("low_resolution", canvas)
    side = canvas.shape[1]
    for image, result, scale in zip(canvas, made, drawn["scale"], strict=True):
        small = int(np.rint(scale * side))
        expected = Image.fromarray(image).resize((small, small), BICUBIC).resize((side, side), BICUBIC)
        difference = np.abs(result.astype(int) - np.asarray(expected))
        border = 3 * side // small + 1  # where either filter reaches beyond the image
        assert difference[border:-border, border:-border].max(initial=0) <= 8  # Pillow rounds after each pass
        assert difference.max() <= 20
        assert difference.mean() <= 1


# --- overlays ---------------------------------------------------------------------------------------------------------

ATLASES = {
    "icon_overlay": overlay_assets.icons,
    "text_overlay": overlay_assets.words,
    "color_pattern": overlay_assets.lattices,
}


def sample(page: NDArray[np.uint8], matrix: F64, side: int) -> F64:
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
    transformation = get(name)
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
    keys = philox.image_keys(0, [str(i) for i in range(3000)])
    raw = dataclasses.replace(get(name), prepare=None).draw(keys, 32, np.arange(3000) % 2 == 1)
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
    icons, words, lattices = (build(224).pages_NPP for build in ATLASES.values())
    assert len(icons) == 48
    assert len(overlay_assets.icons(224).choices(test=False)) >= 32
    assert len(words) >= 200
    assert len(lattices) >= 4
    tiles = icons[:, : overlay_assets.icons(224).cell, : overlay_assets.icons(224).cell].astype(np.float64)
    gaps = np.abs(tiles[:, None] - tiles[None]).mean((2, 3)) + 255 * np.eye(len(tiles))
    assert gaps.min() > 4  # grey levels on average between any two icons
    for pages in (icons, words, lattices):
        assert len({page.tobytes() for page in pages}) == len(pages)
        assert ((pages.mean((1, 2)) > 20) & (pages.mean((1, 2)) < 200)).all()


def test_vivid_colours() -> None:
    colours = overlay.vivid(np.array([0, 60, 240, 300, 30], np.float64)).tolist()
    assert colours == [[255, 0, 0], [255, 255, 0], [0, 0, 255], [255, 0, 255], [255, 128, 0]]

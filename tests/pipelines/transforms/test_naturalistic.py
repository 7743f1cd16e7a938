"""Lighting, weather, viewpoint and sensor: geometry against SciPy, light against formulas, randomness by key."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from tests.conftest import photograph

from substyle.kernels import philox
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import suite
from substyle.pipelines.variants import VariantMaker

NAMES = suite("naturalistic30")
KEYS = [f"photo-{i}" for i in range(8)]
F64 = NDArray[np.float64]


def canvas(side: int, count: int = 2) -> torch.Tensor:
    rng = np.random.default_rng(0)
    smooth = [np.asarray(photograph(i, side, side)) for i in range(count - 1)]
    return torch.from_numpy(np.stack([*smooth, rng.integers(0, 256, (side, side, 3), np.uint8)]))


def made(names: tuple[str, ...], x_BSSC: torch.Tensor) -> dict[str, torch.Tensor]:
    maker = VariantMaker(names, side=x_BSSC.shape[1], seed=0, batch=len(x_BSSC), threads=1)
    return {variant.name: variant.pixels_BSSC for variant in maker(x_BSSC, KEYS[: len(x_BSSC)])}


def drawn(name: str, side: int, count: int = 2) -> dict[str, F64]:
    arguments = base.get(name).draw(philox.image_keys(0, KEYS[:count]), side)
    return {each: np.asarray(values, np.float64) for each, values in arguments.items()}


def test_the_suite() -> None:
    known = [base.get(name) for name in NAMES[1:]]
    assert len(known) == 30
    assert {t.severities for t in known} == {5}
    for kind in ("lighting", "weather", "viewpoint", "sensor"):
        assert {t.role for t in known if t.kind == kind} == {"train", "held_out"}
    assert len(suite("naturalistic30@1..5")) == 151


@pytest.mark.parametrize("side", [64, 97])
def test_pixels_do_not_depend_on_the_batch(side: int) -> None:
    x = canvas(side, 8)
    whole = made(NAMES, x)
    for name, pixels in made(NAMES, x[:1]).items():
        assert torch.equal(pixels, whole[name][:1]), name
    maker = VariantMaker(NAMES, side=side, seed=0, batch=8, threads=1)
    for variant in maker(x[5:], KEYS[5:]):
        assert torch.equal(variant.pixels_BSSC, whole[variant.name][5:]), variant.name


@pytest.mark.parametrize("name", [n for n in NAMES[1:] if n not in ("flip", "crop", "mirror_tiling", "fog")])
def test_more_severe_is_further_from_the_photograph(name: str) -> None:
    x = canvas(224)[:1]
    variants = made(tuple(f"{name}@{severity}" for severity in (1, 3, 5)), x)
    error = [float((pixels.double() - x.double()).abs().mean()) for pixels in variants.values()]
    assert 1.0 < error[0] < error[1] < error[2]


@pytest.mark.parametrize("name", NAMES[1:])
def test_flat_canvases_stay_valid(name: str) -> None:
    for level in (0, 255):
        x = torch.full((1, 64, 64, 3), level, dtype=torch.uint8)
        assert made((name,), x)[name].shape == x.shape


def _rotation(a: dict[str, F64], i: int, x: F64, y: F64) -> tuple[F64, F64]:
    turn = np.radians(a["angle"][i] * a["sign"][i])
    return x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)


def _perspective(a: dict[str, F64], i: int, x: F64, y: F64) -> tuple[F64, F64]:
    tilt, turn = a["tilt"][i], np.radians(a["angle"][i])
    matrix = np.array([[1, 0, 0], [0, 1, 0], [-tilt * np.cos(turn), -tilt * np.sin(turn), 1]])
    matrix[2] *= 1 + 0.2 * tilt
    u, v, w = np.einsum("ij,jyx->iyx", matrix, np.stack(np.broadcast_arrays(x, y, 1.0)))
    return u / w, v / w


def _crop(a: dict[str, F64], i: int, x: F64, y: F64) -> tuple[F64, F64]:
    share, room = a["share"][i], 1 - a["share"][i]
    return x * share + a["place_x"][i] * room, y * share + a["place_y"][i] * room


def _barrel(a: dict[str, F64], i: int, x: F64, y: F64) -> tuple[F64, F64]:
    ratio = (1 + a["strength"][i] * 4 * (x**2 + y**2)) / (1 + a["strength"][i])
    return x * ratio, y * ratio


def _pincushion(a: dict[str, F64], i: int, x: F64, y: F64) -> tuple[F64, F64]:
    ratio = (1 + 2 * a["strength"][i]) / (1 + a["strength"][i] * 4 * (x**2 + y**2))
    return x * ratio, y * ratio


def _rolling_shutter(a: dict[str, F64], i: int, x: F64, y: F64) -> tuple[F64, F64]:
    wave = 0.1 * np.sin(3 * np.pi * y + np.radians(a["phase"][i]))
    moved = x + a["skew"][i] * a["sign"][i] * (y + wave)
    return moved, np.broadcast_to(y, moved.shape)


def _mirror_tiling(a: dict[str, F64], i: int, x: F64, y: F64) -> tuple[F64, F64]:
    both = np.broadcast_arrays(x * a["tiles"][i], y * a["tiles"][i])
    return both[0], both[1]


GEOMETRY: dict[str, Callable[[dict[str, F64], int, F64, F64], tuple[F64, F64]]] = {
    **{"rotation": _rotation, "perspective": _perspective, "crop": _crop, "barrel": _barrel},
    **{"pincushion": _pincushion, "rolling_shutter": _rolling_shutter, "mirror_tiling": _mirror_tiling},
}


@pytest.mark.parametrize("name", sorted(GEOMETRY))
@pytest.mark.parametrize("side", [64, 224])
def test_geometry(name: str, side: int) -> None:
    canvas_BSSC = canvas(side)[:1]
    line = (np.arange(side) + 0.5) / side - 0.5
    for severity in (1, 5):
        each = f"{name}@{severity}"
        found = made((each,), canvas_BSSC)[each][0].numpy()
        x, y = GEOMETRY[name](drawn(each, side, 1), 0, line[None, :], line[:, None])
        at = np.stack(np.broadcast_arrays((y + 0.5) * side - 0.5, (x + 0.5) * side - 0.5))
        for channel in range(3):
            plane = canvas_BSSC[0, ..., channel].numpy().astype(np.float64)
            expected = map_coordinates(plane, at, order=1, mode="mirror")
            assert np.abs(found[..., channel] - expected).max() < 0.6  # rounded, positions in float32


def test_flips() -> None:
    x = canvas(64)
    variants = made(tuple(f"flip@{kind}" for kind in range(1, 6)), x)
    source = x.numpy()
    expected = [source[:, :, ::-1], source[:, ::-1], source[:, ::-1, ::-1], source.swapaxes(1, 2)]
    expected.append(source.swapaxes(1, 2)[:, ::-1, ::-1])
    for found, wanted in zip(variants.values(), expected, strict=True):
        np.testing.assert_array_equal(found.numpy(), wanted)


def test_scale_leaves_black_around_the_picture() -> None:
    x = torch.full((1, 224, 224, 3), 200, dtype=torch.uint8)
    for severity, factor in enumerate((0.85, 0.75, 0.65, 0.55, 0.45), 1):
        name = f"scale@{severity}"
        out = made((name,), x)[name][0, ..., 0]
        assert set(out.unique().tolist()) == {0, 200}
        assert float((out > 0).double().mean()) == pytest.approx(factor**2, abs=0.01)


@pytest.mark.parametrize(("name", "sign"), [("overexposure", 1), ("underexposure", -1)])
def test_exposure_is_in_stops(name: str, sign: int) -> None:
    x = canvas(64)
    for severity in range(1, 6):
        each = f"{name}@{severity}"
        stops = drawn(each, 64)["stops"][0]
        light = (x.numpy() / 255.0) ** 2 * 2 ** (sign * stops)
        expected = np.sqrt(np.clip(light, 0, 1)) * 255
        assert np.abs(made((each,), x)[each].numpy() - expected).max() < 0.51


def test_lights_of_the_sides_of_a_grey_wall() -> None:
    x = torch.full((2, 64, 64, 3), 100, dtype=torch.uint8)
    variants = {name: pixels.double() for name, pixels in made(NAMES, x).items()}
    arguments = drawn("color_temperature", 64)
    warmth = variants["color_temperature"][..., 0].mean((1, 2)) - variants["color_temperature"][..., 2].mean((1, 2))
    assert (np.sign(warmth.numpy()) == arguments["sign"]).all()
    corner, middle = variants["vignette"][:, 0, 0].mean(-1), variants["vignette"][:, 32, 32].mean(-1)
    assert (corner < 0.8 * middle).all()
    assert (variants["cast_shadow"].amin((1, 2, 3)) < 66).all()  # darker by at least 0.35
    assert (variants["cast_shadow"].amax((1, 2, 3)) == 100).all()
    assert (variants["lens_flare"] >= 100).all()
    assert (variants["lens_flare"].amax((1, 2, 3)) == 255).all()
    night = variants["night"].mean((1, 2))
    assert (night[:, 2] > night[:, 0]).all()  # blue
    assert (variants["blooming"] == 100).all()  # no highlights


def test_banding_has_few_levels() -> None:
    x = canvas(64)
    for severity, levels in enumerate((8, 6, 5, 4, 3), 1):
        name = f"banding@{severity}"
        found = made((name,), x)[name]
        expected = np.rint(np.floor(x.numpy() / 255 * (levels - 1) + 0.5) / (levels - 1) * 255)
        assert len(found.unique()) <= levels
        assert np.abs(found.numpy() - expected).max() <= 1


def test_a_bayer_cell_keeps_one_channel() -> None:
    x = torch.full((1, 224, 224, 3), 90, dtype=torch.uint8)
    out = made(("bayer@5",), x)["bayer@5"][0]
    kept = (out > 0).sum(-1)
    assert (kept == 1).all()
    share = (out > 0).double().mean((0, 1))
    torch.testing.assert_close(share, torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64))


def test_hot_pixels_are_as_many_as_stated() -> None:
    x = torch.zeros(1, 224, 224, 3, dtype=torch.uint8)
    for severity, share in ((1, 0.014), (5, 0.07)):
        name = f"hot_pixels@{severity}"
        found = float((made((name,), x)[name] > 0).any(-1).double().mean())
        assert found == pytest.approx(share, rel=0.15)


def test_chromatic_aberration_keeps_green() -> None:
    x = canvas(224)
    out = made(("chromatic_aberration",), x)["chromatic_aberration"]
    assert torch.equal(out[..., 1], x[..., 1])
    assert not torch.equal(out[..., 0], x[..., 0])
    middle = slice(108, 116)
    near = (out[:1, middle, middle].double() - x[:1, middle, middle]).abs().mean()
    assert near < 2  # nothing moves in the middle


def test_rolling_bands_are_the_same_in_every_column() -> None:
    x = torch.full((1, 64, 64, 3), 100, dtype=torch.uint8)
    out = made(("rolling_bands",), x)["rolling_bands"]
    assert torch.equal(out, out[:, :, :1].expand_as(out))
    assert out.double().std() > 5


def test_sensor_noise_grows_with_light() -> None:
    x = torch.full((1, 224, 224, 3), 50, dtype=torch.uint8)
    bright = torch.full_like(x, 128)
    name = "sensor_noise@1"
    dark_std, bright_std = (float(made((name,), each)[name].double().std()) for each in (x, bright))
    assert 3 < dark_std < bright_std


def test_bright_columns_bloom() -> None:
    x = torch.full((1, 64, 64, 3), 60, dtype=torch.uint8)
    x[0, 20:24, 30:34] = 250
    out = made(("blooming@5",), x)["blooming@5"][0, ..., 0]
    assert (out[:, 31] > 200).all()
    assert (out[:, 10] == 60).all()

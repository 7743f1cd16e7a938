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


def test_a_bayer_cell_keeps_one_channel() -> None:
    x = torch.full((1, 224, 224, 3), 90, dtype=torch.uint8)
    out = made(("bayer@5",), x)["bayer@5"][0]
    kept = (out > 0).sum(-1)
    assert (kept == 1).all()
    share = (out > 0).double().mean((0, 1))
    torch.testing.assert_close(share, torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64))

"""Obfuscations: geometry against NumPy and SciPy, patterns against their description, disjoint photographs."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from tests.conftest import photograph

from substyle.kernels import philox
from substyle.pipelines.packaged_photographs import paths
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import suite
from substyle.pipelines.transforms.suites import obfuscation
from substyle.pipelines.transforms.suites.obfuscation import PREFIX
from substyle.pipelines.variants import VariantMaker

NAMES = suite("obfuscation22")
MADE = tuple(name for name in NAMES if base.get(name).made_by != "network")
KEYS = [f"photo-{i}" for i in range(8)]


def canvas(side: int, count: int = 8) -> torch.Tensor:
    rng = np.random.default_rng(0)
    smooth = [np.asarray(photograph(i, side, side)) for i in range(count - 1)]
    return torch.from_numpy(np.stack([*smooth, rng.integers(0, 256, (side, side, 3), np.uint8)]))


def made(name: str, x_BSSC: torch.Tensor, test_B: NDArray[np.bool_] | None = None) -> torch.Tensor:
    maker = VariantMaker((PREFIX + name,), side=x_BSSC.shape[1], seed=0, batch=len(x_BSSC), threads=1)
    (variant,) = maker(x_BSSC, KEYS[: len(x_BSSC)], test_B)
    return variant.pixels_BSSC


def drawn(name: str, side: int) -> dict[str, NDArray[np.float64]]:
    arguments = base.get(PREFIX + name).draw(philox.image_keys(0, KEYS), side)
    return {each: np.asarray(values, np.float64) for each, values in arguments.items()}


def flat(side: int, level: int = 100, count: int = 8) -> torch.Tensor:
    return torch.full((count, side, side, 3), level, dtype=torch.uint8)


def test_all_are_visible() -> None:
    x = canvas(224)
    maker = VariantMaker(MADE, side=224, seed=0, batch=8, threads=1)
    for variant in list(maker(x, KEYS))[1:]:
        error = (variant.pixels_BSSC.double() - x).abs().mean((1, 2, 3))
        assert (error > 4).all(), (variant.name, error)


def test_photographs_of_test_images_are_others() -> None:
    keys = philox.image_keys(0, [str(i) for i in range(400)])
    for name in ("photo_composition", "perspective_composition", "image_overlay", "interleave"):
        known = base.get(PREFIX + name)
        train, test = (set(known.draw(keys, 64, np.full(400, t))["photo"].tolist()) for t in (False, True))
        assert not train & test
        assert train | test == set(range(len(paths())))


def test_waves_move_each_channel() -> None:
    side = 96
    x = canvas(side)[:1]
    args = drawn("wavy_color_warp", side)
    line = (np.arange(side) + 0.5) / side
    found = made("wavy_color_warp", x)[0].numpy()
    for channel in range(3):
        across, down = (
            args["depth"][0]
            * side
            * np.sin(
                2 * np.pi * args["waves"][0, axis] * line
                + np.radians(args["phase"][0, axis] + channel * args["apart"][0])
            )
            for axis in (0, 1)
        )
        y, columns = np.mgrid[0:side, 0:side].astype(np.float64)
        at = np.stack([y + down[None, :], columns + across[:, None]])
        expected = map_coordinates(x[0, ..., channel].numpy().astype(np.float64), at, order=1, mode="mirror")
        assert np.abs(found[..., channel] - expected).max() < 0.6


def test_compositions_show_the_whole_picture() -> None:
    x = flat(224, 0)
    for name in ("background_blur_composition", "photo_composition"):
        args = base.get(PREFIX + name).draw(philox.image_keys(0, KEYS), 224)
        u, v = obfuscation._placed(args, 224, torch.device("cpu"))
        inside = torch.maximum(u.abs(), v.abs()) <= 0.5
        torch.testing.assert_close(
            inside.double().mean((1, 2, 3)), torch.from_numpy(args["factor"].astype(np.float64)) ** 2, rtol=0, atol=0.01
        )
    out = made("photo_composition", x)
    frame = (torch.maximum(u.abs(), v.abs()) - 0.53).abs() < 0.01
    assert (out[frame[..., 0]] == 255).all()
    assert (out[(torch.maximum(u.abs(), v.abs()) < 0.48)[..., 0]] == 0).all()


def test_the_picture_at_a_slant() -> None:
    side = 128
    x = canvas(side)[:1]
    args = drawn("perspective_composition", side)
    line = (np.arange(side) + 0.5) / side - 0.5
    tilt, turn = args["tilt"][0], np.radians(args["angle"][0])
    depth = 0.75 * (1 - tilt * (np.cos(turn) * line[None, :] + np.sin(turn) * line[:, None]))
    u, v = line[None, :] / depth, line[:, None] / depth
    inside = np.maximum(np.abs(u), np.abs(v)) < 0.47
    assert 0.2 < inside.mean() < 0.8
    at = np.stack([(v + 0.5) * side - 0.5, (u + 0.5) * side - 0.5])
    found = made("perspective_composition", x)[0].numpy()
    for channel in range(3):
        expected = map_coordinates(x[0, ..., channel].numpy().astype(np.float64), at, order=1, mode="mirror")
        assert np.abs(found[..., channel] - expected)[inside].max() < 0.7

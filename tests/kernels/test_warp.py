"""Warps: remapping against scipy, warps as a field and a sampling, zooms, and the same in Triton."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from tests.kernels.conftest import Place, pictures

from substyle.kernels import displacement, philox, warp
from substyle.kernels.tables import ZOOM_STAGES
from substyle.kernels.warp import enlargement, remap, remap_reference, zoom_blur

KEYS = philox.image_keys(0, ["a", "b"])
AMPLITUDE, RADIUS, STRENGTH = np.float32([16, 3]), np.float32([15, 12]), np.float32([3, 5])
CENTRE = np.float32([[3, 10], [12.5, 4]])


def nodes(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(count).normal(0, 3, (2, 2, count, count)).astype(np.float32))


def case(batch: int, height: int, width: int, reach: float, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures, and shifts of their pixels."""
    shift = np.random.default_rng(height * width).uniform(-reach, reach, (batch, 2, height, width))
    return pictures(batch, height, width, channels), torch.from_numpy(shift.astype(np.float32))


def alike(got: torch.Tensor, expected: torch.Tensor, share: float = 0.005) -> None:
    """One level apart, on few pixels: where a value is near a half."""
    difference = (got.cpu().int() - expected.int()).abs()
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype == torch.uint8
    assert (difference <= 1).all()
    assert (difference > 0).float().sum() <= share * difference.numel() + 1


@pytest.mark.parametrize(("height", "width", "reach"), [(19, 33, 60.0), (1, 20, 4.0), (20, 1, 4.0), (1, 1, 2.0)])
def test_remapping_is_scipys(height: int, width: int, reach: float) -> None:
    """Spline interpolation of order one with mirrored borders."""
    x, shift = case(2, height, width, reach)
    got = remap(x, shift)
    y_SS, x_SS = np.mgrid[0:height, 0:width].astype(np.float64)
    for i in range(len(x)):
        places = [y_SS + shift[i, 1].numpy(), x_SS + shift[i, 0].numpy()]
        for channel in range(3):
            plane = x[i, :, :, channel].double().numpy()
            expected = ndimage.map_coordinates(plane, places, order=1, mode="mirror")
            assert np.abs(got[i, :, :, channel].numpy() - expected).max() <= 0.5 + 0.02  # float32 grid coordinates
    assert (got.int() - remap_reference(x, shift).int()).abs().max() <= 1


def test_remapping_of_nothing_by_nothing_and_of_strided_pictures() -> None:
    x, shift = case(2, 12, 12, 4.0)
    planar = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert torch.equal(remap(planar, shift), remap(x, shift))
    for function in (remap, remap_reference):
        assert torch.equal(function(x, torch.zeros_like(shift)), x)
        assert function(x[:0], shift[:0]).shape == (0, 12, 12, 3)


def test_a_warp_is_a_field_and_a_sampling() -> None:
    x = pictures(2, 20, 20, 3)
    made = warp.elastic(x, KEYS, "e", AMPLITUDE, 0.8)
    assert torch.equal(made, remap(x, displacement.elastic(KEYS, "e", 20, AMPLITUDE, 0.8)))
    assert not torch.equal(made, x)
    assert torch.equal(warp.grid(x, nodes(6)), remap(x, displacement.grid(nodes(6), 20)))
    made = warp.swirl(x, CENTRE, RADIUS, STRENGTH)
    assert torch.equal(made, remap(x, displacement.swirl(20, CENTRE, RADIUS, STRENGTH)))


# --- zooms ------------------------------------------------------------------------------------------------------------


def plainly(x: torch.Tensor, zoom_B: NDArray[np.float32]) -> torch.Tensor:
    """Stage by stage, by products with whole matrices."""
    total: torch.Tensor = x.permute(0, 3, 1, 2).float()
    for stage in range(ZOOM_STAGES):
        steps = [float(zoom) ** (2**stage / (2**ZOOM_STAGES - 1)) for zoom in zoom_B]
        matrices = np.reshape([enlargement(x.shape[1], step) for step in steps], (-1, 1, x.shape[1], x.shape[1]))
        matrix_B1SS = torch.from_numpy(matrices).float()
        total = total + matrix_B1SS @ total @ matrix_B1SS.mT
    return (total / 2**ZOOM_STAGES + 0.5).to(torch.uint8).permute(0, 2, 3, 1)


@pytest.mark.parametrize("shape", [(3, 40, 40, 3), (2, 97, 97, 3), (2, 1, 1, 3), (0, 8, 8, 3)])
def test_both_paths_of_a_zoom(shape: tuple[int, ...]) -> None:
    x, zoom = pictures(*shape), np.linspace(1.15, 1.3, shape[0]).astype(np.float32)
    alike(zoom_blur(x, zoom), plainly(x, zoom), 0.002)


def test_enlargement_is_about_the_middle() -> None:
    assert np.array_equal(enlargement(9, 1.0), np.eye(9))
    assert np.allclose(enlargement(10, 2.0) @ np.arange(10.0), np.linspace(2.25, 6.75, 10))
    assert np.allclose(enlargement(10, 1.3).sum(axis=1), 1)


# --- Triton -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "sigma"), [(0, 2.24), (17, 0.96), (2, 0.1)])
def test_elastic(place: Place, side: int, sigma: float) -> None:
    side = side or place.large
    x = pictures(2, side, side, 3)
    got = place.load("warp_triton").elastic(x.to(place.device), KEYS, "e", AMPLITUDE, sigma)
    alike(got, warp.elastic(x, KEYS, "e", AMPLITUDE, sigma))


@pytest.mark.parametrize(("side", "count"), [(0, 6), (5, 1), (1, 2)])
def test_grid(place: Place, side: int, count: int) -> None:
    side = side or place.large
    x = pictures(2, side, side, 3)
    got = place.load("warp_triton").grid(x.to(place.device), nodes(count).to(place.device))
    alike(got, warp.grid(x, nodes(count)))


@pytest.mark.parametrize("side", [0, 1])
def test_swirl(place: Place, side: int) -> None:
    side = side or place.large
    x = pictures(2, side, side, 3)
    got = place.load("warp_triton").swirl(x.to(place.device), CENTRE, RADIUS, STRENGTH)
    alike(got, warp.swirl(x, CENTRE, RADIUS, STRENGTH))


@pytest.mark.parametrize("given", [(2, 19, 33, 60.0), (3, 20, 1, 4.0), (1, 1, 1, 2.0, 1), (2, 2, 2, 0.5, 4)], ids=str)
def test_remap(place: Place, given: tuple[int, int, int, float]) -> None:
    x, shift = case(*given)
    got = place.load("warp_triton").remap(x.to(place.device), shift.to(place.device))
    alike(got, remap_reference(x, shift), 0.002)


def test_whole_pixels_and_their_mirrors_are_exact(place: Place) -> None:
    x, shift = case(1, 12, 16, 1.0)
    shift[:, 0], shift[:, 1] = 3.0, -2.0
    got = place.load("warp_triton").remap(x.to(place.device), shift.to(place.device)).cpu()
    padded = np.pad(x.numpy(), ((0, 0), (2, 0), (0, 3), (0, 0)), mode="reflect")
    assert np.array_equal(got.numpy(), padded[:, :12, 3:])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter's numpy
def test_places_that_are_no_numbers_stay_inside(place: Place) -> None:
    x, shift = case(1, 9, 9, 1.0)
    wild = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 1e9])
    shift[0, 0, 0, :6], shift[0, 1, 1, :6] = wild, wild
    got = place.load("warp_triton").remap(x.to(place.device), shift.to(place.device)).cpu()
    assert (got[0, 2:].int() - remap_reference(x, shift)[0, 2:].int()).abs().max() <= 1

"""Transformations of the kind warp, and parameters of several numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from substyle.kernels import displacement, philox
from substyle.kernels.warp import remap
from substyle.pipelines.transforms import warp as module
from substyle.pipelines.transforms.base import Uniform, get

NAMES = ("elastic", "grid_distortion", "swirl")
KEYS = philox.image_keys(7, [f"{i}.jpg" for i in range(5)])


def checks(batch: int, side: int) -> torch.Tensor:
    y, x = np.mgrid[0:side, 0:side] // (side // 12)
    board = np.where((x + y) % 2 == 0, 40, 220).astype(np.uint8)
    return torch.from_numpy(np.repeat(np.stack([board, 255 - board, board], -1)[None], batch, 0))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", [96, 224])
def test_visible_repeatable_and_by_key(name: str, side: int) -> None:
    transformation, x = get(name), checks(5, side)
    warped = transformation.function(x, transformation.draw(KEYS, side), KEYS)
    assert warped.shape == x.shape
    assert warped.dtype == torch.uint8
    assert (warped.float() - x.float()).abs().mean(dim=(1, 2, 3)).min() > 8
    for i in range(5):
        alone = transformation.function(x[i : i + 1], transformation.draw(KEYS[i : i + 1], side), KEYS[i : i + 1])
        assert torch.equal(alone[0], warped[i])
    assert not torch.equal(warped[0], warped[1])


@pytest.mark.parametrize("name", NAMES)
def test_a_flat_picture_stays_flat_and_empty_batches_pass(name: str) -> None:
    transformation = get(name)
    flat = torch.full((5, 64, 64, 3), 77, dtype=torch.uint8)
    assert (transformation.function(flat, transformation.draw(KEYS, 64), KEYS) == 77).all()
    assert len(transformation.function(flat[:0], transformation.draw(KEYS[:0], 64), KEYS[:0])) == 0


def test_strengths_scale_with_the_canvas() -> None:
    small, large = (get("swirl").draw(KEYS, side) for side in (112, 224))
    for name in ("centre_x", "centre_y", "radius"):
        assert np.allclose(2 * small[name], large[name])
    assert np.allclose(small["strength"], large["strength"])
    assert ((large["radius"] >= 112) & (large["radius"] <= 168)).all()
    assert np.allclose(2 * get("elastic").draw(KEYS, 112)["amplitude"], get("elastic").draw(KEYS, 224)["amplitude"])


def test_grid_nodes_move_by_a_third_of_a_cell_at_most() -> None:
    nodes = get("grid_distortion").draw(KEYS, 224)["nodes"]
    assert nodes.shape == (5, 2, 6, 6)
    assert np.abs(nodes).max() <= 0.3 * 223 / 5
    assert nodes.std() == pytest.approx(0.6 / 12**0.5 * 223 / 5, rel=0.1)


def test_elastic_is_its_kernel() -> None:
    x, args = checks(5, 64), get("elastic").draw(KEYS, 64)
    shift = displacement.elastic(KEYS, "elastic", 64, args["amplitude"], 0.64)
    assert torch.equal(module.elastic(x, args, KEYS), remap(x, shift))
    assert np.allclose(args["smoothing"], 0.64)


@pytest.mark.parametrize("signed", [False, True])
def test_uniform_of_several_numbers(signed: bool) -> None:
    parameter = Uniform("shift", 1, 3, unit="px", signed=signed, count=4)
    u = np.random.default_rng(0).random((2000, parameter.draws))
    sample = parameter.sample(u, 448)
    assert sample.shape == (2000, 4)
    assert (np.abs(sample) >= 2).all()
    assert (np.abs(sample) < 6).all()
    assert (sample < 0).any() == signed
    assert np.abs(np.corrcoef(sample.T) - np.eye(4)).max() < 0.1
    assert parameter.describe()["count"] == 4
    assert "count" not in Uniform("shift", 1, 3).describe()
    assert Uniform("shift", 1, 3).sample(u[:, :2], 224).shape == (2000,)

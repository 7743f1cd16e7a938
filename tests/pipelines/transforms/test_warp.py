"""Transformations of the kind warp, and parameters of several numbers."""

from __future__ import annotations

import numpy as np
import torch

from substyle.kernels import philox
from substyle.pipelines.transforms.base import get

NAMES = ("elastic", "grid_distortion", "swirl")
KEYS = philox.image_keys(7, [f"{i}.jpg" for i in range(5)])


def checks(batch: int, side: int) -> torch.Tensor:
    y, x = np.mgrid[0:side, 0:side] // (side // 12)
    board = np.where((x + y) % 2 == 0, 40, 220).astype(np.uint8)
    return torch.from_numpy(np.repeat(np.stack([board, 255 - board, board], -1)[None], batch, 0))


def test_strengths_scale_with_the_canvas() -> None:
    small, large = (get("swirl").draw(KEYS, side) for side in (112, 224))
    for name in ("centre_x", "centre_y", "radius"):
        assert np.allclose(2 * small[name], large[name])
    assert np.allclose(small["strength"], large["strength"])
    assert ((large["radius"] >= 112) & (large["radius"] <= 168)).all()
    assert np.allclose(2 * get("elastic").draw(KEYS, 112)["amplitude"], get("elastic").draw(KEYS, 224)["amplitude"])

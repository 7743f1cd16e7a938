"""Transformations of the kind warp, and parameters of several numbers."""

from __future__ import annotations

import numpy as np

from substyle.kernels import philox
from substyle.pipelines.transforms.base import get

KEYS = philox.image_keys(7, [f"{i}.jpg" for i in range(5)])


def test_strengths_scale_with_the_canvas() -> None:
    small, large = (get("swirl").draw(KEYS, side) for side in (112, 224))
    for name in ("centre_x", "centre_y", "radius"):
        assert np.allclose(2 * small[name], large[name])
    assert np.allclose(small["strength"], large["strength"])
    assert ((large["radius"] >= 112) & (large["radius"] <= 168)).all()
    assert np.allclose(2 * get("elastic").draw(KEYS, 112)["amplitude"], get("elastic").draw(KEYS, 224)["amplitude"])

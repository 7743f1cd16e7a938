"""Warps on a CPU equal ``remap`` of a displacement field; zero displacement is the identity."""

from __future__ import annotations

import numpy as np
import torch

from substyle.kernels import displacement, philox, warp
from substyle.kernels.warp import remap

X = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3), dtype=np.uint8))
KEYS = philox.image_keys(0, ["a", "b"])


def test_a_warp_is_a_field_and_a_sampling() -> None:
    amplitude, radius, strength = np.float32([16, 3]), np.float32([15, 12]), np.float32([3, 5])
    centre, nodes = (
        np.float32([[3, 10], [12.5, 4]]),
        torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(0)),
    )
    made = warp.elastic(X, KEYS, "e", amplitude, 0.8)
    assert torch.equal(made, remap(X, displacement.elastic(KEYS, "e", 20, amplitude, 0.8)))
    assert not torch.equal(made, X)
    assert torch.equal(warp.grid(X, nodes), remap(X, displacement.grid(nodes, 20)))
    made = warp.swirl(X, centre, radius, strength)
    assert torch.equal(made, remap(X, displacement.swirl(20, centre, radius, strength)))

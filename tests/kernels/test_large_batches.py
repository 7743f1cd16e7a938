"""The last image of a batch is as alone: on a GPU, in batches of more than 2**32 bytes."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from tests.kernels.conftest import Place, pictures

Make = Callable[[ModuleType, torch.Tensor], torch.Tensor]


def full(count: int, *values: float) -> np.ndarray:
    """The same numbers for every image. Shape: (count, numbers) float32."""
    return np.tile(np.float32(values), (count, 1))


MAKE: dict[str, tuple[str, Make]] = {
    "noise": (
        "noise_triton",
        lambda f, x: f.impulse_noise(x, full(len(x), 0.2)[:, 0], np.arange(len(x), 0, -1).astype(np.uint64), "n"),
    ),
    "jpeg": ("jpeg_codec_triton", lambda f, x: f.compressed(x, np.ones((len(x), 2, 8, 8), np.int32))),
    "swirl": ("warp_triton", lambda f, x: f.swirl(x, full(len(x), 3, 4), full(len(x), 9)[:, 0], full(len(x), 3)[:, 0])),
    "grid": ("warp_triton", lambda f, x: f.grid(x, torch.ones(len(x), 2, 6, 6, device=x.device))),
    "remap": ("warp_triton", lambda f, x: f.remap(x, torch.ones(len(x), 2, *x.shape[1:3], device=x.device))),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKE)
def test_last_image(place: Place, name: str) -> None:
    on_gpu = place.device.type == "cuda"
    batch, side = (14400, 224) if on_gpu else (3, 4)
    if on_gpu and torch.cuda.get_device_properties(place.device).total_memory < 40 << 30:
        pytest.skip("such a batch takes up to 32 GiB")
    file, make = MAKE[name]
    last = pictures(1, side, side, 3)
    canvas = torch.zeros(batch, side, side, 3, dtype=torch.uint8, device=place.device)
    canvas[-1] = last[0].to(place.device)
    module = place.load(file)
    whole, alone = make(module, canvas), make(module, last.to(place.device))  # its key is 1 in both
    assert torch.equal(whole[-1], alone[0])
    assert alone.any()

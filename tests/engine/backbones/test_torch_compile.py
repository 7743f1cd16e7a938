"""The runtime of torch.compile on a CPU, compiled and not; its CUDA graph is left to a machine that has one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from substyle.engine.backbones.export import Preprocessed
from substyle.engine.backbones.runtimes.torch_compile import TorchCompiled
from substyle.errors import ConfigError

CANVAS, BATCH, DIM = 16, 3, 5
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def module() -> Preprocessed:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.GELU(), nn.Flatten(), nn.Linear(128, DIM)).eval()
    half = (0.5, 0.5, 0.5)
    return Preprocessed(network, canvas=CANVAS, side=CANVAS, mean=half, std=half).eval()


def canvases(count: int = BATCH) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(0).integers(0, 256, (count, CANVAS, CANVAS, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "bad", [canvases(BATCH + 1), canvases().astype(np.float32), canvases()[:, :8], canvases()[..., :1]]
)
def test_other_canvases_are_refused(module: Preprocessed, bad: np.ndarray) -> None:  # type: ignore[type-arg]
    runtime = TorchCompiled(module, "fp32", BATCH, CPU, canvas=CANVAS, mode="off")
    with pytest.raises(ConfigError, match=r"3 .*\(16, 16, 3\) uint8"):
        runtime(bad)


def test_no_batch_is_refused(module: Preprocessed) -> None:
    with pytest.raises(ConfigError) as caught:
        TorchCompiled(module, "fp32", 0, CPU, canvas=CANVAS)
    assert (caught.value.field, caught.value.given) == ("batch", 0)

"""The runtime of torch.compile on a CPU, compiled and not; its CUDA graph is left to a machine that has one."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from substyle.engine.backbones.export import Preprocessed, Typed
from substyle.engine.backbones.runtimes import torch_compile
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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_uncompiled_it_is_the_typed_module(module: Preprocessed, precision: str) -> None:
    runtime = TorchCompiled(module, precision, BATCH, CPU, canvas=CANVAS, mode="off")  # type: ignore[arg-type]
    got = runtime(canvases())
    with torch.no_grad():
        want = Typed(module, precision)(torch.from_numpy(canvases())).numpy()  # type: ignore[arg-type]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=2e-2 if precision == "bf16" else 1e-5)
    assert next(module.network.parameters()).dtype == torch.float32, "the backbone itself must stay as it is"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_compiled_it_gives_the_same(module: Preprocessed) -> None:
    runtime = TorchCompiled(module, "fp32", BATCH, CPU, canvas=CANVAS)
    assert runtime.fallback is None
    with torch.no_grad():
        want = module(torch.from_numpy(canvases())).numpy()
    np.testing.assert_allclose(runtime(canvases()), want, atol=1e-5)


def test_smaller_batches_and_batches_that_follow(module: Preprocessed) -> None:
    runtime = TorchCompiled(module, "fp32", BATCH, CPU, canvas=CANVAS, mode="off")
    whole = runtime(canvases())
    first = runtime.start(torch.from_numpy(canvases()[:2]))
    runtime(255 - canvases())
    np.testing.assert_allclose(first(), whole[:2], atol=1e-6)
    assert runtime(canvases()[:0]).shape == (0, DIM)


def test_what_becomes_of_the_module_later_does_not_matter(module: Preprocessed) -> None:
    own = copy.deepcopy(module)
    runtime = TorchCompiled(own, "fp32", BATCH, CPU, canvas=CANVAS, mode="off")
    before = runtime(canvases())
    own.double().get_buffer("scale").zero_()
    after = runtime(canvases())
    assert after.dtype == np.float32
    assert np.array_equal(before, after)


def test_where_compilation_fails_it_runs_uncompiled_and_says_so(
    module: Preprocessed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compiled(*arguments: object, **options: object) -> Callable[[torch.Tensor], torch.Tensor]:
        def run(x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no compiler here\nand more of it")

        return run

    monkeypatch.setattr(torch_compile.torch, "compile", compiled)
    runtime = TorchCompiled(module, "fp32", BATCH, CPU, canvas=CANVAS)
    assert runtime.fallback == "RuntimeError: no compiler here"
    assert "no compiler here" in capsys.readouterr().err
    with torch.no_grad():
        want = module(torch.from_numpy(canvases())).numpy()
    np.testing.assert_allclose(runtime(canvases()), want, atol=1e-5)


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_batches_under_way_do_not_mix(module: Preprocessed, where: str) -> None:
    runtime = TorchCompiled(module, "fp32", BATCH, torch.device("cuda"), canvas=CANVAS, mode="off")
    every = [torch.from_numpy(np.roll(canvases(), i, axis=0)[: 1 + i % BATCH]).to(where) for i in range(12)]
    with torch.no_grad():
        want = [module(canvas.cpu()).numpy() for canvas in every]
    started = [runtime.start(canvas) for canvas in every]
    for one, expected in zip(started, want, strict=True):
        np.testing.assert_allclose(one(), expected, atol=1e-4)

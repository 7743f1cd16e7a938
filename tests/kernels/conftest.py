"""Triton kernels for tests: interpreted on CPU tensors, on a GPU if available, or compiled without one."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pytest
import torch

import substyle.kernels

Load = Callable[[str], ModuleType]
HELPERS = ("philox_triton", "warp_triton")  # their functions are inlined into the kernels of other files


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random bytes of that shape."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> torch.Tensor:
    """Normal numbers of that shape."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def _load(name: str) -> ModuleType:
    """Reload a module of kernels, so that decorators follow the current environment."""
    for helper in HELPERS:
        importlib.reload(importlib.import_module(f"substyle.kernels.{helper}"))
    return importlib.reload(importlib.import_module(f"substyle.kernels.{name}"))


@dataclass(frozen=True)
class Place:
    """Where kernels run: ``load(name)`` returns their module, ``device`` is the device of tensors."""

    load: Load
    device: torch.device

    @property
    def large(self) -> int:
        """Side of a small canvas of several programs: the interpreter is slow."""
        return 224 if self.device.type == "cuda" else 21


def _forget() -> None:
    """Unload kernels after the test: the next import follows its own environment."""
    for name in [name for name in sys.modules if name.startswith("substyle.kernels.") and name.endswith("_triton")]:
        del sys.modules[name]
        delattr(substyle.kernels, name.rpartition(".")[2])


@pytest.fixture(params=["interpreter", "cuda"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """The interpreter, and the GPU if there is one."""
    pytest.importorskip("triton")
    if request.param == "interpreter":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        yield Place(_load, torch.device("cpu"))
        _forget()
    elif torch.cuda.is_available():
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        yield Place(_load, torch.device("cuda"))
    else:
        pytest.skip("no CUDA device")


@pytest.fixture
def to_compile(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Load kernels for compilation, with a separate cache."""
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
    return _load

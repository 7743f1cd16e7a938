"""CUDA graphs on the CPU: a replay does the captured work again, into the memory of the captured output."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from substyle.engine import cuda


class FakeGPU:
    """A device that claims to be a GPU; see `fake_gpu`."""

    type = "cuda"


@dataclass
class FakeGraphs:
    """In place of `cuda._capture`. Like CUDA's graphs they do not keep alive what they captured: a replay fails then.

    Attributes:
        replays: number of replays of each graph.
    """

    replays: list[int] = field(default_factory=list)

    def capture(self, launch: Callable[[Any], Any], device: torch.device) -> tuple[Any, Any, Any]:
        """Run the work as warm-up, but not during the capture."""
        stream = SimpleNamespace(cuda_stream=0)
        for _ in range(cuda.WARM):
            result = launch(stream)
        several = isinstance(result, tuple)
        output = tuple(each.clone() for each in result) if several else result.clone()
        captured, number = weakref.ref(launch), len(self.replays)
        self.replays.append(0)

        def replay() -> None:
            work = captured()
            assert work is not None, "the graph reads freed memory"
            again = work(stream)
            for old, new in zip(output, again, strict=True) if several else [(output, again)]:
                old.copy_(new)
            self.replays[number] += 1

        return stream, SimpleNamespace(replay=replay), output


def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGraphs:
    """Let tensors and modules on a `FakeGPU` stay on the CPU, and graphs be fake ones."""
    graphs, to = FakeGraphs(), nn.Module.to

    def on_cpu(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def made(*given: Any, device: Any = None, **named: Any) -> torch.Tensor:  # noqa: ANN401
            return make(*given, device=None if isinstance(device, FakeGPU) else device, **named)

        return made

    def moved(module: nn.Module, *given: Any, **named: Any) -> nn.Module:  # noqa: ANN401
        return module if any(isinstance(each, FakeGPU) for each in given) else to(module, *given, **named)

    for name in ("zeros", "empty_like"):
        monkeypatch.setattr(torch, name, on_cpu(getattr(torch, name)))
    monkeypatch.setattr(nn.Module, "to", moved)
    monkeypatch.setattr(cuda, "_capture", graphs.capture)
    monkeypatch.setattr(cuda, "side_stream", lambda device: None)
    return graphs


def track(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str) -> list[weakref.ref[Any]]:
    """Record weak references to all objects of a class that a module makes."""
    made: list[weakref.ref[Any]] = []

    class Tracked(getattr(module, name)):  # type: ignore[misc]
        def __init__(self, *given: Any, **named: Any) -> None:  # noqa: ANN401
            super().__init__(*given, **named)
            made.append(weakref.ref(self))

    monkeypatch.setattr(module, name, Tracked)
    return made

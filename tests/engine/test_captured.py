"""What is captured in a CUDA graph lives as long as the graph, and no longer.

A graph has the addresses of weights and buffers and does not own them: if they are freed, it reads whatever is written
there next. A reference cycle would leave their memory to the garbage collector, which knows nothing of a GPU's.
"""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.fake_graphs import FakeGPU, FakeGraphs, fake_gpu, track
from torch import nn

from substyle.engine import cuda
from substyle.engine.backbones.export import Preprocessed
from substyle.engine.backbones.runtimes import tensorrt, torch_compile
from substyle.engine.style_transfer import networks

SIDE = 32
GPU: Any = FakeGPU()
Made = tuple[object, list[weakref.ref[Any]]]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> FakeGraphs:
    return fake_gpu(monkeypatch)


def styles(patch: pytest.MonkeyPatch, mode: Any) -> Made:  # noqa: ANN401
    names, weights = ("style_wave",), track(patch, networks, "StyleModule")
    generator = networks.generator_for(names)
    return networks.DeviceStyles(generator, names, side=SIDE, precision="fp32", device=GPU, piece=1, mode=mode), weights


def backbone(patch: pytest.MonkeyPatch, mode: Any) -> Made:  # noqa: ANN401
    weights, half = track(patch, torch_compile, "Typed"), (0.5, 0.5, 0.5)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 4)).eval()
    module = Preprocessed(network, canvas=SIDE, side=SIDE, mean=half, std=half).eval()
    return torch_compile.TorchCompiled(module, "fp32", 1, GPU, canvas=SIDE, mode=mode), weights


def engine(patch: pytest.MonkeyPatch, mode: str) -> Made:
    class Context:
        def __init__(self) -> None:
            contexts.append(weakref.ref(self))

        def set_tensor_address(self, name: str, address: int) -> None: ...

        def execute_async_v3(self, stream: int) -> bool:
            return True

    contexts: list[weakref.ref[Any]] = []
    shapes = {"canvas": (1, SIDE, SIDE, 3), "embedding": (1, 4)}
    loaded = SimpleNamespace(
        num_io_tensors=2, get_tensor_name=list(shapes).__getitem__, get_tensor_shape=shapes.__getitem__,
        create_execution_context=Context,
    )  # fmt: skip
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda engine: loaded)
    library = SimpleNamespace(__name__="tensorrt", __version__="0", Runtime=lambda logger: runtime)
    patch.setattr(tensorrt, "library", lambda: library)
    patch.setattr(tensorrt, "_logger", lambda name: SimpleNamespace(lines=[]))
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "device", lambda device: nullcontext())
    return tensorrt.TensorRTGraph(b"", GPU), contexts


def test_a_graph_keeps_what_its_function_reads(graphs: FakeGraphs) -> None:
    """Whatever the caller keeps; probes' steps are in probes/test_replay.py."""
    weights = torch.ones(3)
    reference = weakref.ref(weights)

    def captured(weights: torch.Tensor) -> cuda.Captured[torch.Tensor]:
        return cuda.Captured(lambda stream: 2 * weights, GPU)

    replay = captured(weights).replay
    del weights
    assert reference() is not None
    assert replay().tolist() == [2, 2, 2]
    assert graphs.replays == [1]

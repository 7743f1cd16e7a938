"""What is captured in a CUDA graph lives as long as the graph, and no longer.

A graph has the addresses of weights and buffers and does not own them: if they are freed, it reads whatever is written
there next. A reference cycle would leave their memory to the garbage collector, which knows nothing of a GPU's.
"""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from tests.fake_graphs import FakeGPU, FakeGraphs, fake_gpu

from substyle.engine import cuda

GPU: Any = FakeGPU()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> FakeGraphs:
    return fake_gpu(monkeypatch)


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

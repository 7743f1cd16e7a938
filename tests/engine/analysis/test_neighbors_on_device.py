"""Calls of FAISS with and without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
import pytest
import torch

from substyle.engine.analysis import neighbors


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    getattr(neighbors.gpu_resources, "cache_clear", lambda: None)()
    yield
    getattr(neighbors.gpu_resources, "cache_clear", lambda: None)()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A fake FAISS with a GPU: searches on the CPU and records arguments."""
    calls: list[dict[str, Any]] = []
    on_cpu = faiss.knn

    def knn_gpu(resources: object, query: np.ndarray, bank: np.ndarray, k: int, **how: Any) -> Any:  # type: ignore[type-arg] # noqa: ANN401
        calls.append({"gpu_resources": resources, "k": k, **how})
        return on_cpu(query, bank, k, metric=how["metric"])

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "gpu_resources", raising=False)
    monkeypatch.setattr(faiss, "knn_gpu", knn_gpu, raising=False)
    return calls


SECOND = torch.device("cuda", 1)


def rows(count: int) -> np.ndarray:  # type: ignore[type-arg]
    x_RD = np.random.default_rng(0).normal(size=(count, 8)).astype(np.float32)
    return x_RD / np.linalg.norm(x_RD, axis=1, keepdims=True)


def test_arrays_are_searched_on_the_gpu_that_is_given(gpu: list[dict[str, Any]]) -> None:
    query, bank = rows(5), rows(40)
    found = neighbors.search(query, bank, 7, SECOND)
    assert [(call["gpu_resources"], call["k"], call["metric"], call["device"]) for call in gpu] == [
        ("gpu_resources", 7, faiss.METRIC_INNER_PRODUCT, 1)
    ]
    np.testing.assert_array_equal(found, np.argsort(-(query @ bank.T), axis=1)[:, :7])

"""FAISS on a GPU where it has one: which calls are made, on both sides of every branch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
import pytest

from substyle.engine.analysis import clusters, device, neighbours


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    getattr(device.resources, "cache_clear", lambda: None)()
    yield
    getattr(device.resources, "cache_clear", lambda: None)()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A FAISS that says it has a GPU; its search is the CPU's, and notes its arguments."""
    calls: list[dict[str, Any]] = []
    on_cpu = faiss.knn

    def knn_gpu(resources: object, query: np.ndarray, bank: np.ndarray, k: int, **how: Any) -> Any:  # type: ignore[type-arg] # noqa: ANN401
        calls.append({"resources": resources, "k": k, **how})
        return on_cpu(query, bank, k, metric=how["metric"])

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "resources", raising=False)
    monkeypatch.setattr(faiss, "knn_gpu", knn_gpu, raising=False)
    return calls


def rows(count: int) -> np.ndarray:  # type: ignore[type-arg]
    x_RD = np.random.default_rng(0).normal(size=(count, 8)).astype(np.float32)
    return x_RD / np.linalg.norm(x_RD, axis=1, keepdims=True)


def test_the_gpu_searches_where_there_is_one(gpu: list[dict[str, Any]]) -> None:
    query, bank = rows(5), rows(40)
    found = neighbours.search(query, bank, 7)
    assert [(call["resources"], call["k"], call["metric"]) for call in gpu] == [
        ("resources", 7, faiss.METRIC_INNER_PRODUCT)
    ]
    np.testing.assert_array_equal(found, np.argsort(-(query @ bank.T), axis=1)[:, :7])


def test_more_neighbours_than_the_gpu_gives_are_searched_on_the_cpu(gpu: list[dict[str, Any]]) -> None:
    assert neighbours.search(rows(2), rows(2100), 2049).shape == (2, 2049)
    assert gpu == []
    assert neighbours.search(rows(2), rows(2100), 2048).shape == (2, 2048)
    assert len(gpu) == 1


def test_nothing_to_search_asks_nobody(gpu: list[dict[str, Any]]) -> None:
    assert neighbours.search(rows(0), rows(3), 2).shape == (0, 2)
    assert gpu == []


@pytest.mark.parametrize("count", [0, None])
def test_without_a_gpu_the_cpu_searches(monkeypatch: pytest.MonkeyPatch, count: int | None) -> None:
    if count is None:
        monkeypatch.delattr(faiss, "get_num_gpus", raising=False)
    else:
        monkeypatch.setattr(faiss, "get_num_gpus", lambda: count, raising=False)
    assert device.resources() is None
    assert neighbours.search(rows(3), rows(9), 2).shape == (3, 2)


@pytest.mark.parametrize("there", [True, False])
def test_k_means_runs_where_the_search_does(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    asked = []
    real = faiss.Kmeans

    def spy(*arguments: Any, gpu: bool, **how: Any) -> Any:  # noqa: ANN401
        asked.append(gpu)
        return real(*arguments, gpu=False, **how)

    monkeypatch.setattr(device, "resources", lambda: "resources" if there else None)
    monkeypatch.setattr(faiss, "Kmeans", spy)
    assert len(clusters.kmeans(rows(30), 3, 0)) == 30
    assert asked == [there]

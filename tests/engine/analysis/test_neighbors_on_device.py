"""Calls of FAISS with and without a GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest
import torch

from substyle.engine.analysis import neighbors
from substyle.engine.analysis.geometry import SampledRows
from substyle.errors import ConfigError


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


class Distances:
    """A fake of FAISS's GPU search by address, on host memory."""

    def __init__(self) -> None:
        self.banks: list[int] = []
        self.stream: list[tuple[int, int]] = []

    def setDefaultStream(self, number: int, stream: int) -> None:
        self.stream.append((number, stream))

    def search(self, resources: object, wanted: Any) -> None:  # noqa: ANN401
        assert resources is self
        assert wanted.metric == faiss.METRIC_INNER_PRODUCT
        assert (wanted.vectorType, wanted.queryType, wanted.outIndicesType) == ("float32", "float32", "int64")
        assert wanted.vectorsRowMajor
        assert wanted.queriesRowMajor
        bank, query = (
            np.ctypeslib.as_array((ctypes.c_float * (rows * wanted.dims)).from_address(at)).reshape(rows, -1)
            for rows, at in ((wanted.numVectors, wanted.vectors), (wanted.numQueries, wanted.queries))
        )
        self.banks.append(len(bank))
        near, found = faiss.knn(query, bank, wanted.k, metric=wanted.metric)
        ctypes.memmove(wanted.outDistances, near.ctypes.data, near.nbytes)
        ctypes.memmove(wanted.outIndices, found.ctypes.data, found.nbytes)


@pytest.fixture
def distances(monkeypatch: pytest.MonkeyPatch) -> Distances:
    made = Distances()
    stand_ins = {
        "GpuDistanceParams": SimpleNamespace, "bfKnn": made.search, "DistanceDataType_F32": "float32",
        "IndicesDataType_I64": "int64", "cast_integer_to_float_ptr": int, "cast_integer_to_idx_t_ptr": int,
        "cast_integer_to_cudastream_t": int,
    }  # fmt: skip
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(faiss, name, stand_in, raising=False)
    monkeypatch.setattr(neighbors, "gpu_resources", lambda: made)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda where: SimpleNamespace(cuda_stream=77))
    return made


def test_tensors_that_cannot_be_searched(distances: Distances, monkeypatch: pytest.MonkeyPatch) -> None:
    some = torch.from_numpy(rows(4))
    assert neighbors.search_on_gpu(some[:0], some, 9).shape == (0, 4)
    for query, bank, k, field in (
        (some, some, 2049, "k"), (some.double(), some, 2, "query"), (some, some.int(), 2, "bank"),
        (some[0], some, 1, "query"), (some.to("meta"), some, 1, "query"),
    ):  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            neighbors.search_on_gpu(query, bank, k)
        assert caught.value.field == field
    assert distances.banks == []
    # the CPU takes what a GPU does not
    many = torch.from_numpy(rows(2100))
    monkeypatch.setattr(neighbors, "gpu_resources", lambda: None)
    assert neighbors.search(some, many, 2049).shape == (4, 2049)
    assert distances.banks == []


def test_classes_are_asked_of_the_rows_that_have_one(distances: Distances, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors give the same results as arrays."""
    label = np.array([0, 1, -1, 1, 0, -1, 1, 0])

    def made(count: int) -> SampledRows:
        order = np.arange(count)
        return SampledRows(rows(count), order % 4, order % 2, label[order % 8], order % 4)

    found = []
    for place, gpu in ((lambda x, device: x, None), (lambda x, device: torch.from_numpy(x), distances)):
        monkeypatch.setattr(neighbors, "place", place)
        monkeypatch.setattr(neighbors, "gpu_resources", lambda gpu=gpu: gpu)
        found.append(neighbors.knn(made(16), made(64), (1, 5), classes=True, seed=0))
    assert found[0] == found[1]
    assert distances.banks == [64, 48]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fakes of FAISS and torch with two GPUs, the first of them current."""
    monkeypatch.setattr(neighbors, "gpu_resources", lambda: "resources")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"card {number}")


def test_a_faiss_without_gpu_beside_one_is_said_once(
    gpus: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(neighbors, "gpu_resources", lambda: None)
    assert neighbors.search_device("cpu") == torch.device("cpu")
    assert capsys.readouterr().err == ""
    neighbors._say_unused.cache_clear()
    for name in ("auto", "cuda", "cuda:1"):
        assert neighbors.search_device(name) == torch.device("cpu")
    assert capsys.readouterr().err.count("extra gpu") == 1

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
from tests.engine.analysis.test_run import table

from substyle.engine.analysis import neighbors, run
from substyle.engine.analysis.geometry import SampledRows
from substyle.engine.config import AnalysisConfig
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


def test_more_neighbours_than_the_gpu_gives_are_searched_on_the_cpu(gpu: list[dict[str, Any]]) -> None:
    assert neighbors.search(rows(2), rows(2100), 2049, SECOND).shape == (2, 2049)
    assert gpu == []
    assert neighbors.search(rows(2), rows(2100), 2048, SECOND).shape == (2, 2048)
    assert len(gpu) == 1


def test_nothing_to_search_asks_nobody(gpu: list[dict[str, Any]]) -> None:
    assert neighbors.search(rows(0), rows(3), 2, SECOND).shape == (0, 2)
    assert gpu == []


@pytest.mark.parametrize("count", [0, None])
def test_without_a_gpu_the_cpu_searches(monkeypatch: pytest.MonkeyPatch, count: int | None) -> None:
    if count is None:
        monkeypatch.delattr(faiss, "get_num_gpus", raising=False)
    else:
        monkeypatch.setattr(faiss, "get_num_gpus", lambda: count, raising=False)
    assert neighbors.gpu_resources() is None
    assert neighbors.search_device() == torch.device("cpu")
    assert neighbors.search(rows(3), rows(9), 2).shape == (3, 2)


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


@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("bank", "k", "blocks"), [(40, 7, [16, 16, 8]), (16, 3, [16]), (35, 20, [16, 16, 3]), (3, 9, [3])]
)
def test_tensors_are_searched_where_they_lie(
    distances: Distances, monkeypatch: pytest.MonkeyPatch, kind: torch.dtype, bank: int, k: int, blocks: list[int]
) -> None:
    """Block by block, for float16 and float32."""
    monkeypatch.setattr(neighbors, "BLOCK", 16)
    queries, there = (torch.from_numpy(rows(count)[::-1].copy()).to(kind) for count in (5, bank))
    found = neighbors.search_on_gpu(queries, there, k)
    assert found.dtype == torch.int64
    expected = (queries.double() @ there.double().T).argsort(1, descending=True)[:, :k]
    assert torch.equal(found, expected)
    assert distances.banks == blocks
    assert {stream for _, stream in distances.stream} == {77}
    np.testing.assert_array_equal(neighbors.search(queries, there, k), expected)


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


@pytest.mark.parametrize(
    ("name", "device"), [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")]
)
def test_the_device_of_the_search(gpus: None, capsys: pytest.CaptureFixture[str], name: str, device: str) -> None:
    assert neighbors.search_device(name) == torch.device(device)
    assert capsys.readouterr().err == ""


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


def test_a_device_that_does_not_exist_is_refused() -> None:
    for name in ("cuda:9", "tpu"):
        with pytest.raises(ConfigError) as caught:
            neighbors.search_device(name)
        assert caught.value.field == "device"


@pytest.mark.parametrize(("limit", "device", "placed"), [(1 << 20, SECOND, [SECOND]), (10, SECOND, []),
                                                         (1 << 20, torch.device("cpu"), [])])  # fmt: skip
def test_rows_that_fit_are_brought_to_the_gpu(
    monkeypatch: pytest.MonkeyPatch, limit: int, device: torch.device, placed: list[torch.device]
) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(neighbors, "MEMORY_LIMIT", limit)
    monkeypatch.setattr(torch, "from_numpy", lambda x: SimpleNamespace(to=asked.append))
    some = rows(4)
    assert neighbors.place(some, device) is (None if placed else some)
    assert asked == placed


@pytest.mark.parametrize(("device", "expected"), [(SECOND, [("resources", 1)]), (torch.device("cpu"), [])])
def test_k_means_runs_on_the_device_of_the_search(
    gpus: None, monkeypatch: pytest.MonkeyPatch, device: torch.device, expected: list[Any]
) -> None:
    asked = []

    def index_cpu_to_gpu(resources: object, number: int, index: faiss.IndexFlatIP) -> faiss.IndexFlatIP:
        asked.append((resources, number))
        return index

    monkeypatch.setattr(faiss, "index_cpu_to_gpu", index_cpu_to_gpu, raising=False)
    some = rows(30)
    found = neighbors.kmeans(some, 3, 0, device)
    assert asked == expected
    np.testing.assert_array_equal(found, neighbors.kmeans(some, 3, 0))


def test_the_analysis_uses_one_device(gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Search, placement and clusters get the device of the configuration."""
    asked: dict[str, set[torch.device]] = {}

    def spy(name: str, result: Any) -> None:  # noqa: ANN401
        def call(*arguments: Any, **how: Any) -> Any:  # noqa: ANN401
            given = [each for each in (*arguments, *how.values()) if isinstance(each, torch.device)]
            asked.setdefault(name, set()).update(given)
            return result(*arguments)

        monkeypatch.setattr(neighbors, name, call)

    cpu = torch.device("cpu")
    search, kmeans = neighbors.search, neighbors.kmeans
    spy("place", lambda x, device: x)
    spy("search", lambda query, bank, k, device: search(query, bank, k, cpu))
    spy("kmeans", lambda x, k, seed, device: kmeans(x, k, seed, cpu))
    monkeypatch.setattr("substyle.engine.analysis.projection.POINTS", 0)
    run.analyze(table(), AnalysisConfig(device="cuda:1"), quiet=True)
    assert asked == {"place": {SECOND}, "search": {SECOND}, "kmeans": {SECOND}}

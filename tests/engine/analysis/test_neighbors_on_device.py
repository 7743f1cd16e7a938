"""Calls of FAISS with and without a GPU."""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest
import torch

from substyle.engine.analysis import neighbors
from substyle.engine.analysis.geometry import SampledRows


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


def rows(count: int) -> np.ndarray:  # type: ignore[type-arg]
    x_RD = np.random.default_rng(0).normal(size=(count, 8)).astype(np.float32)
    return x_RD / np.linalg.norm(x_RD, axis=1, keepdims=True)


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

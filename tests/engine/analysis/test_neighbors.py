"""k-NN, balance and retrieval against plain loops, on a GPU that is faked too."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import pytest
import torch

from substyle.engine.analysis import neighbors
from substyle.engine.analysis.geometry import SampledRows, unit


def rows(rng: np.random.Generator, count: int, *, images: int = 7, variants: int = 4, width: int = 12) -> SampledRows:
    image = rng.integers(0, images, count)
    label = np.where(image % 5 == 4, -1, image % 3)
    return SampledRows(unit(rng.normal(size=(count, width))), image, rng.integers(0, variants, count), label, image)


def brute_force(query: np.ndarray, bank: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-(query.astype(np.float64) @ bank.T.astype(np.float64)), axis=1, kind="stable")[:, :k]


def plain_vote(labels: np.ndarray) -> int:
    """Majority vote by counting; ties go to the first label."""
    best = max(np.count_nonzero(labels == label) for label in labels)
    return next(label for label in labels if np.count_nonzero(labels == label) == best)


def test_others_equals_brute_force_without_self() -> None:
    x = unit(np.random.default_rng(1).normal(size=(50, 8)))
    similarity = x.astype(np.float64) @ x.T
    np.fill_diagonal(similarity, -np.inf)
    assert np.array_equal(neighbors.others(x, 10), np.argsort(-similarity, axis=1)[:, :10])


def test_knn_equals_plain_loops() -> None:
    rng = np.random.default_rng(4)
    queries, bank = rows(rng, 60), rows(rng, 150)
    answer = neighbors.knn(queries, bank, (1, 5, 10), classes=True, seed=0)
    order = brute_force(queries.x_RD, bank.x_RD, 150)
    labelled = bank.label_R >= 0
    for k in (1, 5, 10):
        style = [
            plain_vote(bank.transformation_R[row[:k]]) == t
            for row, t in zip(order, queries.transformation_R, strict=True)
        ]
        found = answer["transformation"][str(k)]
        assert found["value"] == pytest.approx(np.mean(style))
        named = [
            plain_vote(bank.label_R[row[labelled[row]][:k]]) == label
            for row, label in zip(order, queries.label_R, strict=True)
            if label >= 0
        ]
        assert answer["class"][str(k)]["value"] == pytest.approx(np.mean(named))
        assert found["low"] <= found["value"] <= found["high"]
    assert (answer["queries"], answer["bank"]) == (60, 150)


def test_balance_and_retrieval_equal_plain_loops() -> None:
    sample = rows(np.random.default_rng(7), 90)
    found = neighbors.others(sample.x_RD, 10)
    shares = {"same_image": 0, "same_transformation": 0, "both": 0, "neither": 0}
    for i in range(90):
        image = sample.image_R[found[i, 0]] == sample.image_R[i]
        style = sample.transformation_R[found[i, 0]] == sample.transformation_R[i]
        shares["same_image" if image else "same_transformation" if style else "neither"] += 1
    balance = neighbors.balance(sample, found, seed=0)
    assert balance.pop("queries") == 90
    for share in balance.values():
        assert share["low"] <= share["value"] <= share["high"]
    values = {key: share["value"] for key, share in balance.items()}
    assert values == pytest.approx({key: count / 90 for key, count in shares.items()})
    recall = neighbors.retrieval(sample, found)
    image, style = sample.image_R, sample.transformation_R
    for k in (1, 5, 10):
        same = [any(image[j] == image[i] for j in found[i, :k]) for i in range(90)]
        assert recall["image"][str(k)] == pytest.approx(np.mean(same))
        other = [any(style[j] == style[i] and image[j] != image[i] for j in found[i, :k]) for i in range(90)]
        assert recall["transformation"][str(k)] == pytest.approx(np.mean(other))


def test_arrays_are_searched_on_the_gpu_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, on_cpu = [], faiss.knn

    def knn_gpu(resources: object, query: np.ndarray, bank: np.ndarray, k: int, **how: Any) -> Any:  # noqa: ANN401
        calls.append((resources, k, how["metric"], how["device"]))
        return on_cpu(query, bank, k, metric=how["metric"])

    monkeypatch.setattr(faiss, "knn_gpu", knn_gpu, raising=False)
    monkeypatch.setattr(neighbors, "gpu_resources", lambda: "resources")
    query, bank = (rows(np.random.default_rng(0), count).x_RD for count in (5, 40))
    found = neighbors.search(query, bank, 7, torch.device("cuda", 1))
    assert calls == [("resources", 7, faiss.METRIC_INNER_PRODUCT, 1)]
    np.testing.assert_array_equal(found, brute_force(query, bank, 7))

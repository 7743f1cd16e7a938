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


@pytest.mark.parametrize(("queries", "bank", "k"), [(5, 40, 1), (30, 200, 10), (3, 4, 9), (1, 1, 1)])
def test_search_equals_brute_force(queries: int, bank: int, k: int) -> None:
    rng = np.random.default_rng(queries * bank)
    q, b = unit(rng.normal(size=(queries, 16))), unit(rng.normal(size=(bank, 16)))
    assert np.array_equal(neighbors.search(q, b, k), brute_force(q, b, k))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 40])
def test_others_never_holds_the_row_itself_even_among_equal_rows(count: int) -> None:
    found = neighbors.others(np.full((count, 6), 6**-0.5, np.float32), 5)
    assert found.shape == (count, max(min(5, count - 1), 0))
    assert not (found == np.arange(count)[:, None]).any()
    assert all(len(set(row)) == len(row) for row in found.tolist())


def test_vote_equals_counting() -> None:
    labels = np.random.default_rng(2).integers(0, 4, (500, 9))
    assert neighbors.vote(labels).tolist() == [plain_vote(row) for row in labels]


def test_only_labelled_rows_take_part_in_class_votes() -> None:
    rng = np.random.default_rng(6)
    queries, bank = rows(rng, 40), rows(rng, 80)
    all_labelled = SampledRows(bank.x_RD, bank.image_R, bank.transformation_R, np.abs(bank.label_R), bank.image_R)
    answer = neighbors.knn(queries, all_labelled, (3,), classes=True, seed=0)
    order = brute_force(queries.x_RD, bank.x_RD, 3)
    hits = [plain_vote(all_labelled.label_R[row]) == t for row, t in zip(order, queries.label_R, strict=True) if t >= 0]
    assert answer["class"]["3"]["value"] == pytest.approx(np.mean(hits))


def test_another_severity_of_a_photograph_counts_as_the_photograph() -> None:
    """Every photograph is nearest to itself in the other severity of the same transformation."""
    image = np.repeat(np.arange(6), 2)
    x = unit(np.eye(6, dtype=np.float32)[image] + 0.01 * np.random.default_rng(0).random((12, 6), dtype=np.float32))
    sample = SampledRows(x, image, np.zeros(12, np.int64), np.zeros(12, np.int64), image)
    found = neighbors.others(x, 10)
    balance = neighbors.balance(sample, found, seed=0)
    shown = [balance[key]["value"] for key in ("same_image", "same_transformation", "neither", "both")]
    assert shown == [1.0, 0.0, 0.0, 0.0]
    recall = neighbors.retrieval(sample, found)
    assert (recall["image"]["1"], recall["transformation"]["1"], recall["transformation"]["5"]) == (1.0, 0.0, 1.0)

"""Nearest neighbours by cosine similarity: the k-NN classifier, the balance of image and style, retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.analysis import device, device_search
from substyle.engine.analysis.sampling import F32, I64, Rows, bootstrap_mean

RECALL_AT = (1, 5, 10)
_BLOCK = 4096  # queries voted on at once


def search(query_QD: F32 | torch.Tensor, bank_BD: F32 | torch.Tensor, k: int) -> I64:
    """Indices of the k most similar bank rows of each query, best first (exact, inner product, float32).

    Arrays are searched on a GPU if FAISS has one, and tensors on the GPU that they lie on (see `device.place`); beyond
    a GPU's 2,048 neighbours both on the CPU. Shape: (Q, D), (B, D) to (Q, min(k, B)).
    """
    import faiss

    k = min(k, len(bank_BD))
    if k == 0 or len(query_QD) == 0:
        return np.empty((len(query_QD), k), dtype=np.int64)
    if isinstance(query_QD, torch.Tensor) and isinstance(bank_BD, torch.Tensor) and k <= device_search.MOST:
        return np.asarray(device_search.search(query_QD, bank_BD, k).cpu().numpy())
    query_QD, bank_BD = (x.float().cpu().numpy() if isinstance(x, torch.Tensor) else x for x in (query_QD, bank_BD))
    gpu = device.resources()
    if gpu is None or k > device_search.MOST:
        _, index_Qk = faiss.knn(query_QD, bank_BD, k, metric=faiss.METRIC_INNER_PRODUCT)
    else:
        _, index_Qk = faiss.knn_gpu(
            gpu,
            query_QD,
            bank_BD,
            k,
            metric=faiss.METRIC_INNER_PRODUCT,
            vectorsMemoryLimit=device.MEMORY_LIMIT,
            queriesMemoryLimit=device.MEMORY_LIMIT,
        )
    return np.asarray(index_Qk, dtype=np.int64)


def others(x_RD: F32 | torch.Tensor, k: int) -> I64:
    """Indices of the k most similar other rows of each row, best first. Shape: (R, D) to (R, min(k, R - 1))."""
    found_Rk = search(x_RD, x_RD, k + 1)
    width = found_Rk.shape[1] - 1
    if width < 1:
        return np.empty((len(x_RD), 0), dtype=np.int64)
    self_Rk = found_Rk == np.arange(len(x_RD))[:, None]
    # among exact ties a row may not find itself at all: then its last neighbour goes out in its place
    self_Rk[~self_Rk.any(axis=1), -1] = True
    return np.asarray(found_Rk[~self_Rk].reshape(len(x_RD), width), dtype=np.int64)


def vote(label_Qk: I64) -> I64:
    """Majority label of each query's neighbours, given best first; of tied labels the one seen first wins.

    Shape: (Q, k) to (Q,).
    """
    result = np.empty(len(label_Qk), dtype=np.int64)
    for start in range(0, len(label_Qk), _BLOCK):
        block = label_Qk[start : start + _BLOCK]
        votes_Qk = np.zeros(block.shape, dtype=np.int32)
        for j in range(block.shape[1]):
            votes_Qk += block == block[:, j : j + 1]
        # argmax returns the first maximum: the label whose nearest voter is nearest
        result[start : start + _BLOCK] = block[np.arange(len(block)), votes_Qk.argmax(axis=1)]
    return result


def knn(queries: Rows, bank: Rows, ks: Sequence[int], *, classes: bool, seed: int) -> dict[str, Any]:
    """Accuracy of a k-NN vote for the transformation and, with ``classes``, for the class, with 95 % intervals.

    Unlabelled rows neither ask for a class nor vote on one. A k beyond the bank's size gives None.
    """
    answer: dict[str, Any] = {"queries": len(queries), "bank": len(bank), "class": None, "class_ci95": None}
    asked, there = device.place(queries.x_RD), device.place(bank.x_RD)
    neighbour_Qk = search(asked, there, max(ks))
    votes_Qk = bank.transformation_R[neighbour_Qk]
    answer["transformation"], answer["transformation_ci95"] = _score(
        queries, queries.transformation_R, votes_Qk, ks, seed
    )
    if classes:
        asking, voting = queries.take(queries.label_R >= 0), bank.take(bank.label_R >= 0)
        if len(voting) < len(bank):
            neighbour_Qk = search(_where(asked, queries), _where(there, bank), max(ks))
        elif len(asking) < len(queries):
            neighbour_Qk = neighbour_Qk[queries.label_R >= 0]
        votes_Qk = voting.label_R[neighbour_Qk]
        answer["class"], answer["class_ci95"] = _score(asking, asking.label_R, votes_Qk, ks, seed)
    return answer


def _where(x_RD: F32 | torch.Tensor, rows: Rows) -> F32 | torch.Tensor:
    """The labelled ones of some rows that lie anywhere."""
    labelled_R = rows.label_R >= 0
    return x_RD[labelled_R] if isinstance(x_RD, np.ndarray) else x_RD[torch.from_numpy(labelled_R).to(x_RD.device)]


def _score(
    queries: Rows, truth_Q: I64, votes_Qk: I64, ks: Sequence[int], seed: int
) -> tuple[dict[str, float | None], dict[str, list[float] | None]]:
    accuracy: dict[str, float | None] = {}
    interval: dict[str, list[float] | None] = {}
    for k in ks:
        accuracy[str(k)] = interval[str(k)] = None
        if k <= votes_Qk.shape[1] and len(queries) > 0:
            hit_Q = vote(votes_Qk[:, :k]) == truth_Q
            accuracy[str(k)] = float(hit_Q.mean())
            interval[str(k)] = over_images(hit_Q, queries, seed)
    return accuracy, interval


def over_images(hit_Q: NDArray[np.bool_], queries: Rows, seed: int) -> list[float] | None:
    """95 % interval of a share of rows from a bootstrap over their images."""
    _, image_Q = np.unique(queries.image_R, return_inverse=True)
    images = int(image_Q.max(initial=-1)) + 1
    hits_N, rows_N = np.zeros(images), np.zeros(images)
    np.add.at(hits_N, image_Q, hit_Q)
    np.add.at(rows_N, image_Q, 1.0)
    return bootstrap_mean(hits_N, rows_N, seed)


def balance(rows: Rows, neighbour_Rk: I64, seed: int) -> dict[str, dict[str, Any]]:
    """What the nearest other embedding shares with each row: shares that add up to 1, and the number of rows.

    ``both`` is 0 by construction (no photograph has a variant twice). Intervals are 95 %, from a bootstrap over the
    photographs of the rows; each row keeps its neighbour. Shares are None when there is one row or none.

    Returns:
        ``balance`` and ``balance_ci95``, by the name of a share.
    """
    names = ("same_image", "same_transformation", "both", "neither")
    if neighbour_Rk.shape[1] == 0:
        return {"balance": dict.fromkeys(names) | {"queries": 0}, "balance_ci95": dict.fromkeys(names)}
    nearest_R = neighbour_Rk[:, 0]
    image_R = rows.image_R[nearest_R] == rows.image_R
    style_R = rows.transformation_R[nearest_R] == rows.transformation_R
    shares = dict(
        zip(names, (image_R & ~style_R, style_R & ~image_R, image_R & style_R, ~image_R & ~style_R), strict=True)
    )
    return {
        "balance": {name: float(share_R.mean()) for name, share_R in shares.items()} | {"queries": len(rows)},
        "balance_ci95": {name: over_images(share_R, rows, seed) for name, share_R in shares.items()},
    }


def retrieval(rows: Rows, neighbour_Rk: I64) -> dict[str, dict[str, float | None]]:
    """Recall@k both ways: the share of rows with the same photograph, or the same transformation, among the k nearest
    other rows; None where there are fewer than k others."""
    answer: dict[str, dict[str, float | None]] = {}
    for name, value_R in (("image", rows.image_R), ("transformation", rows.transformation_R)):
        match_Rk = value_R[neighbour_Rk] == value_R[:, None]
        answer[name] = {
            str(k): float(match_Rk[:, :k].any(axis=1).mean()) if k <= match_Rk.shape[1] else None for k in RECALL_AT
        }
    return answer

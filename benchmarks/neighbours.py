"""Speed of nearest-neighbour search, compared with its matrix products and with other libraries.

Queries are embeddings of 31 variants of test photographs, the bank those of training photographs, scaled to unit length
as in the analysis. All contenders search exactly in float32 and return the indices of the 50 most similar rows, best
first. The ceiling is the GEMM of all products of queries and bank, into preallocated memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from benchmarks.harness import CEILING, OURS, Row, interleave
from benchmarks.peers import probes_data
from substyle.engine.analysis import geometry, neighbors

NAME = "neighbours"
QUESTION = "how fast are nearest neighbours found?"
K = 50  # largest k of the default analysis
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
SKLEARN, TORCH, FLAT = "scikit-learn, brute force", "torch, matmul and topk", "faiss.IndexFlatIP"


def run(quick: bool) -> list[Row]:
    """Measure the k-NN classifier's search and the search among the queries themselves."""
    table = probes_data.table()
    queries = geometry.query_rows(table, 31 * (50 if quick else 160), 0).x_RD
    bank = geometry.bank_rows(table, 31 * (130 if quick else 500), 0).x_RD
    return [_search(queries, bank, 3 if quick else 7), _others(queries, 3 if quick else 7)]


def by_sklearn(query_QD: F32, bank_BD: F32, k: int) -> I64:
    """Search by Euclidean distance: the same order for unit vectors, and scikit-learn's fastest metric."""
    model = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="euclidean").fit(bank_BD)
    return np.asarray(model.kneighbors(query_QD, return_distance=False), np.int64)


def by_torch(query_QD: F32, bank_BD: F32, k: int) -> I64:
    """Compute the whole matrix of products, then its largest."""
    return (torch.from_numpy(query_QD) @ torch.from_numpy(bank_BD).T).topk(k, dim=1).indices.numpy()


def by_index(query_QD: F32, bank_BD: F32, k: int) -> I64:
    """Build and search an index as in FAISS's own examples."""
    index = faiss.IndexFlatIP(bank_BD.shape[1])
    index.add(bank_BD)
    return np.asarray(index.search(query_QD, k)[1], np.int64)


def products(query_QD: F32, bank_BD: F32) -> Callable[[], float]:
    """Return a function that times all products of queries and bank, in seconds."""
    query, bank = torch.from_numpy(query_QD), torch.from_numpy(bank_BD)
    out = torch.ones(len(query), len(bank))

    def once() -> float:
        began = time.perf_counter()
        torch.mm(query, bank.T, out=out)
        return time.perf_counter() - began

    return once


def _search(query_QD: F32, bank_BD: F32, repeats: int) -> Row:
    name = f"the {K} nearest of {len(bank_BD):,} rows of width {bank_BD.shape[1]:,}; ceiling: the products' GEMM"
    return _row(name, query_QD, bank_BD, lambda: neighbors.search(query_QD, bank_BD, K), lambda found: found, repeats)


def _others(x_RD: F32, repeats: int) -> Row:
    """Peers search for one more neighbour, the row itself."""
    k = max(neighbors.RECALL_AT)

    def without_self(found_Rk: I64) -> I64:
        keep = found_Rk != np.arange(len(x_RD))[:, None]
        keep[keep.all(axis=1), -1] = False
        return found_Rk[keep].reshape(len(x_RD), -1)

    name = f"the {k} nearest others of {len(x_RD):,} rows; ceiling: the products' GEMM"
    return _row(name, x_RD, x_RD, lambda: neighbors.others(x_RD, k), without_self, repeats, k + 1)


def _row(
    name: str,
    query_QD: F32,
    bank_BD: F32,
    ours: Callable[[], I64],
    finish: Callable[[I64], I64],
    repeats: int,
    k: int = K,
) -> Row:
    found: dict[str, I64] = {}

    def contender(who: str, work: Callable[[], I64]) -> Callable[[], None]:
        def once() -> None:
            found[who] = work()

        return once

    def peer(who: str, work: Callable[[F32, F32, int], I64]) -> Callable[[], None]:
        return contender(who, lambda: finish(work(query_QD, bank_BD, k)))

    contenders: dict[str, Callable[[], object]] = {
        OURS: contender(OURS, ours),
        CEILING: products(query_QD, bank_BD),
        SKLEARN: peer(SKLEARN, by_sklearn),
        TORCH: peer(TORCH, by_torch),
        FLAT: peer(FLAT, by_index),
    }
    timings = interleave(contenders, repeats=repeats)
    mine = np.sort(found.pop(OURS), axis=1)
    facts = {"k": mine.shape[1], "bank": len(bank_BD)}
    facts |= {
        f"equal sets, {who}": float((np.sort(other, axis=1) == mine).all(axis=1).mean()) for who, other in found.items()
    }
    return Row(name, "queries", len(query_QD), timings, facts=facts)

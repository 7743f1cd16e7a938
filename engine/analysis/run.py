"""Analysis of one backbone: from a table of embeddings to JSON."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from substyle.engine.analysis import geometry, neighbors
from substyle.engine.analysis.projection import embedding_map
from substyle.engine.config import AnalysisConfig
from substyle.engine.observability import ProgressBar, stage
from substyle.engine.results.model import entry_of
from substyle.engine.store.layout import TEST, TRAIN, VAL
from substyle.engine.store.table import EmbeddingTable


def analyze(table: EmbeddingTable, config: AnalysisConfig, *, quiet: bool = False) -> dict[str, Any]:
    """Analyze the embeddings of one backbone: neighbours, clusters and geometry.

    Args:
        table: embeddings.

    Returns:
        JSON-ready keys ``knn``, ``balance``, ``retrieval``, ``clusters`` (over variants of test photographs),
        ``sensitivity``, ``equivariance``, ``steerability``, ``steerability_unchanged`` (one number per transformation
        except identity), ``map`` (see `embedding_map`) and ``sampled`` (numbers of sampled images and rows). Undefined
        numbers are None.
    """
    device = neighbors.search_device(config.device)
    moving = [t for t, name in enumerate(table.transformations) if name != "identity"]
    with limited(config.threads), stage(f"analyze {table.backbone}", len(moving) + 5, "steps", quiet=quiet) as bar:
        queries = geometry.query_rows(table, config.max_queries, config.seed, config.resample_by)
        bank = geometry.bank_rows(table, config.max_bank, config.seed)
        bar.advance()
        knn = neighbors.knn(queries, bank, config.ks, classes=table.has_classes, seed=config.seed, device=device)
        bank_images = len(np.unique(bank.image_R))
        del bank
        bar.advance()
        neighbour_Rk = neighbors.others(queries.x_RD, max(neighbors.RECALL_AT), device)
        answer: dict[str, Any] = {
            "knn": knn,
            "balance": neighbors.balance(queries, neighbour_Rk, config.seed),
            "retrieval": neighbors.retrieval(queries, neighbour_Rk),
        }
        bar.advance()
        classes = len(np.unique(queries.label_R[queries.label_R >= 0])) if table.has_classes else 0
        answer["clusters"] = neighbors.clusters(queries, len(set(table.families)), classes, config.seed, device)
        bar.advance()
        answer |= embedding_map(table, queries, config)
        bar.advance()
        answer |= _geometry(table, moving, config, bar)
    answer["sampled"] |= {
        "queries": len(queries),
        "query_images": len(np.unique(queries.image_R)),
        "bank": knn["bank"],
        "bank_images": bank_images,
        "resample_by": config.resample_by,
    }
    return answer


def _geometry(table: EmbeddingTable, moving: list[int], config: AnalysisConfig, bar: ProgressBar) -> dict[str, Any]:
    train, val, test = (
        geometry.draw_images(table, table.rows(split), config.max_images, config.seed) for split in (TRAIN, VAL, TEST)
    )
    if len(val) == 0:  # select the ridge strength on every fifth training image instead
        val, train = train[::5], np.delete(train, np.s_[::5])
    names = ("sensitivity", "equivariance", "steerability", "steerability_unchanged")
    answer: dict[str, Any] = {name: {} for name in names}
    ridges: dict[bytes, geometry.Ridge] = {}
    group_N = table.groups(config.resample_by)
    mean_D = (table.take_finite(0, test).sum(axis=0, dtype=np.float64) / max(len(test), 1)).astype(np.float32)
    for t in moving:
        name, keep_N = table.transformations[t], table.distinct_TN[t]
        fit, choose, score = train[keep_N[train]], val[keep_N[val]], test[keep_N[test]]
        identity_MD, variant_MD = table.take_finite(0, score), table.take_finite(t, score)
        value_M = geometry.sensitivity(identity_MD, variant_MD, mean_D)
        group_M, by = group_N[score], config.resample_by
        answer["sensitivity"][name] = geometry.mean_entry(value_M, group_M, config.seed, by)
        value, ends, moved = geometry.equivariance(identity_MD, variant_MD, group_M, config.seed)
        answer["equivariance"][name] = entry_of(value, ends, moved, by)
        train_y_ND = table.take_finite(t, fit)
        answer["steerability_unchanged"][name] = geometry.unchanged_r2(train_y_ND, identity_MD, variant_MD)
        answer["steerability"][name] = None
        if len(fit) >= 2:
            # transformations with the same distinct training images share one decomposition
            cached = fit.tobytes()
            if cached not in ridges:
                ridges[cached] = geometry.Ridge.of(table.take_finite(0, fit))
            ridge = ridges[cached]
            answer["steerability"][name] = geometry.steerability(
                ridge,
                train_y_ND,
                val_z_VK=ridge.coordinates(table.take_finite(0, choose)),
                val_y_VD=table.take_finite(t, choose),
                test_z_MK=ridge.coordinates(identity_MD),
                test_y_MD=variant_MD,
            )
        bar.advance()
    answer["sampled"] = {"ridge_train": len(train), "ridge_val": len(val), "test_images": len(test)}
    return answer


@contextmanager
def limited(count: int) -> Iterator[None]:
    """Limit BLAS and OpenMP threads, including FAISS, during the block; 0 for no limit."""
    if count == 0:
        yield
        return
    import faiss
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    before = faiss.omp_get_max_threads()
    with threadpool_limits(limits=count):
        faiss.omp_set_num_threads(count)
        try:
            yield
        finally:
            faiss.omp_set_num_threads(before)

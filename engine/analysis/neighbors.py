"""Nearest neighbours, k-NN accuracy, balance and clusters, by FAISS on a CPU or a GPU."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.analysis.geometry import F32, I64, SampledRows, mean_entry
from substyle.engine.devices import AUTO
from substyle.engine.probes.resampling import ACCURACY, BootstrapResult
from substyle.engine.results.model import entry_of
from substyle.errors import ConfigError
from substyle.kernels.dispatch import CPU, as_device

MEMORY_LIMIT = 8 << 30  # maximum bytes of vectors, and of queries, on the GPU at once


@cache
def gpu_resources() -> Any:  # noqa: ANN401 - FAISS ships no types
    """FAISS GPU resources, created once; None without a GPU build of FAISS or a GPU."""
    import faiss

    counted = getattr(faiss, "get_num_gpus", None)
    if counted is None or counted() == 0 or not hasattr(faiss, "StandardGpuResources"):
        return None
    return faiss.StandardGpuResources()


def search_device(name: str = AUTO) -> torch.device:
    """Device of FAISS: the named one, or for ``auto`` the current GPU, else the CPU.

    If FAISS does not support GPUs, it is the CPU, and a note is printed once.

    Raises:
        ConfigError("device"): the device is not available.
    """
    if name == AUTO:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = as_device(name)
    if device.type == "cuda" and gpu_resources() is None:
        _say_unused()
        return CPU
    return device


@cache
def _say_unused() -> None:
    text = "nearest neighbours and clusters run on the CPU: FAISS sees no GPU; install the extra gpu"
    print(text, file=sys.stderr)


def place(x_RD: F32, device: torch.device) -> F32 | torch.Tensor:
    """Move rows to a GPU if they fit, else return them unchanged."""
    return x_RD if device.type == "cpu" or x_RD.nbytes > MEMORY_LIMIT else torch.from_numpy(x_RD).to(device)


# GPU tensors are passed to FAISS by address: importing ``faiss.contrib.torch_utils`` would replace FAISS's functions
# for arrays in the whole process.

BLOCK = 1 << 18  # bank rows searched at once; as float32 0.8 GB at width 768
MOST = 2048  # maximum k of FAISS on a GPU
_FLOATS = (torch.float32, torch.float16)


def search_on_gpu(query_QD: torch.Tensor, bank_BD: torch.Tensor, k: int) -> torch.Tensor:
    """Indices of the k bank rows with the largest inner product with each query, best first (exact, float32).

    Args:
        query_QD, bank_BD: float32 or float16 on one GPU; float16 rows are cast block by block.
        k: at most 2,048.

    Returns:
        (Q, min(k, B)) int64 on that GPU, queued on its current stream.

    Raises:
        ConfigError: ``k`` exceeds the limit of FAISS, or tensors have other types or devices.
    """
    if k > MOST:
        raise ConfigError("k", k, f"at most {MOST} neighbours on a GPU")
    for name, x in (("query", query_QD), ("bank", bank_BD)):
        if x.dtype not in _FLOATS or x.ndim != 2 or x.device != bank_BD.device:
            raise ConfigError(
                name, f"{tuple(x.shape)} {x.dtype} on {x.device}", f"float32 or float16 rows on {bank_BD.device}"
            )
    query_QD = query_QD.float().contiguous()
    near = torch.empty(len(query_QD), 0, device=bank_BD.device)
    found = torch.empty(len(query_QD), 0, dtype=torch.int64, device=bank_BD.device)
    if not len(query_QD):
        return found.new_empty(0, min(k, len(bank_BD)))
    for start in range(0, len(bank_BD), BLOCK):
        block_BD = bank_BD[start : start + BLOCK].float().contiguous()
        of_block, index = _block(query_QD, block_BD, min(k, len(block_BD)))
        near, found = torch.cat([near, of_block], 1), torch.cat([found, index + start], 1)
        if near.shape[1] > k:
            near, best = near.topk(k, dim=1)
            found = found.gather(1, best)
    return found


def _block(query_QD: torch.Tensor, bank_BD: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inner products (Q, k) and indices (Q, k) of the best rows; inputs must be contiguous."""
    faiss: Any = importlib.import_module("faiss")  # names that only the GPU build has
    near = torch.empty(len(query_QD), k, device=bank_BD.device)
    found = torch.empty(len(query_QD), k, dtype=torch.int64, device=bank_BD.device)
    resources: Any = gpu_resources()
    wanted = faiss.GpuDistanceParams()
    wanted.metric, wanted.k, wanted.dims = faiss.METRIC_INNER_PRODUCT, k, bank_BD.shape[1]
    wanted.vectors, wanted.numVectors = faiss.cast_integer_to_float_ptr(bank_BD.data_ptr()), len(bank_BD)
    wanted.queries, wanted.numQueries = faiss.cast_integer_to_float_ptr(query_QD.data_ptr()), len(query_QD)
    wanted.vectorType = wanted.queryType = faiss.DistanceDataType_F32
    wanted.vectorsRowMajor = wanted.queriesRowMajor = True
    wanted.outDistances = faiss.cast_integer_to_float_ptr(near.data_ptr())
    wanted.outIndices = faiss.cast_integer_to_idx_t_ptr(found.data_ptr())
    wanted.outIndicesType = faiss.IndicesDataType_I64
    wanted.device = bank_BD.device.index
    with torch.cuda.device(bank_BD.device):
        # FAISS uses torch's current stream, so no synchronisation is needed
        stream = torch.cuda.current_stream(bank_BD.device)
        resources.setDefaultStream(bank_BD.device.index, faiss.cast_integer_to_cudastream_t(stream.cuda_stream))
        faiss.bfKnn(resources, wanted)
    return near, found


RECALL_AT = (1, 5, 10)
_BLOCK = 4096  # queries per block of the vote


def search(query_QD: F32 | torch.Tensor, bank_BD: F32 | torch.Tensor, k: int, device: torch.device = CPU) -> I64:
    """Indices of the k most similar bank rows of each query, best first (exact, inner product, float32).

    Two tensors are searched on their GPU (see `place`), arrays on ``device``; for k > 2,048 both on the CPU.
    Shape: (Q, D), (B, D) to (Q, min(k, B)).
    """
    import faiss

    k = min(k, len(bank_BD))
    if k == 0 or len(query_QD) == 0:
        return np.empty((len(query_QD), k), dtype=np.int64)
    if isinstance(query_QD, torch.Tensor) and isinstance(bank_BD, torch.Tensor) and k <= MOST:
        return np.asarray(search_on_gpu(query_QD, bank_BD, k).cpu().numpy())
    query_QD, bank_BD = (x.float().cpu().numpy() if isinstance(x, torch.Tensor) else x for x in (query_QD, bank_BD))
    if device.type == "cpu" or k > MOST:
        _, index_Qk = faiss.knn(query_QD, bank_BD, k, metric=faiss.METRIC_INNER_PRODUCT)
    else:
        _, index_Qk = faiss.knn_gpu(
            gpu_resources(),
            query_QD,
            bank_BD,
            k,
            metric=faiss.METRIC_INNER_PRODUCT,
            device=device.index,
            vectorsMemoryLimit=MEMORY_LIMIT,
            queriesMemoryLimit=MEMORY_LIMIT,
        )
    return np.asarray(index_Qk, dtype=np.int64)


def others(x_RD: F32, k: int, device: torch.device = CPU) -> I64:
    """Indices of the k most similar other rows of each row, best first. Shape: (R, D) to (R, min(k, R - 1))."""
    placed_RD = place(x_RD, device)
    found_Rk = search(placed_RD, placed_RD, k + 1, device)
    width = found_Rk.shape[1] - 1
    if width < 1:
        return np.empty((len(x_RD), 0), dtype=np.int64)
    self_Rk = found_Rk == np.arange(len(x_RD))[:, None]
    # with exact ties a row may not find itself: drop its last neighbour instead
    self_Rk[~self_Rk.any(axis=1), -1] = True
    return np.asarray(found_Rk[~self_Rk].reshape(len(x_RD), width), dtype=np.int64)


def vote(label_Qk: I64) -> I64:
    """Majority label of each query's neighbours, ordered best first; ties go to the nearest. Shape: (Q, k) to (Q,)."""
    result = np.empty(len(label_Qk), dtype=np.int64)
    for start in range(0, len(label_Qk), _BLOCK):
        block = label_Qk[start : start + _BLOCK]
        votes_Qk = np.zeros(block.shape, dtype=np.int32)
        for j in range(block.shape[1]):
            votes_Qk += block == block[:, j : j + 1]
        # argmax returns the first maximum: the label with the nearest voter
        result[start : start + _BLOCK] = block[np.arange(len(block)), votes_Qk.argmax(axis=1)]
    return result


def knn(
    queries: SampledRows, bank: SampledRows, ks: Sequence[int], *, classes: bool, seed: int, device: torch.device = CPU
) -> dict[str, Any]:
    """Accuracy of a k-NN vote on the transformation and, with ``classes``, on the class, with 95 % intervals.

    Unlabelled rows are excluded from the class vote. A k larger than the bank gives None.
    """
    answer: dict[str, Any] = {"queries": len(queries), "bank": len(bank), "class": None}
    asked, there = place(queries.x_RD, device), place(bank.x_RD, device)
    neighbour_Qk = search(asked, there, max(ks), device)
    votes_Qk = bank.transformation_R[neighbour_Qk]
    answer["transformation"] = _score(queries, queries.transformation_R, votes_Qk, ks, seed)
    if classes:
        asking, voting = queries.take(queries.label_R >= 0), bank.take(bank.label_R >= 0)
        if len(voting) < len(bank):
            neighbour_Qk = search(_where(asked, queries), _where(there, bank), max(ks), device)
        elif len(asking) < len(queries):
            neighbour_Qk = neighbour_Qk[queries.label_R >= 0]
        votes_Qk = voting.label_R[neighbour_Qk]
        answer["class"] = _score(asking, asking.label_R, votes_Qk, ks, seed)
    return answer


def _where(x_RD: F32 | torch.Tensor, rows: SampledRows) -> F32 | torch.Tensor:
    labelled_R = rows.label_R >= 0
    return x_RD[labelled_R] if isinstance(x_RD, np.ndarray) else x_RD[torch.from_numpy(labelled_R).to(x_RD.device)]


def _score(
    queries: SampledRows, truth_Q: I64, votes_Qk: I64, ks: Sequence[int], seed: int
) -> dict[str, dict[str, Any] | None]:
    accuracy: dict[str, dict[str, Any] | None] = {}
    for k in ks:
        accuracy[str(k)] = None
        if k <= votes_Qk.shape[1]:
            hit_Q = vote(votes_Qk[:, :k]) == truth_Q
            accuracy[str(k)] = mean_entry(hit_Q, queries.group_R, seed, queries.unit)
    return accuracy


def balance(rows: SampledRows, neighbour_Rk: I64, seed: int) -> dict[str, Any]:
    """Fractions of rows whose nearest other row shows the same image, else shares the transformation, or neither.

    Another severity of the transformation on the same image counts as ``same_image``, so that ``both`` is 0 and the
    other three sum to 1. Intervals are 95 %, from a bootstrap over groups with neighbours fixed. Fractions
    are None with fewer than two rows.

    Returns:
        each fraction by name, and the number of ``queries``.
    """
    names = ("same_image", "same_transformation", "both", "neither")
    if neighbour_Rk.shape[1] == 0:
        return {**dict.fromkeys(names), "queries": 0}
    nearest_R = neighbour_Rk[:, 0]
    image_R = rows.image_R[nearest_R] == rows.image_R
    style_R = (rows.transformation_R[nearest_R] == rows.transformation_R) & ~image_R
    shares = dict(zip(names, (image_R, style_R, np.zeros_like(image_R), ~image_R & ~style_R), strict=True))
    found = {
        name: mean_entry(share_R if name != "both" else share_R.astype(np.float64), rows.group_R, seed, rows.unit)
        for name, share_R in shares.items()
    }
    return {**found, "queries": len(rows)}


def retrieval(rows: SampledRows, neighbour_Rk: I64) -> dict[str, dict[str, float | None]]:
    """Recall@k: fraction of rows with a row of the same image, or the same transformation, among the k nearest others.

    For the transformation only rows of other images match, not other severities of the same one. None with fewer than
    k other rows.
    """
    answer: dict[str, dict[str, float | None]] = {}
    image_Rk = rows.image_R[neighbour_Rk] == rows.image_R[:, None]
    style_Rk = (rows.transformation_R[neighbour_Rk] == rows.transformation_R[:, None]) & ~image_Rk
    for name, match_Rk in (("image", image_Rk), ("transformation", style_Rk)):
        answer[name] = {
            str(k): float(match_Rk[:, :k].any(axis=1).mean()) if k <= match_Rk.shape[1] else None for k in RECALL_AT
        }
    return answer


ITERATIONS = 25
RESTARTS = 2
_RESAMPLES = 300


def kmeans(x_RD: F32, k: int, seed: int, device: torch.device = CPU) -> I64:
    """Cluster of each row by spherical k-means (unit rows, cosine similarity). Shape: (R, D) to (R,)."""
    import faiss

    if k <= 1:
        return np.zeros(len(x_RD), dtype=np.int64)
    trainer = faiss.Kmeans(
        x_RD.shape[1],
        k,
        niter=ITERATIONS,
        nredo=RESTARTS,
        spherical=True,
        seed=seed % 2**31,
        min_points_per_centroid=1,
        verbose=False,
    )
    if device.type == "cuda":  # the argument gpu is a number of GPUs, from the first one on
        trainer.index = faiss.index_cpu_to_gpu(gpu_resources(), device.index, trainer.index)
    trainer.train(x_RD)
    _, index_R1 = trainer.index.search(x_RD, 1)
    return np.asarray(index_R1[:, 0], dtype=np.int64)


def adjusted_mutual_information(a_R: NDArray[np.integer], b_R: NDArray[np.integer]) -> float:
    """Adjusted mutual information of two labelings: about 0 if unrelated, 1 if identical.

    (I - E[I]) / (mean entropy - E[I]), with the expectation over labelings with the same class sizes: Vinh, Epps and
    Bailey, JMLR 11 (2010). Unlike normalised mutual information it does not rise with the number of clusters.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    return float(adjusted_mutual_info_score(a_R, b_R))


def interval(
    a_R: NDArray[np.integer], b_R: NDArray[np.integer], group_R: NDArray[np.integer], seed: int
) -> list[float] | None:
    """95 % interval of :func:`adjusted_mutual_information` from a bootstrap over groups of rows, such as images.

    Repeated groups raise mutual information, so the resamples' deviations from their mean are added to the value. Few
    rows raise it too, about as much as resampling does; the lower end is reduced by that. The clusters of the group
    that :class:`.probes.resampling.BootstrapResult` adds are independent of the transformations, or equal to them. E[I]
    is that of all rows, since class sizes hardly change. Clusters are fixed: the interval does not cover the choice of
    clusters, transformations or training images.

    Returns:
        [low, high], or None with fewer than two groups or if every resample has a single class.
    """
    from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

    _, group_R = np.unique(group_R, return_inverse=True)
    groups = int(group_R.max(initial=-1)) + 1
    if groups < 2:
        return None
    joint = contingency_matrix(a_R, b_R, sparse=True).astype(np.int64)
    expected = float(expected_mutual_information(joint, len(a_R)))
    cells = [np.unique(x, return_inverse=True, axis=0)[1].ravel() for x in (a_R, b_R, np.stack([a_R, b_R], axis=1))]
    value_S = np.empty(_RESAMPLES)
    for s, count_G in enumerate(np.random.default_rng(seed).multinomial(groups, [1 / groups] * groups, _RESAMPLES)):
        of_a, of_b, of_both = (_entropy(np.bincount(cell_R, weights=count_G[group_R])) for cell_R in cells)
        room = (of_a + of_b) / 2 - expected
        value_S[s] = (of_a + of_b - of_both - expected) / room if room > 0 else np.nan
    value_S = value_S[np.isfinite(value_S)]
    if not len(value_S):
        return None
    value = adjusted_mutual_information(a_R, b_R)
    raised = max(float(value_S.mean()) - value, 0.0)
    centred_S = value + value_S - value_S.mean()
    ends = [BootstrapResult(value, each_S, groups, bounds=ACCURACY).ci95 for each_S in (centred_S - raised, centred_S)]
    return None if ends[0] is None or ends[1] is None else [ends[0][0], ends[1][1]]


def _entropy(count_C: NDArray[np.number[Any]]) -> float:
    share_C = count_C[count_C > 0] / count_C.sum()
    return float(-(share_C * np.log(share_C)).sum())


def clusters(rows: SampledRows, variants: int, classes: int, seed: int, device: torch.device = CPU) -> dict[str, Any]:
    """Adjusted mutual information, with intervals, of k-means clusters with transformations and with classes.

    k is the number of transformations or classes; classes use labelled rows only. None with fewer rows than clusters
    or fewer than two classes.
    """
    answer: dict[str, Any] = {"k": {"transformation": variants, "class": classes if classes >= 2 else None}}
    labelled = rows.take(rows.label_R >= 0)
    wanted = (("transformation", rows, variants, rows.transformation_R), ("class", labelled, classes, labelled.label_R))
    for name, those, k, truth_R in wanted:
        answer[f"ami_{name}"] = None
        if len(those) >= k >= 2:
            cluster_R = kmeans(those.x_RD, k, seed, device)
            ami = adjusted_mutual_information(cluster_R, truth_R)
            ends = interval(cluster_R, truth_R, those.group_R, seed)
            answer[f"ami_{name}"] = entry_of(ami, ends, len(np.unique(those.group_R)), those.unit)
    return answer

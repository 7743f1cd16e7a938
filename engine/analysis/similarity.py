"""Similarity of backbones: CKA and RSA over variants of the same test photographs.

Intervals are percentiles over random halves of the photographs. A bootstrap would draw pairs of copies, which are equal
in every backbone. A half's estimate varies around that of all photographs as that of all photographs varies around the
true one, so its percentiles need no rescaling (the delete-half jackknife: Shao and Wu, "A general theory for jackknife
variance estimation", Annals of Statistics 17(3), 1989).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.analysis.geometry import F32, I64, RESAMPLES, draw_images, unit
from substyle.engine.analysis.run import limited
from substyle.engine.config import AnalysisConfig
from substyle.engine.observability import stage
from substyle.engine.results.model import entry_of
from substyle.engine.store.layout import TEST
from substyle.engine.store.table import EmbeddingTable

F64 = NDArray[np.float64]
MEASURES = ("cka", "rsa", "rsa_offsets")
_BLOCKS = 100  # units of which halves are drawn: photographs, or groups of them if there are more
_ROWS = 300  # variants compared by RSA, which takes memory and time of all pairs
_AT_ONCE = 50  # halves at once
_FEWEST = 4  # blocks, rows and offsets; debiased HSIC is defined for four rows or more


def similarity(tables: Sequence[EmbeddingTable], config: AnalysisConfig, *, quiet: bool = False) -> dict[str, Any]:
    """Compare all pairs of backbones on variants of the same test photographs.

    ``cka``: debiased linear CKA of the embeddings. ``rsa``: Spearman correlation of the cosines between variants of
    different photographs, after subtracting the mean, on at most 300 variants. ``rsa_offsets``: the same for the mean
    offset of each transformation from its originals. Memory is N · ΣD numbers for N variants of all backbones.

    Args:
        tables: tables of the same photographs and transformations.
        config: ``max_queries`` bounds the number of variants.

    Returns:
        JSON-ready keys ``pairs``: by backbone and a later backbone, each measure, None if undefined;
        and ``sampled``: numbers of photographs, variants and variants compared by RSA, and ``resample_by``.
    """
    first = tables[0]
    count = max(config.max_queries // len(first.transformations), 1)
    images = draw_images(first, first.rows(TEST), count, config.seed)
    rng = np.random.default_rng(config.seed)
    unit_M = np.unique(first.groups(config.resample_by)[images], return_inverse=True)[1]
    units = int(unit_M.max(initial=-1)) + 1
    block_M = rng.permutation(np.arange(units) % _BLOCKS)[unit_M] if units else unit_M
    order = np.argsort(block_M, kind="stable")
    images, block_M = images[order], block_M[order]
    blocks = min(units, _BLOCKS)
    there_MT = first.distinct_TN[:, images].T
    rows = np.flatnonzero(there_MT.ravel())  # photographs in order of blocks, their variants one after another
    photograph_R = np.repeat(np.arange(len(images)), there_MT.sum(axis=1))
    styled = len(first.transformations) > _FEWEST
    found: dict[str, F64] = {}
    with limited(config.threads), stage("similarity of backbones", len(tables) + 3, "steps", quiet=quiet) as bar:
        if blocks >= _FEWEST:
            half_SG = np.zeros((1 + RESAMPLES, blocks), np.float32)  # the first is not a half but all
            half_SG[0] = 1
            chosen = np.argsort(rng.random((RESAMPLES, blocks)), axis=1)[:, : blocks // 2]
            np.put_along_axis(half_SG[1:], chosen, 1, axis=1)
            xs, offsets = [], []
            for table in tables:
                x_MTD = np.stack([table.take_finite(t, images) for t in range(len(table.transformations))], axis=1)
                if styled:
                    offsets.append(_offset_cosines(x_MTD, there_MT, block_M, half_SG))
                xs.append(_centred(x_MTD.reshape(-1, x_MTD.shape[2])[rows]))
                del x_MTD
                bar.advance()
            found["cka"] = cka(xs, photograph_R, block_M, half_SG)
            bar.advance()
            some = np.sort(rng.permutation(len(rows))[:_ROWS])
            found["rsa"] = _rsa([x[some] for x in xs], photograph_R[some], block_M, half_SG)
            bar.advance()
            if styled:
                found["rsa_offsets"] = _correlations(np.stack(offsets, axis=1))
            bar.advance()
    pairs: dict[str, dict[str, Any]] = {}
    for i, j in combinations(range(len(tables)), 2):
        measures = {name: _estimate(found.get(name), i, j, units, config.resample_by) for name in MEASURES}
        pairs.setdefault(tables[i].backbone, {})[tables[j].backbone] = measures
    sampled: dict[str, Any] = {"images": len(images), "variants": len(rows), "rsa_variants": min(len(rows), _ROWS)}
    sampled["resample_by"] = config.resample_by
    return {"pairs": pairs, "sampled": sampled}


def _estimate(value_SBB: F64 | None, i: int, j: int, units: int, unit: str) -> dict[str, Any] | None:
    value_S = np.full(1, np.nan) if value_SBB is None else value_SBB[:, i, j]
    half_S = value_S[1:][np.isfinite(value_S[1:])]
    ci95 = np.percentile(half_S, (2.5, 97.5)).tolist() if len(half_S) > RESAMPLES // 2 else None
    return entry_of(float(value_S[0]), ci95, units, unit) if np.isfinite(value_S[0]) else None


def _centred(x_RD: F32) -> F32:
    """Subtract the mean and divide by the largest entry, so that products of rows do not overflow float32."""
    x_RD = x_RD - x_RD.mean(axis=0, dtype=np.float64).astype(np.float32) if len(x_RD) else x_RD
    return x_RD / max(float(np.abs(x_RD).max(initial=0.0)), float(np.finfo(np.float32).tiny))


def cka(xs: Sequence[F32], photograph_R: I64, block_M: I64, keep_SG: F32) -> F64:
    """Debiased linear CKA of all pairs of backbones, on subsets of the photographs.

    CKA as in Kornblith et al., "Similarity of neural network representations revisited", ICML 2019, with linear kernels
    k and l and the unbiased estimator of HSIC of Song et al., "Feature selection via dependence maximization", JMLR 13,
    2012: mean k_ij l_ij + mean k_ij l_qr - 2 mean k_ij l_iq over different i, j, q, r. Here these are variants of
    different photographs, so that the number of photographs does not change the expectation. With one variant of each
    it is equation 5 of Song et al. Kernels are computed for one block of photographs at a time.

    Args:
        xs: centred embeddings of each of B backbones, (R, D) float32.
        photograph_R: photograph of each row, ascending from 0.
        block_M: block of each of the M photographs, ascending from 0.
        keep_SG: (S, G) 1 or 0, whether a subset has a block.

    Returns:
        (S, B, B), NaN if undefined.
    """
    blocks = keep_SG.shape[1]
    size_M = np.bincount(photograph_R, minlength=len(block_M))
    start_M = np.searchsorted(photograph_R, np.arange(len(block_M)))
    edge_G = np.searchsorted(block_M, np.arange(blocks + 1))  # of photographs
    row_G = np.append(start_M, len(photograph_R))[edge_G]  # of rows
    sums = [np.add.reduceat(x.astype(np.float64), start_M, axis=0).astype(np.float32) for x in xs]

    # sums over pairs of photographs (g, h), by blocks: of k_ij l_ij, of k_ih l_ih and of k_gh l_gh, where k_ih is the
    # sum of k_ij over the variants j of h
    pairs_BBGG, halves_BBGG, whole_BBGG = (np.zeros((len(xs), len(xs), blocks, blocks)) for _ in range(3))
    for g in range(blocks):
        rows, own = slice(row_G[g], row_G[g + 1]), slice(edge_G[g], edge_G[g + 1])
        other_IR = photograph_R[rows, None] != photograph_R[row_G[g] :]
        kernel_BIR = np.stack([x[rows] @ x[row_G[g] :].T for x in xs]) * other_IR
        half_BIM = np.stack([x[rows] @ sum_MD.T for x, sum_MD in zip(xs, sums, strict=True)])
        half_BIM *= photograph_R[rows, None] != np.arange(len(block_M))
        whole_BMM = np.add.reduceat(half_BIM, start_M[own] - row_G[g], axis=1)
        for h in range(blocks):
            there = slice(edge_G[h], edge_G[h + 1])
            halves_BBGG[:, :, g, h] = _products(half_BIM[:, :, there])
            whole_BBGG[:, :, g, h] = _products(whole_BMM[:, :, there])
            if h >= g:
                product_BB = _products(kernel_BIR[:, :, row_G[h] - row_G[g] : row_G[h + 1] - row_G[g]])
                pairs_BBGG[:, :, g, h] = pairs_BBGG[:, :, h, g] = product_BB

    value_SBB = np.empty((len(keep_SG), len(xs), len(xs)))
    for start in range(0, len(keep_SG), _AT_ONCE):
        keep_CG = keep_SG[start : start + _AT_ONCE].astype(np.float64)
        keep_CM = keep_CG[:, block_M]
        p1, p2, p3, p4 = (keep_CM @ size_M.astype(np.float64) ** power for power in range(1, 5))
        row_CBR, photograph_CBM = [], []  # sums of k over all other photographs: k_i and k_g
        for x, sum_MD in zip(xs, sums, strict=True):
            all_CD = (keep_CM @ sum_MD).astype(np.float32)
            row_RC = x @ all_CD.T - np.einsum("rd,rd->r", x, sum_MD[photograph_R])[:, None]
            row_CBR.append(row_RC.T * keep_CM[:, photograph_R])
            photograph_CBM.append(np.add.reduceat(row_CBR[-1], start_M, axis=1))
        row, photograph = np.stack(row_CBR, axis=1), np.stack(photograph_CBM, axis=1)
        total_CB = photograph.sum(axis=2)
        pairs, halves, whole = (
            np.einsum("cg,abgh,ch->cab", keep_CG, each, keep_CG, optimize=True)
            for each in (pairs_BBGG, halves_BBGG, whole_BBGG)
        )
        three = row @ row.transpose(0, 2, 1) - halves
        four = (
            total_CB[:, :, None] * total_CB[:, None, :] - 4 * (photograph @ photograph.transpose(0, 2, 1)) + 2 * whole
        )
        number = (
            p1**2 - p2,
            p1**3 - 3 * p1 * p2 + 2 * p3,
            p1**4 - 6 * p1**2 * p2 + 3 * p2**2 + 8 * p1 * p3 - 6 * p4,
        )  # of pairs, triples and quadruples of variants of different photographs
        with np.errstate(divide="ignore", invalid="ignore"):
            two, triples, quadruples = (each[:, None, None] for each in number)
            hsic_CBB = pairs / two + four / quadruples - 2 * three / triples
            hsic_CBB[keep_CM.sum(axis=1) < _FEWEST] = np.nan
            own_CB = np.sqrt(np.einsum("cbb->cb", hsic_CBB))
            value_SBB[start : start + _AT_ONCE] = hsic_CBB / (own_CB[:, :, None] * own_CB[:, None, :])
    return value_SBB


def _products(kernel_BIJ: F32) -> F32:
    """Sums of products of entries of each pair of B matrices. Shape: (B, I, J) to (B, B)."""
    flat = kernel_BIJ.reshape(len(kernel_BIJ), -1)
    return flat @ flat.T


def _rsa(xs: Sequence[F32], photograph_R: I64, block_M: I64, keep_SG: F32) -> F64:
    """Spearman correlations of the cosines between variants of different photographs, in subsets of the photographs.

    Arguments and result are those of `cka`.
    """
    row_P, column_P = np.triu_indices(len(photograph_R), 1)
    different_P = photograph_R[row_P] != photograph_R[column_P]
    row_P, column_P = row_P[different_P], column_P[different_P]
    levels, level_P = [], []
    for x_RD in xs:
        u_RD = unit(x_RD)
        value_L, place_P = np.unique((u_RD @ u_RD.T)[row_P, column_P], return_inverse=True)
        levels.append(len(value_L))
        level_P.append(place_P)
    value_SBB = np.empty((len(keep_SG), len(xs), len(xs)))
    for s, keep_G in enumerate(keep_SG):
        keep_R = keep_G[block_M[photograph_R]] > 0
        pairs = np.flatnonzero(keep_R[row_P] & keep_R[column_P])
        ranks = np.empty((1, len(xs), len(pairs)))
        for b, (count, place_P) in enumerate(zip(levels, level_P, strict=True)):
            # as scipy.stats.rankdata, without sorting again
            place = place_P[pairs]
            times_L = np.bincount(place, minlength=count)
            ranks[0, b] = (np.cumsum(times_L) - (times_L - 1) / 2)[place]
        value_SBB[s] = _pearson(ranks)[0]
    return value_SBB


def _offset_cosines(x_MTD: F32, there_MT: NDArray[np.bool_], block_M: I64, keep_SG: F32) -> F64:
    """Cosines between mean offsets of transformations from their originals, in each subset.

    Shape: (M, T, D), the first transformation being identity, to (S, P), P = (T - 1) (T - 2) / 2.
    """
    offset_MTD = np.where(there_MT[:, 1:, None], x_MTD[:, 1:] - x_MTD[:, :1], np.float32(0))
    edges = np.searchsorted(block_M, np.arange(keep_SG.shape[1]))
    offset_GX = np.add.reduceat(offset_MTD, edges, axis=0).reshape(len(edges), -1)
    pairs = np.triu_indices(offset_MTD.shape[1], 1)
    cosine_SP = np.empty((len(keep_SG), len(pairs[0])))
    for start in range(0, len(keep_SG), _AT_ONCE):
        # sums, since the cosine does not depend on their number
        sum_XD = (keep_SG[start : start + _AT_ONCE] @ offset_GX).reshape(-1, offset_MTD.shape[2])
        u_STD = unit(sum_XD).reshape(-1, *offset_MTD.shape[1:])
        cosine_SP[start : start + _AT_ONCE] = (u_STD @ u_STD.transpose(0, 2, 1))[:, *pairs]
    return cosine_SP


def _correlations(value_SBP: F64) -> F64:
    """Spearman correlations of P values of B backbones. Shape: (S, B, P) to (S, B, B)."""
    from scipy.stats import rankdata  # slow to import

    return _pearson(rankdata(value_SBP, axis=2))


def _pearson(value_SBP: F64) -> F64:
    centred = value_SBP - value_SBP.mean(axis=2, keepdims=True) if value_SBP.shape[2] else value_SBP
    product = centred @ centred.transpose(0, 2, 1)
    own = np.sqrt(np.einsum("sbb->sb", product))
    with np.errstate(divide="ignore", invalid="ignore"):
        value: F64 = product / (own[:, :, None] * own[:, None, :])
    return value

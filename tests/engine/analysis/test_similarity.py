"""CKA and RSA of backbones against direct formulas, and rank correlations against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import kendalltau, spearmanr
from tests.conftest import slow_after
from tests.tables import table_of

from substyle.engine.analysis.robustness import Replicates, rank_correlations, robustness
from substyle.engine.analysis.similarity import similarity
from substyle.engine.config import AnalysisConfig
from substyle.engine.extensions.claims.claims import FEWEST_CORRELATED
from substyle.engine.probes.resampling import BootstrapResult
from substyle.engine.store.table import EmbeddingTable

T = 7


@pytest.fixture(autouse=True)
def fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("substyle.engine.analysis.similarity.RESAMPLES", 100)


def table(name: str, x_TND: np.ndarray, **changes: object) -> EmbeddingTable:
    names = ["identity", *(f"t{i}" for i in range(1, len(x_TND)))]
    return table_of(x_TND, names, (0, 0, x_TND.shape[1]), backbone=name, **changes)


def related(seed: int, images: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Two embeddings of other widths that share eight factors of photographs and variants."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(1, images, 8)) + rng.normal(size=(T, 1, 8)) + 0.3 * rng.normal(size=(T, images, 8))
    return tuple(
        3 + shared @ rng.normal(size=(8, width)) + noise * rng.normal(size=(T, images, width)) for width in (24, 40)
    )


def direct_cka(x: np.ndarray, y: np.ndarray, photograph: np.ndarray) -> float:
    """Song et al. 2012: means over tuples of rows of different photographs, from kernels of N by N."""
    other = (photograph[:, None] != photograph).astype(np.float64)

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        k, m = k * other, m * other
        two = (k * m).sum() / other.sum()
        three = np.einsum("ij,iq,jq->", k, m, other) / np.einsum("ij,iq,jq->", other, other, other)
        paths = "ij,qr,iq,ir,jq,jr->"
        four = np.einsum(paths, k, m, other, other, other, other, optimize=True)
        return float(two + four / np.einsum(paths, *6 * (other,), optimize=True) - 2 * three)

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def song_cka(x: np.ndarray, y: np.ndarray) -> float:
    """With one row for each photograph: equation 5 of Song et al. 2012."""

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        n, one = len(k), np.ones(len(k))
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        cross = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return float((np.trace(k @ m) + cross - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3)))

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def test_one_variant_of_each_photograph_gives_the_formula_of_song() -> None:
    x, y = related(0, 30, 2.0)
    tables = [table("a", x[:1]), table("b", y[:1])]
    pair = similarity(tables, AnalysisConfig(), quiet=True)["pairs"]["a"]["b"]
    assert pair["cka"]["value"] == pytest.approx(song_cka(x[0], y[0]), abs=1e-5)
    assert pair["rsa_offsets"] is None


@pytest.mark.parametrize("by", slow_after(1, ["photograph", "folder"]))
def test_measures_equal_direct_formulas(by: str) -> None:
    x, y = related(0, 9, 2.0)
    distinct = np.ones((T, 9), np.bool_)
    distinct[3, ::5] = False
    a, b = (
        table(name, each, distinct_TN=distinct, keys=tuple(f"{i}/{i}.jpg" for i in range(9)))
        for name, each in (("a", x), ("b", y))
    )
    found = similarity([a, b], AnalysisConfig(resample_by=by), quiet=True)
    pair = found["pairs"]["a"]["b"]
    rows = a.distinct_TN
    x_RD, y_RD = (each[rows] - each[rows].mean(axis=0) for each in (x, y))
    counts = {"images": 9, "variants": int(rows.sum()), "rsa_variants": int(rows.sum())}
    assert found["sampled"] == counts | {"resample_by": by}
    photograph = np.broadcast_to(np.arange(9), rows.shape)[rows]
    assert pair["cka"]["value"] == pytest.approx(direct_cka(x_RD, y_RD, photograph), abs=1e-5)
    different = pdist(photograph[:, None]) > 0
    distances = [pdist(each, "cosine")[different] for each in (x_RD, y_RD)]
    assert pair["rsa"]["value"] == pytest.approx(spearmanr(*distances).statistic, abs=1e-4)
    offsets = [np.stack([(each[t] - each[0])[rows[t]].mean(axis=0) for t in range(1, T)]) for each in (x, y)]
    expected = spearmanr(*(pdist(each, "cosine") for each in offsets)).statistic
    assert pair["rsa_offsets"]["value"] == pytest.approx(expected, abs=1e-6)
    for name in ("cka", "rsa"):
        assert pair[name]["low"] < pair[name]["value"] < pair[name]["high"]
        assert (pair[name]["n"], pair[name]["unit"]) == (9, by)


def test_rank_correlations_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    x_RK, y_RK = rng.integers(0, 6, size=(2, 20, 9)).astype(float)  # with ties
    rho_R, tau_R = rank_correlations(x_RK, y_RK)
    for r in range(20):
        assert rho_R[r] == pytest.approx(spearmanr(x_RK[r], y_RK[r]).statistic)
        assert tau_R[r] == pytest.approx(kendalltau(x_RK[r], y_RK[r]).statistic)
    assert np.isnan(rank_correlations(np.ones((1, 4)), np.arange(4.0)[None])).all()


def points(count: int, noise: float = 0.01) -> dict[str, Replicates]:
    rng = np.random.default_rng(1)

    def estimate(value: float) -> BootstrapResult:
        return BootstrapResult(value, value + noise * rng.normal(size=300))

    order = rng.permutation(count)
    return {
        f"net{k}": Replicates(
            estimate(0.1 * k), {"night": estimate(0.1 * k), "sketches": estimate(0.05 * float(order[k]))}
        )
        for k in range(count)
    }


def test_few_backbones_have_no_correlation_but_their_numbers() -> None:
    (*_, row) = robustness(points(FEWEST_CORRELATED - 1))
    assert row["spearman"] is row["kendall"] is None
    assert len(row["backbones"]) == FEWEST_CORRELATED - 1
    assert robustness({}) == []

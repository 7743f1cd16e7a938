"""k-means against both labelings: do embeddings fall apart by style or by substance when nobody tells them?"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.analysis import device
from substyle.engine.analysis.sampling import F32, I64, Rows

_ITERATIONS = 25
_RESTARTS = 2
_RESAMPLES = 300


def kmeans(x_RD: F32, k: int, seed: int) -> I64:
    """Cluster of each row by spherical k-means (unit rows, cosine similarity). Shape: (R, D) to (R,)."""
    import faiss

    if k <= 1:
        return np.zeros(len(x_RD), dtype=np.int64)
    trainer = faiss.Kmeans(
        x_RD.shape[1],
        k,
        niter=_ITERATIONS,
        nredo=_RESTARTS,
        spherical=True,
        seed=seed % 2**31,
        min_points_per_centroid=1,
        verbose=False,
        gpu=device.resources() is not None,
    )
    trainer.train(x_RD)
    _, index_R1 = trainer.index.search(x_RD, 1)
    return np.asarray(index_R1[:, 0], dtype=np.int64)


def adjusted_mutual_information(a_R: NDArray[np.integer], b_R: NDArray[np.integer]) -> float:
    """Mutual information of two labelings beyond what chance gives: about 0 unrelated, 1 the same.

    (I - E[I]) / (mean entropy - E[I]), the expectation over labelings with the same numbers of rows in each class:
    Vinh, Epps and Bailey, JMLR 11 (2010). Unlike the normalised form it does not rise with the number of clusters.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    return float(adjusted_mutual_info_score(a_R, b_R))


def interval(
    a_R: NDArray[np.integer], b_R: NDArray[np.integer], image_R: NDArray[np.integer], seed: int
) -> list[float] | None:
    """95 % interval of :func:`adjusted_mutual_information` from a bootstrap over the images of the rows.

    Resamples repeat images, which alone raises mutual information: their deviations from their own mean are laid about
    the value itself. E[I] is that of all rows, since class sizes hardly change. The interval does not cover the choice
    of clusters (they are fixed: no resample is clustered again), of transformations, or of training images.

    Returns:
        [low, high], or None with fewer than two images or where every resample has a single class.
    """
    from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

    _, image_R = np.unique(image_R, return_inverse=True)
    images = int(image_R.max(initial=-1)) + 1
    if images < 2:
        return None
    joint = contingency_matrix(a_R, b_R, sparse=True).astype(np.int64)
    expected = float(expected_mutual_information(joint, len(a_R)))
    cells = [np.unique(x, return_inverse=True, axis=0)[1].ravel() for x in (a_R, b_R, np.stack([a_R, b_R], axis=1))]
    value_S = np.empty(_RESAMPLES)
    for s, count_N in enumerate(np.random.default_rng(seed).multinomial(images, [1 / images] * images, _RESAMPLES)):
        of_a, of_b, of_both = (_entropy(np.bincount(cell_R, weights=count_N[image_R])) for cell_R in cells)
        room = (of_a + of_b) / 2 - expected
        value_S[s] = (of_a + of_b - of_both - expected) / room if room > 0 else np.nan
    value_S = value_S[np.isfinite(value_S)]
    if not len(value_S):
        return None
    low, high = adjusted_mutual_information(a_R, b_R) + np.percentile(value_S - value_S.mean(), (2.5, 97.5))
    return [float(low), float(high)]


def _entropy(count_C: NDArray[np.number[Any]]) -> float:
    share_C = count_C[count_C > 0] / count_C.sum()
    return float(-(share_C * np.log(share_C)).sum())


def clusters(rows: Rows, variants: int, classes: int, seed: int) -> dict[str, Any]:
    """Adjusted mutual information of k-means with k = number of transformations and the transformations, and with
    k = number of classes and the classes (labelled rows only), each with its interval over images.

    None where there are fewer rows than clusters, or fewer than two classes.
    """
    answer: dict[str, Any] = {"k": {"transformation": variants, "class": classes if classes >= 2 else None}}
    labelled = rows.take(rows.label_R >= 0)
    wanted = (
        ("transformation", rows, variants, rows.transformation_R),
        ("class", labelled, classes, labelled.label_R),
    )
    for name, those, k, truth_R in wanted:
        answer[f"ami_{name}"] = answer[f"ami_{name}_ci95"] = None
        if len(those) >= k >= 2:
            cluster_R = kmeans(those.x_RD, k, seed)
            answer[f"ami_{name}"] = adjusted_mutual_information(cluster_R, truth_R)
            answer[f"ami_{name}_ci95"] = interval(cluster_R, truth_R, those.image_R, seed)
    return answer

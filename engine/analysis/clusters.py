"""k-means against both labelings: do embeddings fall apart by style or by substance when nobody tells them?"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.analysis import device
from substyle.engine.analysis.sampling import F32, I64, Rows

_ITERATIONS = 25
_RESTARTS = 2


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


def normalised_mutual_information(a_R: NDArray[np.integer], b_R: NDArray[np.integer]) -> float:
    """Mutual information of two labelings divided by the mean of their entropies: 0 unrelated, 1 the same.

    The arithmetic-mean form of Strehl and Ghosh, JMLR 3 (2002), as in Vinh et al., JMLR 11 (2010); two constant
    labelings count as the same.
    """
    _, a = np.unique(a_R, return_inverse=True)
    _, b = np.unique(b_R, return_inverse=True)
    rows, columns = int(a.max()) + 1, int(b.max()) + 1
    joint = np.bincount(a * columns + b, minlength=rows * columns).reshape(rows, columns) / len(a)
    pa, pb = joint.sum(axis=1), joint.sum(axis=0)
    filled = joint > 0
    information = float((joint[filled] * np.log(joint[filled] / np.outer(pa, pb)[filled])).sum())
    entropy = float(-(pa * np.log(pa)).sum() - (pb * np.log(pb)).sum()) / 2
    return min(max(information / entropy, 0.0), 1.0) if entropy > 0 else 1.0


def clusters(rows: Rows, variants: int, classes: int, seed: int) -> dict[str, Any]:
    """NMI of k-means with k = number of transformations against the transformations, and with k = number of classes
    against the classes (labelled rows only). None where there are fewer rows than clusters, or fewer than two classes.
    """
    by_style = by_class = None
    if len(rows) >= variants >= 2:
        by_style = normalised_mutual_information(kmeans(rows.x_RD, variants, seed), rows.transformation_R)
    labelled = rows.take(rows.label_R >= 0)
    if len(labelled) >= classes >= 2:
        by_class = normalised_mutual_information(kmeans(labelled.x_RD, classes, seed), labelled.label_R)
    return {
        "k": {"transformation": variants, "class": classes if classes >= 2 else None},
        "nmi_transformation": by_style,
        "nmi_class": by_class,
    }

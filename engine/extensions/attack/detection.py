"""Detection of adversarial pictures: scores of embeddings and pictures, AUROC, and the rate at 5 % false positives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from substyle.engine.extensions.attack.craft import ORIGINAL, SQUEEZED
from substyle.engine.probes.checkpoint import Probe
from substyle.engine.probes.resampling import ACCURACY, BootstrapResult
from substyle.engine.store.layout import TRAIN
from substyle.errors import SubstyleError, abbreviated

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
BOOTSTRAP = 1000
FALSE_POSITIVES = 0.05
FEWEST = 5  # detected pictures of fewer photographs are not scored
FEWEST_UNCHANGED = round(5 / FALSE_POSITIVES)  # of fewer, too few are false positives to know the threshold
NEIGHBOURS = 10
CS = (1e-4, 1e-2, 1.0)
FOLDS = 3
STEPS, TOLERANCE = 1000, 1e-6  # of L-BFGS; where pictures are separable, gradients are small far from the optimum
_AT_ONCE = 20_000_000  # numbers in memory


def detection(
    attacked_N: F64,
    original_N: F64,
    counted_N: NDArray[np.bool_],
    group_N: I64,
    *,
    seed: int,
    resamples: int = BOOTSTRAP,
    unit: str = "",
) -> dict[str, BootstrapResult] | None:
    """AUROC, and true-positive rate at a false-positive rate of at most 5 %, of a score that is high for attacks.

    A resample draws photographs (or groups) with their original and their attacked picture.

    Args:
        attacked_N, original_N: scores of both pictures of N photographs.
        counted_N: attacked pictures that count, such as successful attacks; all original ones count.
        group_N: group of each photograph; a single group has no intervals.
        unit: what these groups are.

    Returns:
        ``auroc`` and ``tpr``, the latter with an interval if there are at least `FEWEST_UNCHANGED` photographs (or
        groups); None if attacks on fewer than `FEWEST` photographs count.

    Raises:
        SubstyleError: a score that counts is NaN, which would rank as not attacked.
    """
    if counted_N.sum() < FEWEST:
        return None
    unknown = np.flatnonzero(np.isnan(original_N) | (counted_N & np.isnan(attacked_N)))
    if len(unknown):
        rows = abbreviated([str(row) for row in unknown])
        raise SubstyleError(f"detection scores of {len(unknown)} of {len(original_N)} photographs are NaN: rows {rows}")
    groups, place_N = np.unique(group_N, return_inverse=True)
    rng = np.random.Generator(np.random.PCG64([seed, len(groups), 0x61747461]))
    drawn_RG = rng.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), size=resamples)
    times_RN = np.concatenate([np.ones((1, len(place_N))), drawn_RG[:, place_N]])
    order = np.argsort(-original_N, kind="stable")
    negative_N, positive_P = original_N[order], attacked_N[counted_N]
    above_PN = (positive_P[:, None] > negative_N).astype(np.float64)
    wins_PN = above_PN + 0.5 * (positive_P[:, None] == negative_N)
    auroc, tpr = [], []
    size = max(1, _AT_ONCE // max(above_PN.shape))
    for start in range(0, len(times_RN), size):
        times = times_RN[start : start + size]
        positive_RP, negative_RN = times[:, counted_N], times[:, order]
        total_R, negatives_R = positive_RP.sum(1), negative_RN.sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            auroc.append(((positive_RP @ wins_PN) * negative_RN).sum(1) / (total_R * negatives_R))
            # the threshold is the highest negative that must not be exceeded
            many_RN = negative_RN.cumsum(1) > FALSE_POSITIVES * negatives_R[:, None] + 1e-9
            found_R = np.take_along_axis(positive_RP @ above_PN, many_RN.argmax(1)[:, None], 1)[:, 0]
            tpr.append(found_R / total_R)
    both = {"auroc": np.concatenate(auroc), "tpr": np.concatenate(tpr)}
    units = min(len(groups), len(np.unique(group_N[counted_N])))
    fewest = {"auroc": 2, "tpr": FEWEST_UNCHANGED}
    found = {}
    for name, each in both.items():
        replicates_R = each[1:] if units > 1 and len(groups) >= fewest[name] else each[:0]
        found[name] = BootstrapResult(float(each[0]), replicates_R, units, bounds=ACCURACY, unit=unit)
    return found


@dataclass(frozen=True)
class Detector:
    """A linear detector: a picture is attacked if ``x @ weight_D + bias`` is above 0.

    Attributes:
        converged: whether the solver has converged.
    """

    weight_D: F64
    bias: float
    C: float
    converged: bool

    def __call__(self, x_ND: NDArray[np.floating]) -> F64:
        """Logits (N,)."""
        logit_N: F64 = x_ND.astype(np.float64) @ self.weight_D + self.bias
        return logit_N


def fit_detector(
    original_ND: NDArray[np.floating], attacked_AND: Sequence[NDArray[np.floating]], seed: int
) -> Detector:
    """Train a linear detector on N photographs and their A attacked pictures, with equal weight of both classes.

    C is chosen among `CS` by loss in cross-validation over photographs (scikit-learn's LogisticRegression), since the
    adaptive attack follows the size of the logit, which AUROC ignores.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.model_selection import GroupKFold
    from sklearn.utils.class_weight import compute_sample_weight

    x_RD = np.concatenate([original_ND, *attacked_AND]).astype(np.float64)
    photograph_R = np.tile(np.arange(len(original_ND)), 1 + len(attacked_AND))
    attacked_R = np.arange(len(x_RD)) >= len(original_ND)
    mean_D, scale_D = x_RD.mean(0), x_RD.std(0)
    scale_D[scale_D == 0] = 1.0
    x_RD = (x_RD - mean_D) / scale_D
    folds = list(GroupKFold(FOLDS).split(x_RD, attacked_R, photograph_R))
    weight_R = compute_sample_weight("balanced", attacked_R)
    logistic = partial(LogisticRegression, class_weight="balanced", tol=TOLERANCE, max_iter=STEPS)
    losses = {}
    for C in CS:
        losses[C] = 0.0
        for rows, left in folds:
            model = logistic(C=C).fit(x_RD[rows], attacked_R[rows])
            p_R2 = model.predict_proba(x_RD[left])
            losses[C] += log_loss(attacked_R[left], p_R2, sample_weight=weight_R[left])
    best = min(CS, key=lambda C: losses[C])
    model = logistic(C=best).fit(x_RD, attacked_R)
    weight_D = model.coef_[0] / scale_D
    bias = float(model.intercept_[0] - mean_D @ weight_D)
    return Detector(weight_D, bias, best, bool(model.n_iter_[0] < STEPS))


Distance = Callable[[NDArray[np.floating]], F64]  # of (N, D) embeddings, (N,)


def mahalanobis(x_ND: NDArray[np.floating], label_N: I64) -> Distance:
    """Squared distance to the nearest class mean under one covariance of all classes, with Ledoit and Wolf's shrinkage.

    Source: Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks",
    NeurIPS 2018; one layer, without input preprocessing.
    """
    from sklearn.covariance import LedoitWolf

    x_ND = x_ND.astype(np.float64)
    labels, place_N = np.unique(label_N, return_inverse=True)
    mean_CD = np.stack([x_ND[label_N == label].mean(0) for label in labels])
    precision_DD = LedoitWolf(assume_centered=True).fit(x_ND - mean_CD[place_N]).precision_

    def squared(x_ND: NDArray[np.floating]) -> F64:
        away_CND = x_ND.astype(np.float64) - mean_CD[:, None]
        return np.asarray(np.einsum("cnd,cnd->cn", away_CND @ precision_DD, away_CND).min(0), np.float64)

    return squared


def nearest(x_ND: NDArray[np.floating]) -> Distance:
    """Distance to the k-th nearest original training photograph; embeddings have unit length.

    Source: Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022.
    """
    from sklearn.neighbors import NearestNeighbors

    def unit(x_ND: NDArray[np.floating]) -> F64:
        x = x_ND.astype(np.float64)
        return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12), np.float64)

    index = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(x_ND))).fit(unit(x_ND))
    return lambda x_ND: np.asarray(index.kneighbors(unit(x_ND))[0][:, -1], np.float64)


def disagreement(p_ANC: Sequence[NDArray[np.floating]], q_NC: NDArray[np.floating]) -> F64:
    """Largest L1 distance (N,) between probabilities of A other views and of the picture itself.

    The views are squeezed pictures (Xu et al. 2018), or the same picture in other layers of the network.
    """
    return np.asarray(np.max([np.abs(p_NC - q_NC).sum(1) for p_NC in p_ANC], axis=0), np.float64)


def family(name: str) -> str:
    """The attack without its radius: ``pgd`` of ``pgd@4``."""
    return name.partition("@")[0]


def fit_all(original_ND: F32, attacked: Mapping[str, F32], seed: int) -> dict[str, Detector]:
    """Train detectors on all attacks (""), without each radius of an attack, and without each attack in all radii.

    Args:
        attacked: embeddings (N, D) of attacked training photographs by attack.

    Returns:
        by what is left out: "", ``pgd@4``, ``pgd``. Those that would have nothing to train on are missing.
    """
    families = [family(name) for name in attacked]
    radii = [name for name in attacked if families.count(family(name)) > 1]
    found = {}
    for left_out in ["", *radii, *dict.fromkeys(families)]:
        used = [x_ND for name, x_ND in attacked.items() if left_out not in (name, family(name))]
        if used:
            found[left_out] = fit_detector(original_ND, used, seed)
    return found


# score of a variant by the detector that fits an attack; None if there is none
Scorer = Callable[[str, str], F64 | None]


def scorers_of(
    read: Callable[..., F32],
    label_N: I64,
    probes: Mapping[str, Probe],
    detectors: Mapping[str, Detector],
    layers: Mapping[str, Probe],
) -> dict[str, Scorer]:
    """All detectors, by name.

    Args:
        read: embeddings of a variant, a layer ("" for the output) and a split.
        label_N: classes of the training photographs.
        probes: probes of the backbone by task.
        detectors: linear detectors by what is left out, see `fit_all`.
        layers: class probes of other layers of the network.
    """

    def without(left_out: str, variant: str) -> F64 | None:
        return detectors[left_out](read(variant)) if left_out in detectors else None

    def not_identity(own: Probe) -> Scorer:
        place = next(iter(own.labels.values())).index(ORIGINAL)
        return lambda _, variant: 1.0 - own.predict(read(variant))[:, place].astype(np.float64)

    original_ND, class_ = read(ORIGINAL, "", TRAIN), probes["class"]
    away, near = mahalanobis(original_ND, label_N), nearest(original_ND)
    found: dict[str, Scorer] = {
        task: not_identity(probes[task])
        for task in ("transformation", "kind")
        if task in probes and ORIGINAL in next(iter(probes[task].labels.values()))
    }
    found |= {
        "detector": lambda _, variant: without("", variant),
        "other_radii": lambda attack, variant: without(attack, variant) if "@" in attack else None,
        "other_attacks": lambda attack, variant: without(family(attack), variant),
        "mahalanobis": lambda _, variant: away(read(variant)),
        "knn": lambda _, variant: near(read(variant)),
        "squeezing": lambda _, variant: disagreement(
            [class_.predict(read(f"{variant}+{how}")) for how in SQUEEZED], class_.predict(read(variant))
        ),
    }
    if layers:
        found["layers"] = lambda _, variant: disagreement(
            [own.predict(read(variant, layer)) for layer, own in layers.items()], class_.predict(read(variant))
        )
    return found


def named(transformation: Probe | None, x_ND: F32) -> dict[str, float]:
    """Shares of the transformations that the transformation probe names, most frequent first."""
    if transformation is None or not len(x_ND):
        return {}
    (labels,) = transformation.labels.values()
    count_T = np.bincount(transformation.predict(x_ND).argmax(1), minlength=len(labels))
    return {labels[t]: float(count_T[t] / len(x_ND)) for t in np.argsort(-count_T, kind="stable") if count_T[t]}

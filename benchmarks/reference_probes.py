"""Recompute the numbers of a finished run from its store, without the engine's code.

``python -m benchmarks.reference_probes RUN [--backbone NAME] [--out FILE]`` prints every quantity, ours and theirs, and
exits with 1 if a difference exceeds its tolerance in TOLERANCES. The store is read with zarr, pyarrow and NumPy by its
documented layout; probes are those of scikit-learn and torch.

Shapes: R rows, T variants, N images, D embedding width, C classes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import zarr
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import adjusted_mutual_info_score, log_loss
from sklearn.metrics.pairwise import paired_cosine_distances
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler, normalize

from benchmarks import harness

NAME = "reference_probes"
QUESTION = "Do scikit-learn and torch find the numbers of a run?"
RIDGE = tuple(10.0**e for e in range(-4, 5))
DROPOUT = 0.2
WARM_UP = 0.05
BATCH, BATCHES_AN_EPOCH, SMALLEST = 1024, 16, 32
_SEEDS, _STARTS = 3, 5
TRAIN, VAL, TEST = "train", "val", "test"
HASH_BITS, GREY_LEVELS = 3, 4.0  # near-duplicates: largest hash distance and mean difference of thumbnails
# Largest differences, as fractions of 1. A linear probe has one optimum per penalty, and ours is within half a point of
# it; held-out transformations differ more, a single one most. The penalty is picked on a sample of the validation rows.
# MLPs differ by their batches and clusterings by their start, so two standard deviations over seeds and three over
# starts are added. Interval ends differ by their resamples. The rest is arithmetic, here in float64.
TOLERANCES = {
    "linear": 0.005,
    "linear, held out": 0.01,
    "linear, one transformation": 0.03,
    "picked": 0.01,
    "mlp": 0.02,
    "interval": 0.01,
    "k-means": 0.02,
    "exact": 1e-3,
}
CS = tuple(10.0**e for e in range(-4, 3))
RESAMPLES = 2000
TURNED = 3  # number of transformations held out alone
I64 = NDArray[np.int64]
Predict = Callable[[NDArray[np.float32]], NDArray[Any]]
Quantity = tuple[str, Any, float | None, float]  # name, ours, theirs, tolerance


@dataclass(frozen=True)
class Row:
    """One quantity; not compared if ``ours`` or ``theirs`` is None."""

    backbone: str
    quantity: str
    ours: float | None
    theirs: float | None
    tolerance: float

    @property
    def difference(self) -> float | None:
        return None if self.ours is None or self.theirs is None else self.ours - self.theirs

    @property
    def holds(self) -> bool:
        return self.difference is None or abs(self.difference) <= self.tolerance


# --- the store ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Table:
    """Embeddings of one backbone.

    Attributes:
        names, kind, roles: per transformation; the first is identity.
        x_TND: float32 embeddings.
        label_N: classes, -1 for none.
        first_N: first near-duplicate of each image, itself if there is none.
        split_N: ``train``, ``val`` or ``test``; near-duplicates share the split of the first of them.
        distinct_TN: False if a transformation hardly changed the image.
        key_N: keys of the images.
    """

    names: tuple[str, ...]
    kind: NDArray[np.str_]
    roles: NDArray[np.str_]
    x_TND: NDArray[np.float32]
    label_N: NDArray[np.int64]
    first_N: NDArray[np.int64]
    split_N: NDArray[np.str_]
    distinct_TN: NDArray[np.bool_]
    key_N: NDArray[np.str_]

    def images(self, split: str) -> NDArray[np.int64]:
        return np.flatnonzero(self.split_N == split)

    def photographs(self, split: str) -> NDArray[np.int64]:
        """Return the indices of the images of a split, of near-duplicates with the same label the first."""
        of = {(int(self.first_N[n]), int(self.label_N[n])): int(n) for n in self.images(split)[::-1]}
        return np.array(sorted(of.values()), np.int64)

    def rows(
        self, transformations: NDArray[np.int64], images: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return transformation and image of each distinct row, ordered by transformation."""
        t, n = np.nonzero(self.distinct_TN[np.ix_(transformations, images)])
        return transformations[t], images[n]


def read_table(store: Path, backbone: str, suite: list[dict[str, Any]]) -> Table:
    """Read the images decoded and embedded in all transformations of a suite, as listed in ``results.json``.

    Raises:
        ValueError: unknown backbone, or the suite does not start with identity.
    """
    manifest = pa.concat_tables(
        [pq.read_table(p) for p in sorted((store / "images.parquet").glob("segment-*.parquet"))]
    )
    row_N, split_N = manifest["row"].to_numpy(), np.array(manifest["split"].to_pylist())
    label_N = manifest["label"].to_numpy().astype(np.int64)
    key_N = np.array(manifest["key"].to_pylist())
    reason, thumbnail, same = _notes(store)
    names = tuple(str(entry["name"]) for entry in suite)
    if names[:1] != ("identity",):
        raise ValueError(f"suite: starts with {names[:1]}; expected ('identity',)")
    stored: Any = zarr.open_group(store, mode="r")["embeddings"]
    groups = {group.attrs["substyle"]["name"]: group for _, group in stored.groups()}
    if backbone not in groups:
        raise ValueError(f"{store}: no backbone {backbone}; available: {', '.join(map(str, groups))}")
    # NaN marks missing embeddings
    array_of = {
        made["name"]: (array, t)
        for _, array in groups[backbone].arrays()
        for t, made in enumerate(dict(array.attrs)["substyle"]["transformations"])  # type: ignore[arg-type, call-overload, index]
    }
    x_TND = np.stack([array[t][row_N] for array, t in map(array_of.get, names)]).astype(np.float32)
    keep_N = np.array([reason.get(int(row)) == "" for row in row_N]) & np.isfinite(x_TND).all(axis=(0, 2))
    row_N, split_N, label_N, key_N = row_N[keep_N], split_N[keep_N], label_N[keep_N], key_N[keep_N]
    first_N = _first([thumbnail.get(int(row)) for row in row_N])
    return Table(
        names=names,
        kind=np.array([entry["kind"] for entry in suite]),
        roles=np.array([entry["role"] for entry in suite]),
        x_TND=np.ascontiguousarray(x_TND[:, keep_N]),
        label_N=label_N,
        first_N=first_N,
        split_N=split_N[first_N],
        distinct_TN=np.array([[name not in same.get(int(row), ()) for row in row_N] for name in names]),
        key_N=key_N,
    )


def _notes(store: Path) -> tuple[dict[int, str], dict[int, bytes], dict[int, set[str]]]:
    """Return by row: quarantine reason (empty if none), thumbnail, and transformations that hardly changed it."""
    records = [json.loads(path.read_text()) for path in (store / "journal").glob("*.json")]
    for path in (store / "journal" / "tables").glob("*.parquet"):
        records += pq.read_table(path, columns=["images"]).to_pylist()
    reason: dict[int, str] = {}
    thumbnail: dict[int, bytes] = {}
    same: dict[int, set[str]] = {}
    for note in (note for record in records for note in record["images"]):
        row, small = note["row"], note["thumbnail"]
        reason[row] = reason.get(row) or note["reason"]
        same.setdefault(row, set()).update(note["indistinct"])
        if small:
            thumbnail[row] = bytes.fromhex(small) if isinstance(small, str) else small
    return reason, thumbnail, same


def _first(thumbnails: list[bytes | None]) -> NDArray[np.int64]:
    """Return the first near-duplicate of each image, transitively; itself if there is none."""
    seen = np.array([i for i, small in enumerate(thumbnails) if small], dtype=np.int64)
    small_NRC = np.array([np.frombuffer(thumbnails[i], np.uint8) for i in seen], np.int16).reshape(-1, 8, 9)
    bit_NB = (small_NRC[:, :, 1:] > small_NRC[:, :, :-1]).reshape(len(seen), 64)
    sign_NB = np.where(bit_NB, 1, -1).astype(np.float32)
    a, b = np.nonzero(np.triu((64 - sign_NB @ sign_NB.T) / 2 <= HASH_BITS, k=1))
    near = np.abs(small_NRC[a] - small_NRC[b]).mean(axis=(1, 2)) <= GREY_LEVELS
    pairs = coo_array((np.ones(near.sum()), (a[near], b[near])), shape=(len(seen), len(seen)))
    _, first, group = np.unique(connected_components(pairs, directed=False)[1], return_index=True, return_inverse=True)
    first_N = np.arange(len(thumbnails))
    first_N[seen] = seen[first[group]]
    return first_N


# --- linear probes --------------------------------------------------------------------------------------------------
def dig(value: object, *path: str | int) -> Any:  # noqa: ANN401 (JSON)
    """Return the value at a path of keys, or None if it is missing."""
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


@dataclass(frozen=True)
class Rows:
    """Training or validation rows: features, answers and weights (None: equal)."""

    x_RD: NDArray[np.float32]
    y_R: NDArray[Any]
    weight_R: NDArray[np.float64] | None = None


def linear(
    train: Rows, val: Rows | None = None, at: float | None = None, scaled_as: NDArray[np.float32] | None = None
) -> tuple[Predict, Predict]:
    """Fit logistic regressions to all training rows.

    Args:
        train: training rows; weights sum to the number of rows, so that C is the inverse penalty of our results.
        val: rows to pick one of CS, by accuracy, then by loss; if None, only ``at`` is fitted.
        at: an additional C.
        scaled_as: rows whose mean and deviation standardise the features; by default the training rows.

    Returns:
        predictors of the picked C and of ``at``; if only one is requested, it is returned twice.
    """
    # in float32, rounding hides the descent at weak penalties, and L-BFGS stops early
    scaler = StandardScaler().fit((train.x_RD if scaled_as is None else scaled_as).astype(np.float64))
    x_RD = scaler.transform(train.x_RD.astype(np.float64))
    model = LogisticRegression(max_iter=20_000, tol=1e-7, warm_start=True)
    tried = CS if val is not None else ()
    best, found = (-1.0, 0.0), {}
    for c in sorted({*tried, *(() if at is None else (at,))}):
        model.set_params(C=c).fit(x_RD, train.y_R, sample_weight=train.weight_R)
        found[c] = _predicts(scaler, model.classes_, model.coef_.copy(), model.intercept_.copy())
        if val is None or c not in tried:
            continue
        known = np.isin(val.y_R, model.classes_)
        weight_R = np.ones(len(known)) if val.weight_R is None else val.weight_R
        probability_RC = model.predict_proba(scaler.transform(val.x_RD[known].astype(np.float64)))
        loss = log_loss(val.y_R[known], probability_RC, labels=model.classes_, sample_weight=weight_R[known])
        rank = float(np.average(found[c](val.x_RD) == val.y_R, weights=weight_R)), -loss
        if rank > best:
            best, picked = rank, c
    if val is None:
        picked = next(iter(found))
    return found[picked], found[picked if at is None else at]


def _predicts(
    scaler: StandardScaler, classes: NDArray[Any], weight_CD: NDArray[np.float64], intercept_C: NDArray[np.float64]
) -> Predict:
    def predict(x_RD: NDArray[np.float32]) -> NDArray[Any]:
        score_RC = scaler.transform(x_RD.astype(np.float64)) @ weight_CD.T + intercept_C
        # for two classes scikit-learn has only the second one's score
        return classes[(score_RC[:, 0] > 0).astype(int) if len(classes) == 2 else score_RC.argmax(axis=1)]

    return predict


def scored(table: Table, predict: Predict, answer_TN: NDArray[Any]) -> NDArray[np.float64]:
    """Return 1.0 if right and 0.0 if wrong on the test images, NaN on indistinct rows. Shape: (T, N)."""
    test = table.images(TEST)
    right_TN = np.stack([predict(x_ND[test]) == answer_TN[t, test] for t, x_ND in enumerate(table.x_TND)]).astype(float)
    right_TN[~table.distinct_TN[:, test]] = np.nan
    return right_TN


def weighted(right_TN: NDArray[np.float64], weight_T: NDArray[np.float64]) -> float:
    """Return the weighted mean of the accuracies of transformations."""
    use = (weight_T > 0) & np.isfinite(right_TN).any(axis=1)
    return float(np.average(np.nanmean(right_TN[use], axis=1), weights=weight_T[use]))


def balanced(table: Table, role: str) -> NDArray[np.float64]:
    """Return weights (T,) of a mean over the kinds with both seen and held-out transformations."""
    in_role = (table.roles == role) & (np.array(table.names) != "identity")
    other = (table.roles == ("train" if role == "held_out" else "held_out")) & (np.array(table.names) != "identity")
    weight_T = np.zeros(len(table.names))
    for name in set(table.kind[in_role]) & set(table.kind[other]):
        weight_T[in_role & (table.kind == name)] = 1 / (in_role & (table.kind == name)).sum()
    return weight_T


def groups(table: Table, *, by_folder: bool) -> I64:
    """Return the resampling group of each test image: its near-duplicates or its folder."""
    images = table.images(TEST)
    if not by_folder:
        return table.first_N[images]
    return np.unique([key.rpartition("/")[0] for key in table.key_N[images].tolist()], return_inverse=True)[1]


def interval(
    right_TN: NDArray[np.float64], weight_T: NDArray[np.float64], group_N: I64, *, two_way: bool
) -> list[float]:
    """Return the 95 % percentile interval of resampled groups of images and, if ``two_way``, transformations."""
    rng = np.random.default_rng(1)
    members = [np.flatnonzero(group_N == group) for group in np.unique(group_N)]
    used = np.flatnonzero((weight_T > 0) & np.isfinite(right_TN).any(axis=1))
    values = []
    for _ in range(RESAMPLES):
        n = np.concatenate([members[group] for group in rng.integers(len(members), size=len(members))])
        t = rng.choice(used, len(used)) if two_way else used
        drawn_TN = right_TN[np.ix_(t, n)]
        known_T = np.isfinite(drawn_TN).any(axis=1)
        values.append(np.average(np.nanmean(drawn_TN[known_T], axis=1), weights=weight_T[t][known_T]))
    return [float(v) for v in np.percentile(values, (2.5, 97.5))]


def even(table: Table, transformations: I64, images: I64) -> NDArray[np.float64]:
    """Return row weights of mean 1, equal over kinds and over the transformations of each class."""
    t, _ = table.rows(transformations, images)
    rows_T = np.bincount(t, minlength=len(table.names))
    members = {name: (table.kind[transformations] == name).sum() for name in set(table.kind)}
    weight_R = np.array([1.0 / (members[table.kind[k]] * rows_T[k]) for k in t])
    return weight_R * len(t) / weight_R.sum()


def rows(table: Table, transformations: I64, images: I64, answer_TN: NDArray[Any], *, by_class: bool = False) -> Rows:
    """Return rows of equal weight or, if ``by_class``, of equal total weight per answer."""
    t, n = table.rows(transformations, images)
    y_R, weight_R = answer_TN[t, n], None
    if by_class:
        _, place_R, rows_C = np.unique(y_R, return_inverse=True, return_counts=True)
        weight_R = 1.0 / rows_C[place_R]
    return Rows(table.x_TND[t, n], y_R, weight_R)


def probes(table: Table, ours: dict[str, Any], *, by_folder: bool) -> Iterator[Quantity]:
    """Compare the linear probes and two of their intervals, resampled by photograph or folder.

    Each probe is compared at the C picked by scikit-learn's validation and at ours, which tests the solver alone;
    intervals are at our C. Tasks missing from the run are skipped.
    """
    for task, part in (
        ("transformation", partial(transformation, by_folder=by_folder)),
        ("kind", partial(kind, by_folder=by_folder)),
        ("kind", rotation),
        ("class", class_),
    ):
        if at := dig(ours, task, "linear", "setting", "C"):
            yield from part(table, ours, at)


def transformation(table: Table, ours: dict[str, Any], at: float, *, by_folder: bool) -> Iterator[Quantity]:
    """Compare the transformation task: name the transformation."""
    every = np.arange(len(table.names))
    answer_TN, one_T = np.broadcast_to(every[:, None], (len(every), len(table.label_N))), np.ones(len(every))
    train, val = (rows(table, every, table.images(split), answer_TN) for split in (TRAIN, VAL))
    made = linear(train, val, at)
    free_TN, right_TN = (scored(table, predict, answer_TN) for predict in made)
    value = dig(ours, "transformation", "linear", "accuracy", "value")
    yield "transformation", value, weighted(free_TN, one_T), TOLERANCES["picked"]
    yield "transformation, at our C", value, weighted(right_TN, one_T), TOLERANCES["linear"]
    ends = interval(right_TN, one_T, groups(table, by_folder=by_folder), two_way=False)
    for i, end in enumerate(("low", "high")):
        kept = dig(ours, "transformation", "linear", "accuracy", end)
        yield f"transformation, interval, {end}", kept, ends[i], TOLERANCES["interval"]


def kind(table: Table, ours: dict[str, Any], at: float, *, by_folder: bool) -> Iterator[Quantity]:
    """Compare the kind task: name the kind of seen and of held-out transformations."""
    train, val = (table.images(split) for split in (TRAIN, VAL))
    answer_TN = np.broadcast_to(table.kind[:, None], (len(table.names), len(table.label_N)))
    seen = np.flatnonzero(table.roles == "train")
    learned = replace(rows(table, seen, train, answer_TN), weight_R=even(table, seen, train))
    made = linear(learned, rows(table, seen, val, answer_TN, by_class=True), at)
    free_TN, right_TN = (scored(table, predict, answer_TN) for predict in made)
    for role, key, near in (("train", "seen", "linear"), ("held_out", "held_out", "linear, held out")):
        weight_T, value = balanced(table, role), dig(ours, "kind", "linear", key, "value")
        if weight_T.any():
            yield f"kind, {key}", value, weighted(free_TN, weight_T), 2 * TOLERANCES[near]
            yield f"kind, {key}, at our C", value, weighted(right_TN, weight_T), TOLERANCES[near]
    if weight_T.any():
        ends = interval(right_TN, weight_T, groups(table, by_folder=by_folder), two_way=True)
        for i, end in enumerate(("low", "high")):
            kept = dig(ours, "kind", "linear", "held_out", end)
            # with few transformations, each resample moves by several points
            yield f"kind, held out, two-way interval, {end}", kept, ends[i], 2 * TOLERANCES["interval"]


def rotation(table: Table, ours: dict[str, Any], at: float) -> Iterator[Quantity]:
    """Compare some of the transformations held out in turn."""
    every, names, train = np.arange(len(table.names)), np.array(table.names), table.images(TRAIN)
    answer_TN = np.broadcast_to(table.kind[:, None], (len(every), len(table.label_N)))
    turned = list((dig(ours, "kind_rotation", "linear", "by_transformation") or {}).items())
    whole = rows(table, every, train, answer_TN).x_RD
    for name, one in turned[:: max(1, len(turned) // TURNED)][:TURNED]:
        others = every[names != name]
        learned = replace(rows(table, others, train, answer_TN), weight_R=even(table, others, train))
        right_TN = scored(table, linear(learned, None, at, whole)[1], answer_TN)
        near = max(TOLERANCES["linear, one transformation"], 2.001 / len(table.images(TEST)))
        expected = weighted(right_TN, (names == name).astype(float))
        yield f"held out alone: {name}", one["accuracy"]["value"], expected, near


def class_(table: Table, ours: dict[str, Any], at: float) -> Iterator[Quantity]:
    """Compare the class task: name the class of original and of transformed photographs."""
    one, labelled = np.array([0]), [images[table.label_N[images] >= 0] for images in map(table.images, (TRAIN, VAL))]
    test, original_T = table.images(TEST), (np.arange(len(table.names)) == 0).astype(float)
    answer_TN = np.broadcast_to(table.label_N[None], (len(table.names), len(table.label_N)))
    train, val = (rows(table, one, images, answer_TN) for images in labelled)
    made = linear(train, val, at)
    for what, predict, near in (("", made[0], TOLERANCES["picked"]), (", at our C", made[1], TOLERANCES["linear"])):
        right_TN = scored(table, predict, answer_TN)
        right_TN[:, table.label_N[test] < 0] = np.nan
        for key, weight_T in (("original", original_T), ("transformed", 1 - original_T)):
            # with few original photographs, one of them exceeds the tolerance
            wide = max(2 * near, 1.001 / len(test))
            value = dig(ours, "class", "linear", key, "value")
            yield f"class, {key}{what}", value, weighted(right_TN, weight_T), wide


# --- the multi-task probe -------------------------------------------------------------------------------------------
def multitask(table: Table, ours: dict[str, Any]) -> Iterator[Quantity]:
    """Train the joint probe in torch with three seeds, at the run's setting, loss and number of steps."""
    joint = dig(ours, "multitask")
    if not joint:
        return
    every = np.arange(len(table.names))
    train, test = table.images(TRAIN), table.images(TEST)
    labelled = train[table.label_N[train] >= 0]
    transformation_t, transformation_n = table.rows(every, train)
    classes, class_N = np.unique(table.label_N[labelled]), table.label_N
    scaler = StandardScaler().fit(table.x_TND[transformation_t, transformation_n])
    x_TND = torch.from_numpy(np.stack([scaler.transform(x_ND) for x_ND in table.x_TND]).astype(np.float32))
    setting, steps, share = joint["setting"], joint["steps"], joint["task_weight"]
    half = max(1, min(BATCH, max(len(transformation_t) // BATCHES_AN_EPOCH, min(len(transformation_t), SMALLEST))) // 2)
    counts, value = (len(table.names), len(classes)), np.zeros((_SEEDS, 2))
    for seed in range(len(value)):
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        layers = torch.nn.Linear(x_TND.shape[2], setting["width"]), torch.nn.Linear(setting["width"], sum(counts))
        network = torch.nn.Sequential(layers[0], torch.nn.ReLU(), torch.nn.Dropout(DROPOUT), layers[1])
        optimiser = torch.optim.AdamW(network.parameters(), lr=setting["lr"], weight_decay=setting["weight_decay"])
        rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps))
        for _ in range(steps):
            a, b = rng.integers(len(transformation_t), size=half), labelled[rng.integers(len(labelled), size=half)]
            out = network(torch.cat([x_TND[transformation_t[a], transformation_n[a]], x_TND[0, b]]))
            named = torch.nn.functional.cross_entropy(out[:half, : counts[0]], torch.from_numpy(transformation_t[a]))
            place = torch.from_numpy(np.searchsorted(classes, class_N[b]))
            classed = torch.nn.functional.cross_entropy(out[half:, counts[0] :], place)
            loss = share / math.log(counts[0]) * named + (1 - share) / math.log(counts[1]) * classed
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            rate.step()
        network.eval()
        with torch.inference_mode():
            answer_TN = torch.stack([network(x_ND[test])[:, : counts[0]].argmax(1) for x_ND in x_TND]).numpy()
            class_M = classes[network(x_TND[0, test])[:, counts[0] :].argmax(1).numpy()]
        right_TN = np.where(table.distinct_TN[:, test], answer_TN == every[:, None], np.nan)
        known = class_N[test] >= 0
        value[seed] = weighted(right_TN, np.ones(len(every))), (class_M == class_N[test])[known].mean()
    wide = 2 * value.std(axis=0, ddof=1) + TOLERANCES["mlp"] + np.array([0.0, 1 / len(test)])
    for i, task in enumerate(("transformation", "class")):
        yield f"multi-task, {task}", dig(joint, task, "value"), float(value[:, i].mean()), float(wide[i])


def _rate(step: int, steps: int) -> float:
    """Learning-rate factor: linear over the first 5 %, then a cosine to zero."""
    warm = max(1, round(WARM_UP * steps))
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


# --- neighbours, clusters, geometry ---------------------------------------------------------------------------------
def neighbours(table: Table, ours: dict[str, Any]) -> Iterator[Quantity]:
    """Recompute k-NN, balance and clusters of all variants of test images, unless the run sampled them."""
    every = np.arange(len(table.names))
    (t, n), (bank_t, bank_n) = (table.rows(every, table.photographs(split)) for split in (TEST, TRAIN))
    if (dig(ours, "sampled", "queries"), dig(ours, "sampled", "bank")) != (len(t), len(bank_t)):
        print(f"skipping neighbours: the run sampled {ours['sampled']['queries']} of {len(t)} queries", file=sys.stderr)
        return
    exact = max(TOLERANCES["exact"], 2 / len(t))  # float32 may swap two near-equal neighbours
    x_RD = normalize(table.x_TND[t, n].astype(np.float64))
    bank = NearestNeighbors(metric="cosine", algorithm="brute").fit(
        normalize(table.x_TND[bank_t, bank_n].astype(np.float64))
    )
    ks = [k for k in map(int, ours["knn"]["transformation"]) if k <= len(bank_t)]
    near_Rk = bank.kneighbors(x_RD, max(ks), return_distance=False)
    class_N = table.label_N
    for word, key, answer_R, vote_Rk in (
        ("transformation", "transformation", t, bank_t[near_Rk]),
        ("class", "class", class_N[n], class_N[bank_n][near_Rk]),
    ):
        if dig(ours, "knn", key) and (vote_Rk >= 0).all():
            for k in ks:
                hits = np.array([max(v := row[:k].tolist(), key=v.count) for row in vote_Rk]) == answer_R
                kept = dig(ours, "knn", key, str(k), "value")
                yield f"{k}-NN, {word}", kept, float(hits[answer_R >= 0].mean()), exact
    near = (
        NearestNeighbors(metric="cosine", algorithm="brute").fit(x_RD).kneighbors(None, 1, return_distance=False)[:, 0]
    )
    image, style = n[near] == n, t[near] == t
    for key, hit in (("same_image", image), ("same_transformation", style), ("neither", ~image & ~style)):
        yield f"nearest: {key.replace('_', ' ')}", dig(ours, "balance", key, "value"), float(hit.mean()), exact
    for key, truth_R in (("transformation", t), ("class", class_N[n])):
        known = truth_R >= 0
        if (ami := dig(ours, "clusters", f"ami_{key}", "value")) is not None:
            k, own_RD = ours["clusters"]["k"][key], x_RD[known].astype(np.float32)
            values = [
                adjusted_mutual_info_score(
                    truth_R[known], KMeans(k, init="random", n_init=2, random_state=start).fit_predict(own_RD)
                )
                for start in range(_STARTS)
            ]
            wide = 3 * float(np.std(values, ddof=1)) + TOLERANCES["k-means"]
            yield f"AMI, {key}", ami, float(np.mean(values)), wide


def geometry(table: Table, ours: dict[str, Any]) -> Iterator[Quantity]:
    """Recompute mean sensitivity, equivariance and steerability over transformations, and their largest difference."""
    train, val, test = (table.photographs(split) for split in (TRAIN, VAL, TEST))
    if dig(ours, "sampled", "test_images") != len(test) or dig(ours, "sampled", "ridge_train") != len(train):
        print("skipping geometry: the run sampled the images", file=sys.stderr)
        return
    x_TND = table.x_TND.astype(np.float64)
    mean_D = x_TND[0, test].mean(axis=0)
    found: dict[str, dict[str, float]] = {"sensitivity": {}, "equivariance": {}, "steerability": {}}
    for t, name in enumerate(table.names[1:], start=1):
        fit, choose, score = (images[table.distinct_TN[t, images]] for images in (train, val, test))
        base_MD, moved_MD = x_TND[0, score], x_TND[t, score]
        found["sensitivity"][name] = float(paired_cosine_distances(base_MD - mean_D, moved_MD - mean_D).mean())
        step_MD = moved_MD - base_MD
        step_MD = normalize(step_MD[np.abs(step_MD).max(axis=1) > 0])
        cosine_MM = step_MD @ step_MD.T
        found["equivariance"][name] = float(np.sqrt(max(cosine_MM[~np.eye(len(step_MD), dtype=bool)].mean(), 0)))
        x_ND = x_TND[0, fit]
        scale = np.square(x_ND - x_ND.mean(axis=0)).sum() / min(x_ND.shape)
        errors = {}
        for factor in RIDGE:
            model = Ridge(alpha=scale * factor, solver="cholesky").fit(x_ND, x_TND[t, fit])
            errors[factor] = np.square(model.predict(x_TND[0, choose]) - x_TND[t, choose]).sum(), model
        predicted_MD = min(errors.values(), key=lambda pair: pair[0])[1].predict(base_MD)
        centre_D = x_TND[t, fit].mean(axis=0)
        # R2 against the training mean, so that the mean of the outputs does not count
        found["steerability"][name] = (
            1 - np.square(predicted_MD - moved_MD).sum() / np.square(moved_MD - centre_D).sum()
        )
    for key, by in found.items():
        end = () if key == "steerability" else ("value",)  # the others have an interval
        kept = ((dig(ours, key, name, *end), value) for name, value in by.items())
        pairs = [(own, value) for own, value in kept if own is not None]
        own, value = np.mean(pairs, axis=0).tolist()
        yield f"{key}, mean", own, value, TOLERANCES["exact"]
        a, b = max(pairs, key=lambda pair: abs(pair[0] - pair[1]))
        yield f"{key}, where it differs most", a, b, TOLERANCES["exact"]


# --- the command ----------------------------------------------------------------------------------------------------
def compare(run: Path, backbones: list[str] | None = None) -> list[Row]:
    """Compare all quantities of a run folder, which contains one ``*.zarr`` store and ``results.json``.

    Raises:
        ValueError: not exactly one store, or no validation images, without which probes are picked differently.
    """
    results = json.loads((run / "results.json").read_text())
    stores = sorted(run.glob("*.zarr"))
    if len(stores) != 1:
        raise ValueError(f"{run}: got {len(stores)} *.zarr stores; expected one")
    by_folder, rows = dig(results, "resampled", "by") == "folder", []
    for name in backbones or list(results["backbones"]):
        ours, table = results["backbones"][name], read_table(stores[0], name, results["transformations"])
        if not len(table.images(VAL)):
            raise ValueError(f"{run}: no validation images")
        for part in (partial(probes, by_folder=by_folder), multitask, neighbours, geometry):
            for quantity, value, theirs, tolerance in part(table, ours):
                own, other = (None if v is None else float(v) for v in (value, theirs))  # JSON takes no NumPy scalars
                rows.append(Row(name, quantity, own, other, float(tolerance)))
                print(line(rows[-1]), flush=True)
    return rows


def line(row: Row) -> str:
    numbers = " ".join("       –" if v is None else f"{v:8.4f}" for v in (row.ours, row.theirs, row.difference))
    return f"{row.backbone:32} {row.quantity:42} {numbers}  ±{row.tolerance:.4f}{'' if row.holds else '  DIFFERS'}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 1 if a difference exceeds its tolerance."""
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--backbone", action="append", help="compare only this backbone (repeatable)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table as JSON")
    options = parser.parse_args(arguments)
    rows = compare(options.run, options.backbone)
    if options.out:
        results = json.loads((options.run / "results.json").read_text())
        run = {key: results.get(key) for key in ("name", "created", "images")}
        kept = [{**asdict(row), "difference": row.difference, "holds": row.holds} for row in rows]
        harness.write(options.out, harness.document(NAME, QUESTION, run=run, tolerances=TOLERANCES, rows=kept))
    wrong = sum(not row.holds for row in rows)
    print(f"{len(rows)} quantities, {wrong} beyond their tolerance")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

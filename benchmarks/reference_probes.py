"""Do the numbers of a finished run hold? Computed again from its store by scikit-learn and torch, with no code of ours.

``python -m benchmarks.reference_probes RUN [--backbone NAME] [--out FILE]`` prints every quantity, ours and theirs, and
exits with 1 where a difference is beyond the tolerance that TOLERANCES states for it.

Shapes: R rows, T variants, N images, D embedding width, C classes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import adjusted_mutual_info_score, log_loss
from sklearn.metrics.pairwise import paired_cosine_distances
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler, normalize

from benchmarks.reference_store import TEST, TRAIN, VAL, Table, read_table

SCHEMA = 1
NAME = "reference_probes"
QUESTION = "Do scikit-learn and torch find the numbers of a run?"
# Largest differences, in shares of 1. A linear probe has one optimum. MLPs of one budget differ by their batches and
# clusters by their start, so two standard deviations over seeds and three over starts are added. Ends of intervals
# differ by their resamples. The rest is arithmetic, here in float64.
TOLERANCES = {
    "linear": 0.005,
    "mlp": 0.02,
    "interval": 0.01,
    "k-means": 0.02,
    "exact": 1e-3,
}
CS = tuple(10.0**e for e in range(-4, 3))
RIDGE = tuple(10.0**e for e in range(-4, 5))
DROPOUT = 0.2
WARM_UP = 0.05
BATCH, BATCHES_AN_EPOCH, SMALLEST = 1024, 16, 32
RESAMPLES = 2000
_SEEDS, _STARTS = 3, 5
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """One quantity. ``ours`` or ``theirs`` is None where it has none; then nothing is compared."""

    backbone: str
    quantity: str
    ours: float | None
    theirs: float | None
    tolerance: float

    @property
    def difference(self) -> float | None:
        """Ours less theirs."""
        return None if self.ours is None or self.theirs is None else self.ours - self.theirs

    @property
    def holds(self) -> bool:
        """Whether the difference is within the tolerance, or there is none."""
        return self.difference is None or abs(self.difference) <= self.tolerance


def dig(value: object, *path: str | int) -> Any:  # noqa: ANN401 (JSON)
    """The value at a path of keys; None where there is none."""
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


# --- probes -----------------------------------------------------------------------------------------------------------


def linear(
    train_RD: NDArray[np.float32],
    train_y: NDArray[Any],
    val_RD: NDArray[np.float32],
    val_y: NDArray[Any],
    weight_R: NDArray[np.float64] | None = None,
) -> Callable[[NDArray[np.float32]], NDArray[Any]]:
    """Logistic regression over CS, the one with the best validation accuracy, then loss. Returns its predictions."""
    # in float32 L-BFGS stops at weak penalties, where rounding hides the descent
    scaler = StandardScaler().fit(train_RD.astype(np.float64))
    x_RD, own_RD = (scaler.transform(x.astype(np.float64)) for x in (train_RD, val_RD))
    model = LogisticRegression(max_iter=3000, tol=1e-5, warm_start=True)
    best, found = (-1.0, 0.0), None
    for c in CS:
        model.set_params(C=c).fit(x_RD, train_y, sample_weight=weight_R)
        known = np.isin(val_y, model.classes_)
        loss = log_loss(val_y[known], model.predict_proba(own_RD[known]), labels=model.classes_)
        rank = (float((model.predict(own_RD) == val_y).mean()), -loss)
        if rank > best:
            best, found = rank, (model.coef_.copy(), model.intercept_.copy())
    weight_CD, bias_C = found
    classes = model.classes_

    def predict(x_RD: NDArray[np.float32]) -> NDArray[Any]:
        score_RC = scaler.transform(x_RD) @ weight_CD.T + bias_C
        # of two classes scikit-learn keeps the second one's score
        return classes[(score_RC[:, 0] > 0).astype(int) if len(classes) == 2 else score_RC.argmax(axis=1)]

    return predict


def scored(
    table: Table, predict: Callable[[NDArray[np.float32]], NDArray[Any]], answer_TN: NDArray[Any]
) -> NDArray[np.float64]:
    """Right or wrong on the test images, NaN on indistinct rows. Shape: (T, N)."""
    test = table.images(TEST)
    right_TN = np.stack([predict(x_ND[test]) == answer_TN[t, test] for t, x_ND in enumerate(table.x_TND)]).astype(float)
    right_TN[~table.distinct_TN[:, test]] = np.nan
    return right_TN


def weighted(right_TN: NDArray[np.float64], weight_T: NDArray[np.float64]) -> float:
    """Weighted mean of the accuracies of transformations."""
    use = (weight_T > 0) & np.isfinite(right_TN).any(axis=1)
    return float(np.average(np.nanmean(right_TN[use], axis=1), weights=weight_T[use]))


def balanced(table: Table, role: str) -> NDArray[np.float64]:
    """Weights (T,) of a mean over the coarse classes that have seen and held-out transformations."""
    in_role = (table.roles == role) & (np.array(table.names) != "identity")
    other = (table.roles == ("train" if role == "held_out" else "held_out")) & (np.array(table.names) != "identity")
    weight_T = np.zeros(len(table.names))
    for name in set(table.coarse[in_role]) & set(table.coarse[other]):
        weight_T[in_role & (table.coarse == name)] = 1 / (in_role & (table.coarse == name)).sum()
    return weight_T


def interval(right_TN: NDArray[np.float64], weight_T: NDArray[np.float64], *, two_way: bool) -> list[float]:
    """95 % percentile interval from resampled images and, two-way, transformations: one resample after the other."""
    rng = np.random.default_rng(1)
    used = np.flatnonzero((weight_T > 0) & np.isfinite(right_TN).any(axis=1))
    values = []
    for _ in range(RESAMPLES):
        n = rng.integers(right_TN.shape[1], size=right_TN.shape[1])
        t = rng.choice(used, len(used)) if two_way else used
        drawn_TN = right_TN[np.ix_(t, n)]
        known_T = np.isfinite(drawn_TN).any(axis=1)
        values.append(np.average(np.nanmean(drawn_TN[known_T], axis=1), weights=weight_T[t][known_T]))
    return [float(v) for v in np.percentile(values, (2.5, 97.5))]


def probes(table: Table, ours: dict[str, Any]) -> Iterator[tuple[str, Any, float | None, float]]:
    """(quantity, ours, theirs, tolerance) of the linear probes and two of their intervals."""
    count, every = len(table.names), np.arange(len(table.names))
    train, val, test = (table.images(split) for split in (TRAIN, VAL, TEST))
    shape_TN = (count, len(table.label_N))
    point = 1 / len(test)  # what one photograph of each transformation is worth
    tolerance = TOLERANCES["linear"]

    def fit(transformations: I64, images: tuple[I64, I64], answer_TN: NDArray[Any], *, even: bool = False) -> Any:  # noqa: ANN401
        (t, n), (vt, vn) = (table.rows(transformations, those) for those in images)
        target_R = answer_TN[t, n]
        _, place_R, rows_C = np.unique(target_R, return_inverse=True, return_counts=True)
        weight_R = len(t) / len(rows_C) / rows_C[place_R] if even else None
        return linear(table.x_TND[t, n], target_R, table.x_TND[vt, vn], answer_TN[vt, vn], weight_R)

    answer_TN = np.broadcast_to(every[:, None], shape_TN)
    right_TN = scored(table, fit(every, (train, val), answer_TN), answer_TN)
    one_T = np.ones(count)
    yield "fine", dig(ours, "fine", "linear", "accuracy"), weighted(right_TN, one_T), tolerance
    ends = interval(right_TN, one_T, two_way=False)
    for i, end in enumerate(("low", "high")):
        yield f"fine, interval, {end}", dig(ours, "fine", "linear", "ci95", i), ends[i], TOLERANCES["interval"]

    answer_TN = np.broadcast_to(table.coarse[:, None], shape_TN)
    seen = every[table.roles == "train"]
    right_TN = scored(table, fit(seen, (train, val), answer_TN, even=True), answer_TN)
    weights = {role: balanced(table, role) for role in ("train", "held_out")}
    for role, key in (("train", "seen"), ("held_out", "held_out")):
        theirs = weighted(right_TN, weights[role]) if weights[role].any() else None
        yield f"coarse, {key}", dig(ours, "coarse", "linear", key), theirs, tolerance
    if weights["held_out"].any():
        ends = interval(right_TN, weights["held_out"], two_way=True)
        for i, end in enumerate(("low", "high")):
            kept = dig(ours, "coarse", "linear", "held_out_two_way_ci95", i)
            # few transformations make its ends coarse: each resample of them moves by several points
            yield f"coarse, held out, two-way interval, {end}", kept, ends[i], 2 * TOLERANCES["interval"]

    if dig(ours, "semantic"):
        labelled = [images[table.label_N[images] >= 0] for images in (train, val)]
        answer_TN = np.broadcast_to(table.label_N[None], shape_TN)
        right_TN = scored(table, fit(every[:1], (labelled[0], labelled[1]), answer_TN), answer_TN)
        right_TN[:, table.label_N[test] < 0] = np.nan
        clean = weighted(right_TN, one_T * (every == 0))
        yield "class, clean", dig(ours, "semantic", "linear", "clean"), clean, max(tolerance, point + 1e-9)
        hidden = weighted(right_TN, one_T * (every > 0))
        yield "class, obfuscated", dig(ours, "semantic", "linear", "obfuscated"), hidden, 2 * tolerance


def multitask(table: Table, ours: dict[str, Any]) -> Iterator[tuple[str, Any, float | None, float]]:
    """The joint probe at the setting, loss and number of steps that the run states, by torch, with three seeds."""
    joint = dig(ours, "multitask")
    if not joint:
        return
    every = np.arange(len(table.names))
    train, test = table.images(TRAIN), table.images(TEST)
    labelled = train[table.label_N[train] >= 0]
    fine_t, fine_n = table.rows(every, train)
    classes, class_N = np.unique(table.label_N[labelled]), table.label_N
    scaler = StandardScaler().fit(table.x_TND[fine_t, fine_n])
    x_TND = torch.from_numpy(np.stack([scaler.transform(x_ND) for x_ND in table.x_TND]).astype(np.float32))
    setting, steps, lam = joint["setting"], max(int(joint["curve"][-1][0]), 1), joint["lambda"]
    half = max(1, min(BATCH, max(len(fine_t) // BATCHES_AN_EPOCH, min(len(fine_t), SMALLEST))) // 2)
    counts, value = (len(table.names), len(classes)), np.zeros((_SEEDS, 2))
    for seed in range(len(value)):
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        network = torch.nn.Sequential(
            torch.nn.Linear(x_TND.shape[2], setting["width"]),
            torch.nn.ReLU(),
            torch.nn.Dropout(DROPOUT),
            torch.nn.Linear(setting["width"], sum(counts)),
        )
        optimiser = torch.optim.AdamW(network.parameters(), lr=setting["lr"], weight_decay=setting["weight_decay"])
        rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps))
        for _ in range(steps):
            a, b = rng.integers(len(fine_t), size=half), labelled[rng.integers(len(labelled), size=half)]
            out = network(torch.cat([x_TND[fine_t[a], fine_n[a]], x_TND[0, b]]))
            named = torch.nn.functional.cross_entropy(out[:half, : counts[0]], torch.from_numpy(fine_t[a]))
            place = torch.from_numpy(np.searchsorted(classes, class_N[b]))
            classed = torch.nn.functional.cross_entropy(out[half:, counts[0] :], place)
            loss = lam / math.log(counts[0]) * named + (1 - lam) / math.log(counts[1]) * classed
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
    wide = 2 * value.std(axis=0, ddof=1) + TOLERANCES["mlp"]
    yield "multi-task, style", joint["fine"], float(value[:, 0].mean()), float(wide[0])
    yield "multi-task, class", joint["semantic"], float(value[:, 1].mean()), float(wide[1] + 1 / len(test))


def _rate(step: int, steps: int) -> float:
    """Linear over the first twentieth, then a cosine to zero."""
    warm = max(1, round(WARM_UP * steps))
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


# --- neighbours, clusters, geometry -----------------------------------------------------------------------------------


def neighbours(table: Table, ours: dict[str, Any]) -> Iterator[tuple[str, Any, float | None, float]]:
    """k-NN, balance and clusters of all variants of test images, where the run looked at all of them."""
    every = np.arange(len(table.names))
    (t, n), (bank_t, bank_n) = (table.rows(every, table.images(split)) for split in (TEST, TRAIN))
    if (dig(ours, "sampled", "queries"), dig(ours, "sampled", "bank")) != (len(t), len(bank_t)):
        print(f"the run drew {ours['sampled']['queries']} of {len(t)} queries: no neighbours compared", file=sys.stderr)
        return
    exact = max(TOLERANCES["exact"], 2 / len(t))  # float32 puts two near-equal neighbours in another order now and then
    x_RD = normalize(table.x_TND[t, n].astype(np.float64))
    bank = NearestNeighbors(metric="cosine", algorithm="brute").fit(
        normalize(table.x_TND[bank_t, bank_n].astype(np.float64))
    )
    ks = [k for k in map(int, ours["knn"]["transformation"]) if k <= len(bank_t)]
    near_Rk = bank.kneighbors(x_RD, max(ks), return_distance=False)
    class_N = table.label_N
    for word, key, answer_R, vote_Rk in (
        ("style", "transformation", t, bank_t[near_Rk]),
        ("class", "class", class_N[n], class_N[bank_n][near_Rk]),
    ):
        if dig(ours, "knn", key) and (vote_Rk >= 0).all():
            for k in ks:
                hits = np.array([max(v := row[:k].tolist(), key=v.count) for row in vote_Rk]) == answer_R
                yield f"{k}-NN, {word}", ours["knn"][key][str(k)], float(hits[answer_R >= 0].mean()), exact
    near = (
        NearestNeighbors(metric="cosine", algorithm="brute").fit(x_RD).kneighbors(None, 1, return_distance=False)[:, 0]
    )
    image, style = n[near] == n, t[near] == t
    for key, hit in (("same_image", image), ("same_transformation", style), ("neither", ~image & ~style)):
        yield f"nearest: {key.replace('_', ' ')}", ours["balance"][key], float(hit.mean()), exact
    for key, truth_R in (("transformation", t), ("class", class_N[n])):
        known = truth_R >= 0
        if dig(ours, "clusters", f"ami_{key}") is not None:
            k, own_RD = ours["clusters"]["k"][key], x_RD[known].astype(np.float32)
            values = [
                adjusted_mutual_info_score(
                    truth_R[known], KMeans(k, init="random", n_init=2, random_state=start).fit_predict(own_RD)
                )
                for start in range(_STARTS)
            ]
            wide = 3 * float(np.std(values, ddof=1)) + TOLERANCES["k-means"]
            yield f"AMI, {key}", ours["clusters"][f"ami_{key}"], float(np.mean(values)), wide


def geometry(table: Table, ours: dict[str, Any]) -> Iterator[tuple[str, Any, float | None, float]]:
    """Means over transformations of sensitivity, equivariance and steerability, and the largest difference of each."""
    train, val, test = (table.images(split) for split in (TRAIN, VAL, TEST))
    if dig(ours, "sampled", "test_images") != len(test) or dig(ours, "sampled", "ridge_train") != len(train):
        print("the run drew some of the images: no geometry compared", file=sys.stderr)
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
        others_MD = normalize(step_MD.sum(axis=0) - step_MD)
        found["equivariance"][name] = float((step_MD * others_MD).sum(axis=1).mean())
        x_ND = x_TND[0, fit]
        scale = np.square(x_ND - x_ND.mean(axis=0)).sum() / min(x_ND.shape)
        errors = {}
        for factor in RIDGE:
            model = Ridge(alpha=scale * factor, solver="cholesky").fit(x_ND, x_TND[t, fit])
            errors[factor] = np.square(model.predict(x_TND[0, choose]) - x_TND[t, choose]).sum(), model
        predicted_MD = min(errors.values(), key=lambda pair: pair[0])[1].predict(base_MD)
        centre_D = x_TND[t, fit].mean(axis=0)
        # R2 against the training mean, so that the outputs' own means do not count
        found["steerability"][name] = (
            1 - np.square(predicted_MD - moved_MD).sum() / np.square(moved_MD - centre_D).sum()
        )
    for key, by in found.items():
        pairs = [(ours[key][name], value) for name, value in by.items() if ours[key][name] is not None]
        yield (
            f"{key}, mean",
            float(np.mean([a for a, _ in pairs])),
            float(np.mean([b for _, b in pairs])),
            TOLERANCES["exact"],
        )
        a, b = max(pairs, key=lambda pair: abs(pair[0] - pair[1]))
        yield f"{key}, where it differs most", a, b, TOLERANCES["exact"]


# --- the command ------------------------------------------------------------------------------------------------------


def compare(run: Path, backbones: list[str] | None = None) -> list[Row]:
    """All quantities of a run folder, which has one ``*.zarr`` in it and ``results.json``.

    Raises:
        ValueError: no such store, or no validation image, without which probes choose differently.
    """
    results = json.loads((run / "results.json").read_text())
    stores = sorted(run.glob("*.zarr"))
    if len(stores) != 1:
        raise ValueError(f"{run}: {len(stores)} stores in it, not one")
    rows = []
    for name in backbones or list(results["backbones"]):
        ours, table = results["backbones"][name], read_table(stores[0], name, results["transformations"])
        if not len(table.images(VAL)):
            raise ValueError(f"{run}: no validation image")
        for part in (probes, multitask, neighbours, geometry):
            for quantity, value, theirs, tolerance in part(table, ours):
                own, other = (None if v is None else float(v) for v in (value, theirs))  # JSON takes no numpy
                rows.append(Row(name, quantity, own, other, float(tolerance)))
                print(line(rows[-1]), flush=True)
    return rows


def line(row: Row) -> str:
    """A row as text."""
    numbers = " ".join("       –" if v is None else f"{v:8.4f}" for v in (row.ours, row.theirs, row.difference))
    return f"{row.backbone:32} {row.quantity:42} {numbers}  ±{row.tolerance:.4f}{'' if row.holds else '  DIFFERS'}"


def document(rows: list[Row]) -> dict[str, Any]:
    """The result as JSON."""
    packages = ("numpy", "scipy", "scikit-learn", "torch", "zarr", "pyarrow")
    return {
        "schema": SCHEMA,
        "benchmark": NAME,
        "question": QUESTION,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "environment": {
            "system": platform.system(),
            "python": platform.python_version(),
            "cores": len(os.sched_getaffinity(0)),
            "packages": {name: version(name) for name in packages},
        },
        "tolerances": TOLERANCES,
        "rows": [{**asdict(row), "difference": row.difference, "holds": row.holds} for row in rows],
    }


def main(arguments: list[str] | None = None) -> int:
    """The command line; 1 where a quantity is beyond its tolerance."""
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--backbone", action="append", help="only this (repeatable)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table as JSON")
    options = parser.parse_args(arguments)
    rows = compare(options.run, options.backbone)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(document(rows), indent=1, allow_nan=False) + "\n")
    wrong = sum(not row.holds for row in rows)
    print(f"{len(rows)} quantities, {wrong} beyond their tolerance")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""Recompute the numbers of a finished run from its store by scikit-learn and torch, without the engine's code.

``python -m benchmarks.reference_probes RUN [--backbone NAME] [--out FILE]`` prints every quantity, ours and theirs, and
exits with 1 if a difference exceeds its tolerance in TOLERANCES.

Shapes: R rows, T variants, N images, D embedding width, C classes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.linear_model import Ridge
from sklearn.metrics import adjusted_mutual_info_score
from sklearn.metrics.pairwise import paired_cosine_distances
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler, normalize

from benchmarks import harness
from benchmarks.reference_linear import TOLERANCES, dig, probes, weighted
from benchmarks.reference_store import TEST, TRAIN, VAL, Table, read_table

NAME = "reference_probes"
QUESTION = "Do scikit-learn and torch find the numbers of a run?"
RIDGE = tuple(10.0**e for e in range(-4, 5))
DROPOUT = 0.2
WARM_UP = 0.05
BATCH, BATCHES_AN_EPOCH, SMALLEST = 1024, 16, 32
_SEEDS, _STARTS = 3, 5


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
        """``ours`` minus ``theirs``, or None."""
        return None if self.ours is None or self.theirs is None else self.ours - self.theirs

    @property
    def holds(self) -> bool:
        """Whether the difference is within the tolerance or None."""
        return self.difference is None or abs(self.difference) <= self.tolerance


# --- the multi-task probe -----------------------------------------------------------------------------------------


def multitask(table: Table, ours: dict[str, Any]) -> Iterator[tuple[str, Any, float | None, float]]:
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
        network = torch.nn.Sequential(
            torch.nn.Linear(x_TND.shape[2], setting["width"]),
            torch.nn.ReLU(),
            torch.nn.Dropout(DROPOUT),
            torch.nn.Linear(setting["width"], sum(counts)),
        )
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
    wide = 2 * value.std(axis=0, ddof=1) + TOLERANCES["mlp"]
    yield "multi-task, transformation", dig(joint, "transformation", "value"), float(value[:, 0].mean()), float(wide[0])
    yield (
        "multi-task, class",
        dig(joint, "class", "value"),
        float(value[:, 1].mean()),
        float(wide[1] + 1 / len(test)),
    )


def _rate(step: int, steps: int) -> float:
    """Learning-rate factor: linear over the first 5 %, then a cosine to zero."""
    warm = max(1, round(WARM_UP * steps))
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


# --- neighbours, clusters, geometry -----------------------------------------------------------------------------------


def neighbours(table: Table, ours: dict[str, Any]) -> Iterator[tuple[str, Any, float | None, float]]:
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


def geometry(table: Table, ours: dict[str, Any]) -> Iterator[tuple[str, Any, float | None, float]]:
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
    """Format a row as text."""
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

"""Class accuracy on other photographs or on corrupted ones, and its relation to sensitivity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.analysis import geometry
from substyle.engine.probes.checkpoint import Probe
from substyle.engine.probes.resampling import ACCURACY, BootstrapResult, Bounds, resample
from substyle.engine.stages.shift.config import ShiftConfig
from substyle.engine.stages.tables import NewPhotographs
from substyle.engine.store.layout import TEST
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, open_table
from substyle.errors import ConfigError
from substyle.pipelines.sources.labels import numbered


def shift_scores(
    table: EmbeddingTable,
    probe: Probe,
    stores: Mapping[str, EmbeddingStore],
    photographs: NewPhotographs,
    config: ShiftConfig,
) -> tuple[dict[str, Any], dict[str, BootstrapResult]]:
    """Scores of a backbone's probe on shifted photographs by name, and replicates of sensitivity and loss."""
    scores: dict[str, Any] = {}
    kept = {"sensitivity": _sensitivity(table, config)}
    for number, (name, store) in enumerate(stores.items(), 1):
        shifted = open_table(store, table.backbone)
        own_photographs = name not in config.folders
        new_N = photographs.of(shifted, table, f"shift {name}", np.arange(len(shifted.keys)))
        made = range(min(1, len(shifted.transformations) - 1), len(shifted.transformations))
        rows, draw = np.flatnonzero(new_N), 0 if own_photographs else number
        reached = accuracy(shifted, probe, rows, made, config, draw, own=own_photographs)
        if reached is None:
            found = ", ".join(shifted.class_names) or "no classes"
            allowed = f"photographs of some of {', '.join(probe.labels['class'])}"
            if not new_N.all():
                allowed += f"; {np.count_nonzero(~new_N):,} are near-duplicates of training photographs"
            if any(map(numbered, shifted.class_names)):
                allowed += " (numbers are not names: class 0 of one data set is not class 0 of another)"
            raise ConfigError(f"shift.{name}", found, allowed)
        scores[name] = {"accuracy": reached[0].entry(), "images": reached[1]}
        rows = compared_rows(table, (shifted, made) if own_photographs else None)
        original = accuracy(table, probe, rows, [0], config)
        if original is not None:
            kept[f"loss/{name}"] = original[0] - reached[0]
    return scores, kept


def compared_rows(table: EmbeddingTable, corrupted: tuple[EmbeddingTable, Sequence[int]] | None) -> NDArray[np.int64]:
    """Indices of test photographs, if given only of those with a corruption: those of further sources have none."""
    rows = table.rows(TEST)
    if corrupted is None:
        return rows
    other, made = corrupted
    keys = np.array(other.keys)[_with_variant(other, made, np.arange(len(other.keys)))]
    return rows[np.isin(np.array(table.keys)[rows], keys)]


def _with_variant(table: EmbeddingTable, made: Sequence[int], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of images that have a variant of some of these transformations."""
    there = [table.present(t, rows) for t in made]
    return rows[np.isin(rows, np.concatenate(there))]


def accuracy(
    table: EmbeddingTable,
    probe: Probe,
    rows: NDArray[np.int64],
    made: Sequence[int],
    config: ShiftConfig,
    draw: int = 0,
    *,
    own: bool = True,
) -> tuple[BootstrapResult, int] | None:
    """Mean accuracy on some transformations, and the number of images; None without images of known classes.

    Images are in the order of their keys, so that scores of the same images are paired.

    Args:
        draw: selects other resamples for other images.
        own: as of `Probe.truth`.
    """
    rows = table.by_key(_with_variant(table, made, rows))
    truth_N = probe.truth(table, rows, own=own)[0]
    rows, truth_N = rows[truth_N >= 0], truth_N[truth_N >= 0]
    if not len(rows):
        return None
    right_TN = np.stack([(probe.predict(table.take(t, rows)).argmax(axis=1) == truth_N).astype(float) for t in made])
    if table.absent_TN is not None:
        right_TN[table.absent_TN[np.ix_(np.array(made), rows)]] = np.nan
    return _mean(right_TN, table, rows, config, draw), len(rows)


def _sensitivity(table: EmbeddingTable, config: ShiftConfig) -> BootstrapResult:
    """Mean over transformations of the sensitivity, as in the analysis; images in the order of their keys."""
    rows = table.by_key(geometry.draw_images(table, table.rows(TEST), config.max_images, config.seed))
    identity_ND = table.take_finite(0, rows)
    mean_D = identity_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
    moved_TN = [
        np.where(
            table.distinct_TN[t, rows],
            geometry.sensitivity(identity_ND, table.take_finite(t, rows), mean_D),
            np.nan,
        )
        for t in range(1, len(table.transformations))
    ]
    return _mean(np.array(moved_TN).reshape(-1, len(rows)), table, rows, config, bounds=None)


def _mean(
    score_TN: NDArray[Any],
    table: EmbeddingTable,
    rows: NDArray[np.int64],
    config: ShiftConfig,
    draw: int = 0,
    *,
    bounds: Bounds | None = ACCURACY,
) -> BootstrapResult:
    group_N = table.groups_of(rows, config.resample_by)
    drawn = config.bootstrap, config.seed + draw, group_N
    found = resample(score_TN.astype(np.float64), *drawn, bounds=bounds, unit=config.resample_by)
    return found.mean(np.ones(len(score_TN)))

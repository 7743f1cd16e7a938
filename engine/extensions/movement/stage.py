"""How far variants move from their photograph by three measures, and which of them predicts the loss of accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from substyle.engine.analysis.geometry import sensitivity, unit
from substyle.engine.analysis.robustness import spearman
from substyle.engine.base_config import BootstrapConfig
from substyle.engine.config import Study
from substyle.engine.embedding.preflight import SplitCounts
from substyle.engine.extensions.movement import section
from substyle.engine.extensions.movement.section import DEFAULT, MEASURES, Movement
from substyle.engine.probes.outcomes import ProbeOutcome
from substyle.engine.probes.resampling import BootstrapResult
from substyle.engine.probes.tasks import identity
from substyle.engine.results.model import entry_of
from substyle.engine.results.statistics import correlation_interval
from substyle.engine.stages.execution import folder_of
from substyle.engine.stages.probes import STAGE as PROBES
from substyle.engine.stages.registry import register_stage
from substyle.engine.stages.stage import JSON, JsonStage, Run, Unit
from substyle.engine.stages.stamp import note_of
from substyle.engine.store.layout import TRAIN
from substyle.engine.store.table import EmbeddingTable
from substyle.kernels.philox import image_keys
from substyle.pipelines.transforms.registry import load_all
from substyle.pipelines.transforms.style import generator_of
from substyle.pipelines.validation import validated

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
FEWEST = 5  # transformations of a correlation
_SCORES = "class/linear"
_STEPS = 200  # of the search for the smallest ball
_AT_ONCE = 256  # photographs in memory with all of their variants


@validated("movement")
class MovementConfig(BootstrapConfig):
    """How far variants move from their photograph, by several measures, and which predicts the loss of accuracy."""

    neighbours: ClassVar[int] = 10
    """Number of original photographs whose mean similarity is the hubness of an embedding."""
    max_images: ClassVar[int] = 2_000
    """Maximum number of test photographs."""


class MovementStage(JsonStage[MovementConfig]):
    """Measure how far the variants of test photographs move, and how much of the class accuracy they lose.

    Three measures: sensitivity, as in the analysis; the radius of the smallest ball around a photograph and its
    variants (the divergence radius of arXiv 2604.14973), in half distances of original photographs (root mean square);
    and the cosine distance corrected for hubness (CSLS of Conneau et al., "Word translation without parallel data",
    ICLR 2018). Over transformations, each is correlated with the accuracy that the linear class probe loses. Severities
    of one, and styles of one generator, count as one.
    """

    name = "movement"
    version = 2
    config = MovementConfig
    alike = True
    backbone_results = Movement
    reads = ("probes",)
    report = section

    def check(self, study: Study, counts: SplitCounts) -> list[str]:
        """Warn of a table that finds nothing."""
        if self.of(study) is None:
            return []
        if len(counts.classes(TRAIN)) < 2:
            return ["[movement] does nothing: the photographs have fewer than two training classes"]
        if "class" not in study.probes.tasks or "linear" not in study.probes.heads:
            return ["[movement] does nothing: probes.tasks has no class, or probes.heads no linear"]
        return []

    def units(self, run: Run, config: MovementConfig) -> Iterable[Unit]:
        """Backbones with a linear class probe and at least five transformations."""
        found: Mapping[str, ProbeOutcome] = run.results.get("probes", {})
        for each in super().units(run, config):
            enough = len(run.tables[each.name].transformations) > FEWEST
            if enough and each.name in found and _SCORES in found[each.name].scores:
                yield each

    def inputs(self, run: Run, config: MovementConfig, unit: Unit, before: Mapping[str, Any] | None = None) -> JSON:
        """The probes."""
        note = note_of(folder_of(PROBES, run, unit))
        return {"probes": note and note.files}

    def compute(self, run: Run, config: MovementConfig, unit: Unit, folder: Path) -> None:
        """Write the measures."""
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        with threadpool_limits(1):  # the same numbers on any number of cores
            outcome = PROBES.load(run, folder_of(PROBES, run, unit))
            self.write(folder, movement(run.tables[unit.name], outcome, config))

    def lines(self, result: JSON) -> Iterator[str]:
        """The correlation of each measure with the loss."""
        for name, own in result["measures"].items():
            if own["spearman"] is not None:
                yield f"{name}  Spearman's rho {own['spearman']['value']:+.2f}"


STAGE = register_stage(MovementStage())


def movement(table: EmbeddingTable, outcome: ProbeOutcome, config: MovementConfig) -> JSON:
    """Measures and loss of each transformation on test photographs, and their rank correlations.

    Variants that equal the original, or show motifs of another split, are left out.

    Returns:
        results of `Movement`.
    """
    load_all()
    base = identity(table)
    moving = [t for t, name in enumerate(table.transformations) if name in outcome.transformations and t != base]
    place = {key: n for n, key in enumerate(table.keys)}
    column = {name: t for t, name in enumerate(outcome.transformations)}
    score_TN = outcome.scores[_SCORES].astype(np.float64)
    original_N = score_TN[column["identity"]]
    asked = np.array([i for i, key in enumerate(outcome.keys) if key in place and np.isfinite(original_N[i])], np.int64)
    drawn = np.argsort(image_keys(config.seed, [outcome.keys[i] for i in asked.tolist()]))[: config.max_images]
    asked = asked[np.sort(drawn)]
    rows = np.array([place[outcome.keys[i]] for i in asked.tolist()], np.int64)
    loss_TN = np.stack([original_N[asked] - score_TN[column[table.transformations[t]], asked] for t in moving])
    measure_MTN, ball_N = _measures(table, base, moving, rows, config)
    known_TN = np.isfinite(loss_TN) & np.isfinite(measure_MTN).all(axis=0)
    group_N = table.groups_of(rows, config.resample_by)
    groups = int(group_N.max()) + 1 if len(rows) else 0
    rng = np.random.default_rng([config.seed, groups, 0x6D6F7665])
    times_RG = rng.multinomial(groups, np.full(groups, 1 / max(groups, 1)), size=config.bootstrap)
    weight_RN = np.concatenate([np.ones((1, len(rows))), times_RG[:, group_N]]).astype(np.float64)

    def means(value_TN: F64) -> F64:
        """Means over photographs: of all in the first row, then of each resample. Shape: (1 + R, T)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((weight_RN @ np.where(known_TN, value_TN, 0.0).T) / (weight_RN @ known_TN.T), np.float64)

    loss_RT, measure_MRT = means(loss_TN), [means(each) for each in measure_MTN]
    known = np.flatnonzero(np.isfinite(loss_RT[0]))
    unit_KT = _units(table, [moving[i] for i in known])
    loss_RK, measure_MRK = loss_RT[:, known] @ unit_KT.T, [own_RT[:, known] @ unit_KT.T for own_RT in measure_MRT]
    every = np.arange(len(unit_KT))
    pick_RK = rng.choice(every, (config.bootstrap, len(every))) if len(every) else np.zeros((0, 0), np.int64)
    correlated = {
        name: _correlated(own_RK, loss_RK, pick_RK, groups) for name, own_RK in zip(MEASURES, measure_MRK, strict=True)
    }
    ball_R = weight_RN @ ball_N / weight_RN.sum(axis=1)
    counts = {"images": len(rows), "transformations": len(known), "units": len(every)}
    answer: JSON = {
        "measures": {},
        **counts,
        **asdict(config),
        "neighbours": config.neighbours,
        "max_images": config.max_images,
    }
    of_all = {name: np.nanmean(own_RT[:, known], axis=1) for name, own_RT in zip(MEASURES, measure_MRT, strict=True)}
    of_all["radius"] = ball_R
    unit, both = config.resample_by, f"{config.resample_by} and transformation"
    for (name, (rho, apart_R, ci95)), own_RT in zip(correlated.items(), measure_MRT, strict=True):
        default, default_R, _ = correlated[DEFAULT]
        mean = BootstrapResult(float(of_all[name][0]), of_all[name][1:], groups, unit=unit)
        difference = BootstrapResult(rho - default, apart_R - default_R, len(every), unit=both)
        answer["measures"][name] = {
            "mean": mean.entry(),
            "spearman": entry_of(rho, ci95, min(groups, len(every)), both),
            **({"difference": difference.entry()} if name != DEFAULT else {}),
            "by_transformation": {
                table.transformations[t]: float(own_RT[0, i]) for i, t in enumerate(moving) if i in known
            },
        }
    loss, loss_R = float(np.mean(loss_RT[0, known])), np.nanmean(loss_RT[1:, known], axis=1)
    by_transformation = {table.transformations[t]: float(loss_RT[0, i]) for i, t in enumerate(moving) if i in known}
    lost = BootstrapResult(loss, loss_R, groups, unit=unit).entry()
    return {**answer, "loss": lost, "by_transformation": by_transformation}


def _units(table: EmbeddingTable, chosen: list[int]) -> F64:
    """Weights of transformations in the means of their units (K, T): severities of one, and styles of one generator."""
    recorded = table.generators or [""] * len(table.transformations)
    names = [generator_of(table.transformations[t], recorded[t]) or table.families[t] for t in chosen]
    weight_KT = np.array([[own == name for own in names] for name in dict.fromkeys(names)], np.float64)
    return weight_KT / weight_KT.sum(axis=1, keepdims=True) if chosen else np.zeros((0, 0))


def _correlated(own_RK: F64, loss_RK: F64, pick_RK: I64, groups: int) -> tuple[float, F64, list[float] | None]:
    """Spearman's rho, its replicates over photographs and transformations, and the wider of two intervals.

    One is over photographs, the other over transformations (Bonett and Wright's).
    """
    rho_R, count = spearman(own_RK, loss_RK), loss_RK.shape[1]
    rho = float(rho_R[0])
    if count < FEWEST or not np.isfinite(rho):
        return float("nan"), np.empty(0), None
    resample = np.arange(len(pick_RK))[:, None]
    both_R = spearman(own_RK[1:][resample, pick_RK], loss_RK[1:][resample, pick_RK])
    by_images = BootstrapResult(rho, rho_R[1:], groups).within(-1.0, 1.0)
    low, high = correlation_interval(rho, count)
    if by_images is None:
        return rho, both_R, None
    return rho, both_R, [min(low, by_images[0]), max(high, by_images[1])]


def _measures(
    table: EmbeddingTable, base: int, moving: list[int], rows: I64, config: MovementConfig
) -> tuple[F64, F64]:
    """Each measure of each variant, NaN for none (M, T, N), and the radius around all variants of a photograph (N,)."""
    plain_ND = table.take_finite(base, rows)
    mean_D = (plain_ND.sum(axis=0, dtype=np.float64) / max(len(rows), 1)).astype(np.float32)
    plain = unit(plain_ND)
    scale = _half_distance(plain)
    hub_N = _hubness(plain, plain, config.neighbours)
    found = np.full((len(MEASURES), len(moving), len(rows)), np.nan)
    for i, t in enumerate(moving):
        keep_N = table.distinct_TN[t, rows]
        varied_ND = table.take_finite(t, rows)
        varied = unit(varied_ND)
        cosine_N = np.einsum("nd,nd->n", varied, plain)
        hubs_N = (hub_N + _hubness(varied, plain, config.neighbours)) / 2
        own = {
            "sensitivity": sensitivity(plain_ND, varied_ND, mean_D),
            "radius": np.linalg.norm(varied - plain, axis=1) / 2 / scale,
            "csls": hubs_N - cosine_N,
        }
        found[:, i] = np.where(keep_N, np.stack([own[name] for name in MEASURES]), np.nan)
    return found, _balls(table, base, moving, rows) / scale


def _half_distance(x_ND: F32) -> float:
    """Half of the root mean square distance of different rows of unit length."""
    count, total_D = len(x_ND), x_ND.sum(axis=0, dtype=np.float64)
    alike = (float(total_D @ total_D) - count) / max(count * (count - 1), 1)
    return max(float(np.sqrt(max(2 - 2 * alike, 0.0))) / 2, 1e-12)


def _hubness(x_ND: F32, bank_ND: F32, neighbours: int) -> F64:
    """Mean cosine of each row with its nearest rows of a bank, of which its own is left out."""
    count = min(neighbours, len(bank_ND) - 1)
    if count < 1:
        return np.zeros(len(x_ND))
    found = np.empty(len(x_ND))
    for start in range(0, len(x_ND), 1024):
        near = x_ND[start : start + 1024] @ bank_ND.T
        near[np.arange(len(near)), start + np.arange(len(near))] = -np.inf
        found[start : start + 1024] = np.partition(near, -count, axis=1)[:, -count:].mean(axis=1)
    return found


def _balls(table: EmbeddingTable, base: int, moving: list[int], rows: I64) -> F64:
    """Radius of the smallest ball around each photograph and its variants. Shape: (N,)."""
    found = np.empty(len(rows))
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        plain = unit(table.take_finite(base, part))
        points = [np.where(table.distinct_TN[t, part, None], unit(table.take_finite(t, part)), plain) for t in moving]
        found[start : start + len(part)] = [radius(each) for each in np.stack([plain, *points], axis=1)]
    return found


def radius(points_PD: NDArray[np.floating]) -> float:
    """Radius of the smallest ball around points, by the steps of Bădoiu and Clarkson (2003)."""
    points_PD = points_PD.astype(np.float64)
    gram_PP, weight_P = points_PD @ points_PD.T, np.zeros(len(points_PD))
    weight_P[0] = 1.0  # of the centre
    for step in range(1, _STEPS + 1):
        farthest = int((gram_PP.diagonal() - 2 * gram_PP @ weight_P).argmax())
        weight_P *= step / (step + 1)
        weight_P[farthest] += 1 / (step + 1)
    squared_P = gram_PP.diagonal() - 2 * gram_PP @ weight_P + weight_P @ gram_PP @ weight_P
    return math.sqrt(max(float(squared_P.max()), 0.0))

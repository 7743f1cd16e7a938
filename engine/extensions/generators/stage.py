"""Styles of generators that a probe has not seen: each generator trains in turn, and all others are scored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import combinations, product
from math import comb
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StrictInt

from substyle.engine import devices
from substyle.engine.base_config import BootstrapConfig
from substyle.engine.config import Study
from substyle.engine.embedding.preflight import SplitCounts
from substyle.engine.extensions.generators import section
from substyle.engine.extensions.generators.section import Contrasts, UnseenStyles
from substyle.engine.probes import linear
from substyle.engine.probes.batches import Features
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.crossed import Crossed, known_mean, mean_over_pairs
from substyle.engine.probes.dataset import hold
from substyle.engine.probes.evaluate import score
from substyle.engine.probes.leave_one_out import STYLE
from substyle.engine.probes.linear import certified, fit_heads, resampled_images, until_agreed, variant_weights
from substyle.engine.probes.outcomes import holm
from substyle.engine.probes.preconditioner import CovarianceBasis
from substyle.engine.probes.resampling import balanced_over, resample
from substyle.engine.probes.solver import Fit
from substyle.engine.probes.tasks import F64, Task, kind_task
from substyle.engine.probes.training_rows import TrainingRows
from substyle.engine.results.model import ResultsDocument
from substyle.engine.stages.execution import folder_of
from substyle.engine.stages.probes import STAGE as PROBES
from substyle.engine.stages.registry import register_stage
from substyle.engine.stages.stage import JSON, JsonStage, Run, Unit
from substyle.engine.store.layout import TEST, slug
from substyle.engine.store.table import EmbeddingTable
from substyle.errors import ConfigError
from substyle.pipelines.transforms.registry import suite
from substyle.pipelines.transforms.style import by_generator
from substyle.pipelines.validation import validated

FEWEST = 3  # generators
_ARRAYS = "crossed.npz"


@validated("generators")
class GeneratorsConfig(BootstrapConfig):
    """Styles of generators that a probe has not seen: each generator trains in turn, and all others are scored."""

    styles: Annotated[StrictInt, Field(ge=0, le=64)] = 3
    """Styles of one generator that a probe is trained on; generators with fewer are left out. 0 turns the stage off."""
    draws: Annotated[StrictInt, Field(ge=1, le=64)] = 4
    """Maximum number of draws of these styles from each generator."""
    C: ClassVar[float] = 0.01
    """Inverse regularisation strength of all probes."""
    resamples: ClassVar[int] = 5
    """Number of probes of each generator that are trained on resampled photographs."""


class GeneratorsStage(JsonStage[GeneratorsConfig]):
    """Train kind probes on the styles of one generator, and score them on the styles of all others.

    Probes see the training transformations of all other kinds. The 95 % interval is over generators, which are
    random as trained on and as tested, over test photographs, and over training photographs.
    """

    name = "generators"
    version = 3
    config = GeneratorsConfig
    switch = "styles"
    alike = True
    backbone_results = UnseenStyles
    document_results = Contrasts
    report = section

    def check(self, study: Study, counts: SplitCounts) -> list[str]:
        """Raise ConfigError if the study has a table for too few generators."""
        config = self.of(study)
        if self.name in study.stages and config is not None:
            known = _generators(suite(study.suite), config)
            if len(known) < FEWEST:
                allowed = f"a suite with at least {FEWEST} generators of {config.styles} styles, such as styles48"
                raise ConfigError(self.name, f"{len(known)} in {study.suite}", allowed)
        return []

    def units(self, run: Run, config: GeneratorsConfig) -> Iterable[Unit]:
        """Backbones with at least three generators, which were not adapted or fine-tuned: these have seen styles."""
        for unit in super().units(run, config):
            facts = run.store.backbone(unit.name).facts
            trained = "finetuned" in facts["spec"] or "adapter" in facts
            if not trained and len(_of_table(run.tables[unit.name], config)) >= FEWEST:
                yield unit

    def inputs(self, run: Run, config: GeneratorsConfig, unit: Unit, before: Mapping[str, Any] | None = None) -> JSON:
        """Styles by generator, since a plug-in may add some, and whether embeddings are rounded."""
        table = run.tables[unit.name]
        known = _of_table(table, config)
        styles = {name: [table.transformations[t] for t in own] for name, own in known.items()}
        return {"styles_of": styles, **PROBES.inputs(run, _probes(run, config), unit, before)}

    def compute(self, run: Run, config: GeneratorsConfig, unit: Unit, folder: Path) -> None:
        """Write scores and what contrasts of backbones need."""
        found, crossed = unseen_styles(run.tables[unit.name], config, _probes(run, config))
        self.write(folder, found)
        crossed.save(folder / _ARRAYS)

    def of_document(self, run: Run, document: ResultsDocument) -> Mapping[str, Any]:
        """Differences of all pairs of networks, with p values after Holm's correction."""
        own = run.results.get(self.name, {})
        names = [name for name in document.networks() if name in own]
        known = {name: Crossed.load(folder_of(self, run, Unit(name, slug(name))) / _ARRAYS) for name in names}
        rows = [
            contrast(a, b, known[a], known[b]) | {"converged": own[a]["converged"] and own[b]["converged"]}
            for a, b in combinations(known, 2)
        ]
        for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
            row["p_holm"] = p
        return {self.name: {"contrasts": rows}} if rows else {}


def _probes(run: Run, config: GeneratorsConfig) -> ProbeConfig:
    return ProbeConfig(seed=config.seed, device=run.study.device if run.study else devices.AUTO)


STAGE = register_stage(GeneratorsStage())


def _generators(names: Sequence[str], config: GeneratorsConfig, recorded: Sequence[str] = ()) -> dict[str, list[int]]:
    """Indices of styles by generator, of those with enough styles; arguments as of `by_generator`."""
    return {name: own for name, own in by_generator(names, recorded).items() if len(own) >= config.styles}


def _of_table(table: EmbeddingTable, config: GeneratorsConfig) -> dict[str, list[int]]:
    return _generators(table.transformations, config, table.generators)


def contrast(a: str, b: str, crossed_a: Crossed, crossed_b: Crossed) -> JSON:
    """The difference a - b on the same generators, photographs and resamples."""
    difference = crossed_a - crossed_b
    return {"a": a, "b": b, "difference": difference.entry(-1.0), "p": difference.p}


def unseen_styles(table: EmbeddingTable, config: GeneratorsConfig, probes: ProbeConfig) -> tuple[JSON, Crossed]:
    """Score probes on the styles of generators that they have not seen.

    Args:
        table: embeddings in a suite with at least three generators.
        probes: device and precision of training.

    Returns:
        results of `UnseenStyles`, and scores by pair of generators.
    """
    generators = _of_table(table, config)
    styles = np.array([t for own in generators.values() for t in own])
    base = [t for t, role in enumerate(table.roles) if role == "train" and table.kind[t] != STYLE]
    task = kind_task(table, config.seed, seen=[*base, *styles])
    assert task is not None  # identity and styles are two classes
    # standardised without any style, of which all but a few are new
    plain = replace(task, train_T=np.setdiff1d(task.train_T, styles))
    device = devices.resolve(probes.device).torch_device
    features = Features.of_task(hold(table, probes, device), plain, probes)
    planned = _planned(table, task, list(generators.values()), plain.train_T, config)
    fit, difference = _fitted(features, task, probes, planned, config.C, styles)
    images = table.rows(TEST)
    right_KTN = np.stack([_scored(features, task, fit, k, own, images) for k, own in enumerate(planned.own_K)])
    right_GTN = _by_generator(right_KTN, planned, len(generators))
    crossed = _crossed_of(table, generators, planned, right_KTN, right_GTN, config)
    accuracy_T = known_mean(known_mean(right_GTN).T)
    seen = [t for t in plain.train_T.tolist() if np.isfinite(accuracy_T[t])]
    weight_T = balanced_over(seen, table.kind, sorted({table.kind[t] for t in seen}))
    own = certified(fit, probes.expert.tolerance)
    return {
        "accuracy": crossed.entry(0.0),
        "generators": list(generators),
        "matrix": _numbers(crossed.score_GG),
        "by_style": {table.transformations[t]: _numbers(accuracy_T)[t] for t in styles.tolist()},
        "seen": float(accuracy_T[seen] @ weight_T[seen] / weight_T.sum()) if seen else None,
        "images": len(images),
        "converged": own["converged"] and abs(difference) <= linear.AGREEMENT and bool(fit.converged_K.all()),
        "certificate": own["certificate"] | {"difference": difference},
        **asdict(config),
        "C": config.C,
        "resamples": config.resamples,
    }, crossed


@dataclass(frozen=True)
class _Planned:
    """What K probes are trained on: several draws of styles of each generator, and the first of them on resampled
    photographs.

    Attributes:
        generator_K: index of the generator.
        own_K: the generator's styles, which are not scored.
        weight_KT: weights of transformations in training.
        times_KN: multiplicities of photographs in training.
        resample_K: number of the resample of photographs, -1 for the photographs as they are.
    """

    generator_K: NDArray[np.int64]
    own_K: list[list[int]]
    weight_KT: F64
    times_KN: F64
    resample_K: NDArray[np.int64]


def _planned(
    table: EmbeddingTable,
    task: Task,
    generators: Sequence[list[int]],
    base: NDArray[np.int64],
    config: GeneratorsConfig,
) -> _Planned:
    rng = np.random.default_rng([config.seed, 0x67656E])
    times_SN = resampled_images(task, table.groups(config.resample_by), config.resamples, config.seed)
    rows: list[tuple[int, list[int], F64, F64, int]] = []
    once_N = np.ones(len(table.keys))
    for g, own in enumerate(generators):
        drawn = dict[tuple[int, ...], None]()
        while len(drawn) < min(config.draws, comb(len(own), config.styles)):
            drawn[tuple(sorted(rng.choice(own, config.styles, replace=False).tolist()))] = None
        weights = [variant_weights(task, np.sort([*base, *styles])) for styles in drawn]
        rows += [(g, own, weight_T, once_N, -1) for weight_T in weights]
        rows += [(g, own, weights[0], times_N, number) for number, times_N in enumerate(times_SN)]
    generator, own_K, weight, times, resample_ = zip(*rows, strict=True)
    return _Planned(np.array(generator), list(own_K), np.stack(weight), np.stack(times), np.array(resample_))


def _fitted(
    features: Features, task: Task, probes: ProbeConfig, planned: _Planned, C: float, styles: NDArray[np.int64]
) -> tuple[Fit, float]:
    """All probes, and the last change of their accuracy on new styles of validation photographs."""
    rows = TrainingRows(features, task, planned.weight_KT, planned.times_KN)
    fitted = partial(fit_heads, rows, probes, [C] * len(planned.own_K), basis=CovarianceBasis.of(rows))
    few = task.val_N[: max(1, probes.validation_rows // len(styles))]

    def validated(fit: Fit) -> float:
        each = [_scored(features, replace(task, test_N=few), fit, k, own, few) for k, own in enumerate(planned.own_K)]
        return float(known_mean(np.stack(each)[:, styles].reshape(1, -1))[0])

    def compared(a: Fit, b: Fit) -> tuple[float, bool]:
        difference = validated(a) - validated(b)
        return difference, abs(difference) <= linear.AGREEMENT

    (*_, fit), difference, _ = until_agreed(fitted(), fitted, compared, probes.expert.doublings)
    return fit, difference


def _scored(
    features: Features, task: Task, fit: Fit, k: int, own: Sequence[int], images: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Scores (T, N) of a probe, NaN for the styles of its generator."""
    others = replace(task, score_T=np.setdiff1d(task.score_T, own))
    return score(features, others, fit.heads.select([k]), images).mean_TN


def _by_generator(right_KTN: NDArray[np.float32], planned: _Planned, count: int) -> NDArray[np.float32]:
    """Scores by generator trained on, a mean over draws of its styles."""
    draws = [right_KTN[(planned.generator_K == g) & (planned.resample_K < 0)] for g in range(count)]
    return np.stack([own.mean(axis=0) for own in draws])


def _crossed_of(
    table: EmbeddingTable,
    generators: Mapping[str, list[int]],
    planned: _Planned,
    right_KTN: NDArray[np.float32],
    right_GTN: NDArray[np.float32],
    config: GeneratorsConfig,
) -> Crossed:
    """Scores by pair of generators, and their means over resamples of photographs."""
    group_N = table.groups_of(table.rows(TEST), config.resample_by)
    resampled = resample(right_GTN.reshape(-1, right_GTN.shape[2]), config.bootstrap, config.seed, group_N)
    weight_GT = np.zeros(right_GTN.shape[:2])
    for g, (own, column) in product(range(len(generators)), enumerate(generators.values())):
        if own != g:
            weight_GT[g, column] = 1 / len(column)
    training = [
        mean_over_pairs(_by_pair(right_KTN[planned.resample_K == number], generators))
        for number in range(planned.resample_K.max() + 1)
    ]
    return Crossed(_by_pair(right_GTN, generators), resampled.mean(weight_GT.ravel()), np.array(training))


def _by_pair(right_GTN: NDArray[np.float32], generators: Mapping[str, list[int]]) -> F64:
    """Accuracy by generator trained on and tested, a mean over styles; NaN on the diagonal."""
    accuracy_GT = known_mean(right_GTN)
    return np.stack([known_mean(accuracy_GT[:, own]) for own in generators.values()], axis=1)


def _numbers(values: F64) -> list[Any]:
    """Nested lists, None for NaN."""
    found = values.astype(object)
    found[~np.isfinite(values)] = None
    numbers: list[Any] = found.tolist()
    return numbers

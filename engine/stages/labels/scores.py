"""Scores of probes for labels, on all of the embedding and with the mean of the class removed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.ridge import Response, cells_of, regressed
from substyle.engine.probes.tasks import identity
from substyle.engine.stages.few_shot import FewShotConfig, few_shot
from substyle.engine.stages.labels.classes import across_values, price_of_shortcut, probed, splits_of
from substyle.engine.stages.labels.config import LabelsConfig
from substyle.engine.stages.stage import JSON
from substyle.engine.store.layout import TEST, TRAIN, UNLABELLED
from substyle.engine.store.table import EmbeddingTable
from substyle.errors import ConfigError

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]
Known = dict[str, dict[str, str]]  # values by label and key
_MANY = 20  # different numbers, from which a label is regressed
_LARGEST = 1e150  # number, whose square is finite


@dataclass(frozen=True)
class Values:
    """The values of a label on the photographs of a table.

    Attributes:
        code_N: index into names, -1 where it is unknown, rare or not used.
        number_N: the values as numbers, NaN where it is unknown or not used; None if they are classes.
        counts: how many photographs are left out, by reason.
    """

    code_N: I64
    names: tuple[str, ...]
    number_N: F64 | None
    counts: dict[str, int]

    @staticmethod
    def of(
        table: EmbeddingTable, known: Mapping[str, str], usable_N: NDArray[np.bool_], label: str, config: LabelsConfig
    ) -> Values:
        """Values on the usable photographs: numbers, or classes that are frequent enough."""
        texts: list[str | None] = [known.get(key) for key in table.keys]
        has_N = np.array([text is not None for text in texts])
        counts = {"missing": int((~has_N).sum()), "in_training": int((has_N & ~usable_N).sum()), "rare": 0}
        has_N &= usable_N
        number_N = _numbers(texts)
        finite = number_N is not None and bool(np.isfinite(number_N[has_N]).all())
        numeric = next((field for field in ("numbers", "bins") if label in getattr(config, field)), "")
        if numeric and not finite:
            wrong = next(text for text in texts if text is not None and _number(text) is None)
            raise ConfigError(f"labels.{numeric}", label, f"a label whose values are numbers, not {wrong!r}")
        if finite and numeric != "bins" and (numeric or len(set(texts) - {None}) > _MANY):
            assert number_N is not None
            number_N[~has_N] = np.nan
            return Values(np.full(len(texts), UNLABELLED), (), number_N, counts)
        if numeric == "bins":
            assert number_N is not None
            texts = _binned(number_N, has_N & (table.split_N == TRAIN), config.bins[label])
        of_train = Counter(text for n, text in enumerate(texts) if has_N[n] and table.split_N[n] == TRAIN)
        names = tuple(sorted(str(name) for name, count in of_train.items() if count >= config.min_images))
        place = {name: i for i, name in enumerate(names)}
        code_N = np.array([place.get(text or "", UNLABELLED) for text in texts], np.int64)
        counts["rare"] = int((has_N & (code_N == UNLABELLED)).sum())
        code_N[~has_N] = UNLABELLED
        return Values(code_N, names, None, counts)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < _LARGEST else None


def _numbers(texts: Sequence[str | None]) -> F64 | None:
    """The values as numbers, NaN for missing ones; None if one is no number."""
    values = [np.nan if text is None else _number(text) for text in texts]
    return None if None in values else np.array(values, np.float64)


def _binned(number_N: F64, train_N: NDArray[np.bool_], count: int) -> list[str | None]:
    """The bin of each number, None for a missing one. Bins have equally many training photographs but for ties."""
    if not train_N.any():
        return [None] * len(number_N)
    inner = np.unique(np.quantile(number_N[train_N], np.arange(1, count) / count, method="inverted_cdf"))
    edges = [repr(edge).removesuffix(".0") for edge in inner.tolist()]
    names = [
        f"up to {edges[0]}",
        *(f"above {low}, up to {high}" for low, high in pairwise(edges)),
        f"above {edges[-1]}",
    ]
    place_N = np.searchsorted(inner, number_N)
    return [None if np.isnan(number) else names[place] for number, place in zip(number_N, place_N, strict=True)]


def labels(table: EmbeddingTable, known: Known, config: LabelsConfig, probes: ProbeConfig) -> JSON:
    """Scores of probes for each label on original test photographs.

    Args:
        known: values by label and key.

    Returns:
        results of `Labels`.
    """
    plain = _grouped(_unchanged(table), known.get(config.group, {}) if config.group else {}, config.group)
    usable_N = _apart(plain) if config.group else np.ones(len(plain.keys), np.bool_)
    fixed = _class_removed(plain)
    settings = replace(
        probes,
        tasks=("class",),
        heads=config.heads,
        expert=replace(probes.expert, equal_width=0),
        bootstrap=config.bootstrap,
        resample_by=config.resample_by if not config.group else "photograph",
        seed=config.seed,
    )
    by_label = {}
    for label in config.of:
        if label == config.group:
            continue
        values = Values.of(plain, known[label], usable_N, label, config)
        if values.number_N is not None:
            by_label[label] = _numeric(plain, fixed, values, label, config)
        else:
            by_label[label] = _classes(plain, fixed, values, config, settings)
    return {"by_label": by_label, **{name: value for name, value in asdict(config).items() if name != "of"}}


def _unchanged(table: EmbeddingTable) -> EmbeddingTable:
    """The original photographs of a table, in memory."""
    t, every = identity(table), np.arange(len(table.keys))
    return replace(
        table,
        x_TND=table.take(t, every)[None],
        transformations=("identity",),
        kind=(table.kind[t],),
        roles=(table.roles[t],),
        distinct_TN=table.distinct_TN[t : t + 1],
        generators=(),
    )


def _grouped(plain: EmbeddingTable, group: Mapping[str, str], label: str) -> EmbeddingTable:
    """A table whose photographs of one value stay together, as near-duplicates do."""
    if not group:
        return plain
    alike = plain.groups("photograph").tolist()
    names = [group.get(key, f"\0{alike[n]}") for n, key in enumerate(plain.keys)]
    _, first, place_N = np.unique(names, return_index=True, return_inverse=True)
    return replace(plain, first_N=first[place_N], unit=label)


def _apart(plain: EmbeddingTable) -> NDArray[np.bool_]:
    """Whether a photograph is for training, or of no group that is also in training. Shape: (N,)."""
    group_N, train_N = plain.groups("photograph"), plain.split_N != TEST
    apart_N: NDArray[np.bool_] = train_N | ~np.isin(group_N, group_N[train_N])
    return apart_N


def _class_removed(plain: EmbeddingTable) -> EmbeddingTable | None:
    """Embeddings minus the mean of their class over training photographs; None for fewer than two classes.

    Photographs without such a class have the label -1.
    """
    train_N = plain.rows(TRAIN)
    classes = np.unique(plain.label_N[train_N])
    classes = classes[classes >= 0]
    if len(classes) < 2:
        return None
    x_ND = plain.take(0, np.arange(len(plain.keys))).astype(np.float32)
    for each in classes:
        mean_D = x_ND[train_N[plain.label_N[train_N] == each]].mean(axis=0, dtype=np.float64)
        x_ND[plain.label_N == each] -= mean_D.astype(np.float32)
    return replace(
        plain, x_TND=x_ND[None], label_N=np.where(np.isin(plain.label_N, classes), plain.label_N, UNLABELLED)
    )


def _accuracy(scores: Mapping[str, Any]) -> JSON:
    """Accuracy of a probe on original photographs."""
    return {
        "accuracy": scores["original"],
        "chance": scores["chance"],
        "converged": scores["converged"],
    }


def _classes(
    plain: EmbeddingTable, fixed: EmbeddingTable | None, values: Values, config: LabelsConfig, probes: ProbeConfig
) -> JSON:
    """Scores of a label whose values are classes."""
    code_N, test_N = values.code_N, plain.rows(TEST)
    found: JSON = {
        "kind": "class",
        "values": len(values.names),
        "images": int((code_N[test_N] >= 0).sum()),
        **values.counts,
    }
    outcome = probed(plain, code_N, values.names, probes)
    if outcome is None:
        return found
    for head in config.heads:
        scores = _accuracy(outcome.results["class"][head])
        found |= scores if head == config.heads[0] else {head: scores}
    (right_N,), tested_N = outcome.scores[f"class/{config.heads[0]}"], code_N[test_N]
    trained_N = code_N[splits_of(plain, code_N >= 0, probes.seed)[0]]
    shared = np.intersect1d(trained_N, tested_N)
    if len(shared):
        found["balanced"] = float(np.mean([right_N[tested_N == value].mean() for value in shared]))
    if config.shots:
        own = replace(plain, label_N=code_N, class_names=values.names)
        given = FewShotConfig(
            shots=config.shots, resample_by=probes.resample_by, bootstrap=config.bootstrap, seed=config.seed
        )
        few = few_shot(own, given)
        found["few_shot"] = {name: few[name] for name in ("accuracy", "converged")}
    if fixed is not None:
        left_N = np.where(fixed.label_N >= 0, code_N, UNLABELLED)
        within = probed(fixed, left_N, values.names, probes)
        if within is not None:
            found["fixed"] = _accuracy(within.results["class"][config.heads[0]])
        found["class_alone"] = _from_class(fixed, left_N)
        found["class"] = across_values(plain, code_N, values.names, config, probes)
        found["shortcut"] = price_of_shortcut(plain, code_N, values.names, config, probes.resample_by)
    return found


def _from_class(fixed: EmbeddingTable, code_N: I64) -> float | None:
    """Accuracy of the most frequent value of the photograph's class in training, on test photographs."""
    train, test = ((fixed.split_N == split) & (code_N >= 0) for split in (TRAIN, TEST))
    if not train.any() or not test.any():
        return None
    best_N = np.full(len(code_N), np.bincount(code_N[train]).argmax())
    for each in np.unique(fixed.label_N[train]):
        own = fixed.label_N == each
        best_N[own] = np.bincount(code_N[train & own]).argmax()
    return float((best_N == code_N)[test].mean())


def _numeric(
    plain: EmbeddingTable, fixed: EmbeddingTable | None, values: Values, label: str, config: LabelsConfig
) -> JSON:
    """Scores of a label whose values are numbers."""
    assert values.number_N is not None
    own_N = np.isfinite(values.number_N)
    found: JSON = {
        "kind": "number",
        "values": len(np.unique(values.number_N[own_N])),
        "images": int((own_N & (plain.split_N == TEST)).sum()),
        **values.counts,
        **_ridge(plain, own_N, values.number_N, label, config),
    }
    if fixed is not None:
        own_N &= fixed.label_N >= 0
        number_N, train = values.number_N.copy(), own_N & (plain.split_N == TRAIN)
        for each in np.unique(fixed.label_N[own_N]):
            rows = own_N & (fixed.label_N == each)
            known = (rows & train).any()
            number_N[rows] -= number_N[rows & train].mean() if known else np.nan
            own_N[rows] &= known
        scored = _ridge(fixed, own_N, number_N, label, config)
        found["fixed"] = {name: scored.get(name) for name in ("r2", "error")}
    return found


def _ridge(table: EmbeddingTable, own_N: NDArray[np.bool_], number_N: F64, label: str, config: LabelsConfig) -> JSON:
    """R² and error on the test photographs among some; empty if a split has none, or all values are equal."""
    splits = splits_of(table, own_N, config.seed)
    if any(len(np.unique(number_N[rows])) < 2 for rows in (splits[0], splits[2])):
        return {}
    cells = [list(cells_of(table, [0], rows)) for rows in splits]
    by = "photograph" if config.group else config.resample_by
    target = Response(label, "", 0.0)
    ((_, scored),) = regressed(
        table, [target], {label: number_N[None]}, cells, bootstrap=config.bootstrap, seed=config.seed, resample_by=by
    )
    return {name: value for name, value in scored.items() if name != "points"}

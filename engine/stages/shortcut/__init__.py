"""What it costs that processing goes with the class: nearest neighbours that share a transformation or do not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, StrictFloat
from torch.nn.functional import normalize

from substyle.engine.base_config import BootstrapConfig
from substyle.engine.config import Study
from substyle.engine.embedding.preflight import SplitCounts
from substyle.engine.probes.resampling import ACCURACY, DIFFERENCE, Bounds, Resampled, resample, uniform_over
from substyle.engine.probes.tasks import identity
from substyle.engine.stages.shortcut import section
from substyle.engine.stages.shortcut.section import ARRANGEMENTS, Shortcut
from substyle.engine.stages.stage import JSON, JsonStage, Run, Unit
from substyle.engine.store.layout import TEST, TRAIN
from substyle.engine.store.table import EmbeddingTable
from substyle.kernels.dispatch import threads
from substyle.pipelines.validation import validated

NEIGHBOURS = 10  # that vote on the class
DRAWS = 10  # of training photographs that are alike at random
MOST = 2_000  # photographs of a split
QUERIES = 2048  # in memory, with their similarity to all training photographs
_PENALTIES = np.logspace(-4, 3, 15)
I64 = NDArray[np.int64]
F32 = NDArray[np.float32]


def _from_none(values: tuple[float, ...]) -> tuple[float, ...]:
    if values and (values[0] != 0 or len(values) < 2 or list(values) != sorted(set(values))):
        raise ValueError("ascending numbers from 0")
    return values


@validated("shortcut")
class ShortcutConfig(BootstrapConfig):
    """What it costs nearest neighbours that a transformation goes with the class, or with the other classes."""

    correlations: Annotated[tuple[Annotated[StrictFloat, Field(ge=0, le=1)], ...], AfterValidator(_from_none)] = (
        0.0,
        0.5,
        1.0,
    )
    """Correlations between transformation and class, 0 first, at which class probes are trained; empty for none. At r,
    the photographs of a random half of the classes are transformed with probability (1 + r) / 2, and those of the other
    half with (1 - r) / 2."""


class ShortcutStage(JsonStage[ShortcutConfig]):
    """Classify test photographs by neighbours among training photographs, some transformed and some original.

    After Ramos et al., "Processing and acquisition traces in visual encoders: What does CLIP know about your camera?",
    ICCV 2025. For each transformation, query and training photographs are original or transformed: all alike, all
    unlike the query, only those of its class like it, only those of other classes, or at random. Scores are means over
    transformed and original queries. Class probes are ridge classifiers, trained where the transformation goes with
    the class more or less often.
    """

    name = "shortcut"
    version = 2
    config = ShortcutConfig
    alike = True
    at_once = staticmethod(lambda config: torch.device("cpu"))
    backbone_results = Shortcut
    report = section

    def check(self, study: Study, counts: SplitCounts) -> list[str]:
        """Warn of a table that finds nothing."""
        few = self.of(study) is not None and len(counts.classes(TRAIN)) < 2
        return ["[shortcut] does nothing: the photographs have fewer than two training classes"] if few else []

    def units(self, run: Run, config: ShortcutConfig) -> Iterable[Unit]:
        """Backbones with original and other variants, whose photographs have classes."""
        for unit in super().units(run, config):
            table = run.tables[unit.name]
            train_N, test_N = _sampled(table, config)
            varied = "identity" in table.transformations and len(table.transformations) > 1
            if varied and len(np.unique(table.label_N[train_N])) > 1 and len(test_N):
                yield unit

    def compute(self, run: Run, config: ShortcutConfig, unit: Unit, folder: Path) -> None:
        """Write the scores."""
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        with threads(1), threadpool_limits(1):  # the same numbers on any number of cores
            self.write(folder, shortcut(run.tables[unit.name], config))

    def lines(self, result: JSON) -> Iterator[str]:
        """The price of each transformation and of all, in points."""
        for name, row in {**result["by_transformation"], "mean": result}.items():
            if row["price"] is not None:
                yield f"{name}  {100 * row['price']['value']:+.1f} points"


STAGE = ShortcutStage()


def _sampled(table: EmbeddingTable, config: ShortcutConfig) -> tuple[I64, I64]:
    """Training photographs with a class, and test photographs of these classes: random ones, in order of keys."""
    known = table.label_N >= 0
    rng = np.random.default_rng([config.seed, 0x73686F72])

    def some(rows: I64) -> I64:
        order = table.by_key(rows)
        return order[np.sort(rng.permutation(len(order))[:MOST])]

    train_N = some(table.rows(TRAIN)[known[table.rows(TRAIN)]])
    test_N = table.rows(TEST)
    return train_N, some(test_N[np.isin(table.label_N[test_N], np.unique(table.label_N[train_N]))])


def shortcut(table: EmbeddingTable, config: ShortcutConfig) -> JSON:
    """Accuracy of k-NN in each arrangement, and what it costs that processing goes with the other classes.

    Variants that equal the original, or show motifs of another split, are neither queries nor neighbours.

    Returns:
        results of `Shortcut`.
    """
    sampled, base = _sampled(table, config), identity(table)
    names = [t for t in range(len(table.transformations)) if t != base]
    plain, arranged, trained = _Variants.of(table, base, sampled), [], []
    alpha = _penalty(plain) if config.correlations else 0.0
    for t in names:
        varied = _Variants.of(table, t, sampled)
        arranged.append(_arranged(plain, varied, table.transformations[t], config))
        trained.append(_trained(plain, varied, table.transformations[t], alpha, config))
    right_ATN, right_CTN = np.stack(arranged, axis=1), np.stack(trained, axis=1)
    train_N, test_N = sampled
    group_N = table.groups_of(test_N, config.resample_by)
    count = len(names)

    def of(score_TN: F32, *, bounds: Bounds = ACCURACY) -> Resampled:
        families = [table.families[t] for t in names]
        given, unit = (config.bootstrap, config.seed, group_N), config.resample_by
        return resample(score_TN, *given, bounds=bounds, families=families, unit=unit)

    of_arrangement = dict(zip(ARRANGEMENTS, right_ATN, strict=True))
    price_TN = of_arrangement["pos_same"] - of_arrangement["neg_same"]
    price, every = of(price_TN, bounds=DIFFERENCE), uniform_over(range(count), count)
    resampled = {name: of(score_TN) for name, score_TN in of_arrangement.items()}
    by_correlation = [of(score_TN) for score_TN in right_CTN]
    loss = of(right_CTN[0] - right_CTN[-1], bounds=DIFFERENCE) if config.correlations else None
    return {
        "price": price.two_way(every).entry(one_way=price.mean(every).ci95),
        **({"loss": loss.two_way(every).entry(one_way=loss.mean(every).ci95)} if loss else {}),
        "trained": [each.mean(every).number for each in by_correlation],
        "by_transformation": {
            table.transformations[t]: {
                **{name: each.one(i).number for name, each in resampled.items()},
                "price": price.one(i).entry(),
                **({"loss": loss.one(i).entry()} if loss else {}),
                "trained": [each.one(i).number for each in by_correlation],
            }
            for i, t in enumerate(names)
        },
        "images": len(test_N),
        "bank": len(train_N),
        "neighbours": NEIGHBOURS,
        **asdict(config),
    }


@dataclass(frozen=True)
class _Variants:
    """Sampled photographs in one transformation: embeddings of length 1, labels, and which are distinct variants."""

    train_BD: torch.Tensor
    test_QD: torch.Tensor
    label_B: torch.Tensor
    label_Q: torch.Tensor
    distinct_B: torch.Tensor
    distinct_Q: torch.Tensor

    @staticmethod
    def of(table: EmbeddingTable, t: int, sampled: tuple[I64, I64]) -> _Variants:
        units = [normalize(torch.from_numpy(table.take_finite(t, rows)), dim=1) for rows in sampled]
        labels = [torch.from_numpy(table.label_N[rows]) for rows in sampled]
        return _Variants(*units, *labels, *(torch.from_numpy(table.distinct_TN[t, rows]) for rows in sampled))


def _arranged(plain: _Variants, varied: _Variants, name: str, config: ShortcutConfig) -> F32:
    """Scores of each arrangement, mean over original and transformed queries. Shape: (A, N), NaN for no variant."""
    answer_AN = torch.full((len(ARRANGEMENTS), len(varied.label_Q)), torch.nan)
    bank, asked_Q = varied.distinct_B, torch.nonzero(varied.distinct_Q)[:, 0]
    label_B, random_RB = varied.label_B[bank], _random(name, len(bank), config)[:, bank]
    for part in torch.split(asked_Q, QUERIES) if len(label_B) else ():
        label_Q, found = varied.label_Q[part], []
        own_QB = label_Q[:, None] == label_B[None]
        for query, other in ((plain, varied), (varied, plain)):
            like_QB, unlike_QB = (query.test_QD[part] @ each.train_BD[bank].T for each in (query, other))
            every = torch.ones_like(own_QB)
            likes = [every, ~every, own_QB, ~own_QB, *(random_RB if query is varied else ~random_RB)]
            votes = [voted(torch.where(like, like_QB, unlike_QB), label_B, NEIGHBOURS) for like in likes]
            right_LQ = (torch.stack(votes) == label_Q).float()
            split = len(ARRANGEMENTS) - 1  # the last is a mean over draws
            found.append(torch.cat([right_LQ[:split], right_LQ[split:].mean(dim=0, keepdim=True)]))
        answer_AN[:, part] = torch.stack(found).mean(dim=0)
    return np.asarray(answer_AN.numpy(), np.float32)


def voted(similarity_QB: torch.Tensor, label_B: torch.Tensor, count: int) -> torch.Tensor:
    """The most frequent label of the nearest photographs, the smallest of several. Shape: (Q,)."""
    near_QK = similarity_QB.topk(min(count, len(label_B)), dim=1).indices
    return torch.mode(label_B[near_QK], dim=1).values


def _random(name: str, count: int, config: ShortcutConfig) -> torch.Tensor:
    """Draws of the training photographs that are transformed. Shape: (R, B)."""
    rng = np.random.default_rng([config.seed, 0x756E69, *name.encode()])
    return torch.from_numpy(rng.random((DRAWS, count)) < 0.5)


def _penalty(plain: _Variants) -> float:
    """Penalty of ridge classifiers, the best in leave-one-out cross-validation on original training photographs."""
    from sklearn.linear_model import RidgeClassifierCV  # slow to import

    return float(RidgeClassifierCV(alphas=_PENALTIES).fit(plain.train_BD.numpy(), plain.label_B.numpy()).alpha_)


def _trained(plain: _Variants, varied: _Variants, name: str, alpha: float, config: ShortcutConfig) -> F32:
    """Scores of ridge classifiers at each correlation, mean over original and transformed test photographs.

    Each half of the classes is transformed more often in turn. Shape: (C, N), NaN for no variant.
    """
    from sklearn.linear_model import RidgeClassifier  # slow to import

    answer_CN = np.full((len(config.correlations), len(varied.label_Q)), np.nan, np.float32)
    bank, asked_Q = varied.distinct_B.numpy(), np.flatnonzero(varied.distinct_Q.numpy())
    label_B, label_Q = plain.label_B.numpy()[bank], plain.label_Q.numpy()[asked_Q]
    if len(np.unique(label_B)) < 2 or not len(asked_Q):
        return answer_CN
    plain_BD, varied_BD = (each.train_BD.numpy()[bank] for each in (plain, varied))
    test_SQD = [each.test_QD.numpy()[asked_Q] for each in (plain, varied)]
    rng = np.random.default_rng([config.seed, 0x636F7272, *name.encode()])
    draw_B, order = rng.random(len(bank))[bank], rng.permutation(np.unique(label_B))
    more_B = np.isin(label_B, order[: len(order) // 2])
    for c, correlation in enumerate(config.correlations):
        scores = []
        for half_B in (more_B, ~more_B):
            often_B = draw_B < (1 + np.where(half_B, correlation, -correlation)) / 2
            x_BD = np.where(often_B[:, None], varied_BD, plain_BD)
            probe = RidgeClassifier(alpha=alpha, solver="cholesky").fit(x_BD, label_B)
            scores += [probe.predict(test_QD) == label_Q for test_QD in test_SQD]
        answer_CN[c, asked_Q] = np.mean(scores, axis=0)
    return answer_CN

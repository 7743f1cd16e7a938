"""Class accuracy by value of a label: probes within and across values, and the price of a shortcut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.outcomes import ProbeOutcome
from substyle.engine.probes.resampling import DIFFERENCE, resample
from substyle.engine.probes.run import run_probes
from substyle.engine.probes.tasks import images_of
from substyle.engine.stages.labels.config import LabelsConfig
from substyle.engine.stages.shortcut import DRAWS, MOST, NEIGHBOURS, QUERIES, voted
from substyle.engine.stages.shortcut.section import ARRANGEMENTS
from substyle.engine.stages.stage import JSON
from substyle.engine.store.layout import TEST, TRAIN, UNLABELLED, ResampleBy
from substyle.engine.store.table import EmbeddingTable
from substyle.errors import SubstyleError
from substyle.kernels.philox import image_keys

I64 = NDArray[np.int64]
_VALUES = 1000  # different values of a class at most


def probed(plain: EmbeddingTable, code_N: I64, names: tuple[str, ...], probes: ProbeConfig) -> ProbeOutcome | None:
    """Probes of labels; None for fewer than two in training, too many, or none to validate or test on."""
    train_N, val_N, _ = splits_of(plain, code_N >= 0, probes.seed)
    trained = np.unique(code_N[train_N])
    if len(trained) < 2 or len(names) > _VALUES or not np.isin(code_N[val_N], trained).any():
        return None
    return run_probes(replace(plain, label_N=code_N, class_names=names), probes, out_dir=None, quiet=True)


def splits_of(table: EmbeddingTable, used_N: NDArray[np.bool_], seed: int) -> tuple[I64, I64, I64]:
    """Photographs to train, validate and test on; none if a split is empty, as where groups stay together."""
    try:
        return images_of(table, used_N, seed)
    except SubstyleError:
        return (np.zeros(0, np.int64),) * 3


def across_values(
    plain: EmbeddingTable, code_N: I64, names: tuple[str, ...], config: LabelsConfig, probes: ProbeConfig
) -> JSON | None:
    """Class accuracy by value of a label, of probes trained with this value and without it.

    The others leave out as many photographs at random. Test photographs of classes that no other value has are not
    scored: nothing could name them.
    """
    probes = replace(probes, heads=("linear",), resamples=0)
    train, test_N = plain.split_N != TEST, plain.rows(TEST)
    labelled = (code_N >= 0) & (plain.label_N >= 0)
    counts = np.bincount(code_N[labelled & train], minlength=len(names))
    order = [v for v in np.argsort(-counts, kind="stable").tolist() if counts[v]][: config.max_values]
    score_KN = np.full((2, len(test_N)), np.nan, np.float32)  # with the value, without it
    converged = True
    by_value: dict[str, JSON] = {}
    for v in order:
        own = labelled & (code_N == v)
        others = np.unique(plain.label_N[labelled & ~own & (plain.split_N == TRAIN)])
        asked = own & ~train & np.isin(plain.label_N, others)
        if len(others) < 2 or not asked.any():
            continue
        rng = np.random.default_rng([config.seed, 0x6C61626C, v])
        dropped = np.zeros(len(own), np.bool_)
        for split in np.unique(plain.split_N[train]).tolist():
            rows = np.flatnonzero(labelled & (plain.split_N == split))
            dropped[rng.choice(rows, int((own & (plain.split_N == split)).sum()), replace=False)] = True
        for k, left_out in enumerate((dropped, own & train)):
            label_N = np.where((labelled & train & ~left_out) | asked, plain.label_N, UNLABELLED)
            outcome = probed(plain, label_N, plain.class_names, probes)
            if outcome is not None:
                row_N = outcome.scores["class/linear"][0]
                score_KN[k] = np.where(np.isfinite(row_N), row_N, score_KN[k])
                converged &= outcome.results["class"]["linear"]["converged"]
        place = asked[test_N]
        if np.isfinite(score_KN[:, place]).all():
            among, across = (float(row[place].mean()) for row in score_KN)
            by_value[names[v]] = {"within": among, "across": across, "images": int(place.sum())}
        else:
            score_KN[:, place] = np.nan
    if not by_value:
        return None
    given = config.bootstrap, config.seed, plain.groups_of(test_N, probes.resample_by)
    unit = plain.unit_of(probes.resample_by)
    both = resample(score_KN, *given, unit=unit)
    drop = resample((score_KN[0] - score_KN[1])[None], *given, bounds=DIFFERENCE, unit=unit).one(0)
    mean, worst = both.one(0), min(by_value, key=lambda name: float(by_value[name]["within"]))
    return {
        "within": mean.entry(),
        "across": both.one(1).entry(),
        "drop": drop.entry(),
        "worst": worst,
        "gap": mean.value - float(by_value[worst]["within"]),
        "by_value": by_value,
        "images": int(np.isfinite(score_KN[0]).sum()),
        "converged": converged,
    }


def price_of_shortcut(
    plain: EmbeddingTable, code_N: I64, names: tuple[str, ...], config: LabelsConfig, by: ResampleBy
) -> JSON | None:
    """Class accuracy of nearest neighbours in each arrangement of a label's values, see `ARRANGEMENTS`.

    In all of them each class has as many training photographs, drawn at random. Queries of classes that have training
    photographs on one side alone are not scored.
    """
    train_N, test_N = (plain.rows(split) for split in (TRAIN, TEST))
    known_N = (code_N >= 0) & (plain.label_N >= 0)
    bank, asked = train_N[known_N[train_N]], np.flatnonzero(known_N[test_N])
    bank = bank[np.sort(np.argsort(image_keys(config.seed, [plain.keys[n] for n in bank]))[:MOST])]
    label_B, code_B = plain.label_N[bank], code_N[bank]
    unit_BD, unit_ND = (normalize(torch.from_numpy(plain.take_finite(0, rows)), dim=1) for rows in (bank, test_N))
    rng = np.random.default_rng([config.seed, 0x73686F72])
    rank_B = rng.permutation(len(bank))
    right_AN = np.full((len(ARRANGEMENTS), len(test_N)), np.nan, np.float32)
    for v in range(len(names)):
        same, kept = code_B == v, np.zeros(len(bank), np.bool_)
        for label in np.unique(label_B):
            sides = [np.flatnonzero((label_B == label) & side) for side in (same, ~same)]
            for rows in sides:
                kept[rows[np.argsort(rank_B[rows])[: min(map(len, sides))]]] = True
        queries = asked[code_N[test_N[asked]] == v]
        queries = queries[np.isin(plain.label_N[test_N[queries]], label_B[kept])]
        if len(np.unique(label_B[kept])) < 2:  # no other class could be named
            continue
        count = min(NEIGHBOURS, int((kept & same).sum()))
        same_B, label_of_B = (torch.from_numpy(own[kept]) for own in (same, label_B))
        mixed_RB = torch.from_numpy(_halves(label_B[kept], DRAWS, rng))
        for part in np.array_split(queries, max(1, -(-len(queries) // QUERIES))):
            label_Q = torch.from_numpy(plain.label_N[test_N[part]])
            own_QB = label_Q[:, None] == label_of_B[None]
            near_QB = unit_ND[part] @ unit_BD[kept].T
            # the training photographs with the query's value
            like_AQB = [torch.ones_like(own_QB), torch.zeros_like(own_QB), own_QB, ~own_QB]
            there = [[like_QB == same_B[None]] for like_QB in like_AQB] + [[mixed_B[None] for mixed_B in mixed_RB]]
            for a, draws in enumerate(there):
                votes = [voted(near_QB.masked_fill(~there_QB, -torch.inf), label_of_B, count) for there_QB in draws]
                right_AN[a, part] = np.mean([(vote_Q == label_Q).numpy() for vote_Q in votes], axis=0)
    if not np.isfinite(right_AN).any():
        return None
    given = config.bootstrap, config.seed, plain.groups_of(test_N, by)
    accuracy = resample(right_AN, *given)
    of_arrangement = dict(zip(ARRANGEMENTS, right_AN, strict=True))
    price_N = of_arrangement["pos_same"] - of_arrangement["neg_same"]
    price = resample(price_N[None], *given, bounds=DIFFERENCE, unit=plain.unit_of(by)).one(0)
    return {
        **{name: accuracy.one(a).number for a, name in enumerate(ARRANGEMENTS)},
        "price": price.entry(),
        "images": int(np.isfinite(right_AN[0]).sum()),
    }


def _halves(label_B: I64, draws: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Random halves of the photographs of each class. Shape: (R, B)."""
    chosen_RB = np.zeros((draws, len(label_B)), np.bool_)
    for label in np.unique(label_B):
        rows = np.flatnonzero(label_B == label)
        for chosen_B in chosen_RB:
            chosen_B[rng.permutation(rows)[: len(rows) // 2]] = True
    return chosen_RB

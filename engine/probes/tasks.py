"""What a probe is asked: which rows of a table it learns from, which it is scored on, and what the answers are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from substyle.engine.store.layout import TEST, TRAIN, VAL
from substyle.engine.table import EmbeddingTable
from substyle.kernels.errors import SubstyleError

I64 = NDArray[np.int64]
UNKNOWN = -1  # the answer is none of the labels: always scored as wrong


@dataclass(frozen=True)
class Task:
    """One question about a row (t, n): transformation t of image n.

    Attributes:
        name: fine, coarse or semantic.
        labels: names of the C possible answers.
        by_image: whether the answer is a property of the image (else of the transformation).
        answer: index into labels for each image, (N,), or transformation, (T,); -1 for none of them.
        train_T: transformations whose rows are learned from and validated on.
        score_T: transformations whose rows are scored.
        train_N, val_N, test_N: images, ascending; no image is in two of them.
        distinct_TN: rows that count; all others are neither learned from nor scored.
    """

    name: str
    labels: tuple[str, ...]
    by_image: bool
    answer: I64
    train_T: I64
    score_T: I64
    train_N: I64
    val_N: I64
    test_N: I64
    distinct_TN: NDArray[np.bool_]

    def answers(self, t_B: I64, n_B: I64) -> I64:
        """Answers of rows. Shape: (B,) int64."""
        return self.answer[n_B if self.by_image else t_B]

    def rows(self, transformations: I64, images: I64) -> tuple[I64, I64]:
        """All rows that count of some transformations and images: their t and their n, t-major."""
        t, n = np.nonzero(self.distinct_TN[np.ix_(transformations, images)])
        return transformations[t], images[n]

    def sample(self, images: I64, most: int, rng: np.random.Generator) -> tuple[I64, I64]:
        """Rows that count of the training transformations and some images: all, or a random ``most`` of them."""
        cells = len(self.train_T) * len(images)
        if cells > 4 * most:  # then random cells suffice, and listing all rows of a large table is not needed
            cell = np.sort(rng.choice(cells, 4 * most, replace=False))
            t, n = self.train_T[cell // len(images)], images[cell % len(images)]
            counts = self.distinct_TN[t, n]
            t, n = t[counts], n[counts]
        if cells <= 4 * most or len(t) < most:
            t, n = self.rows(self.train_T, images)
        if len(t) > most:
            pick = np.sort(rng.choice(len(t), most, replace=False))
            t, n = t[pick], n[pick]
        return t, n

    @property
    def chance(self) -> float:
        """Accuracy of a guess."""
        return 1.0 / len(self.labels)


def images_of(table: EmbeddingTable, eligible_N: NDArray[np.bool_], seed: int) -> tuple[I64, I64, I64]:
    """Train, validation and test images among the eligible ones.

    Where no validation image is eligible, a tenth of the training images (at least one) is set aside instead, drawn
    with ``seed``.

    Raises:
        SubstyleError: no test image, or too few training images to learn and validate.
    """
    train, val, test = (np.flatnonzero((table.split_N == s) & eligible_N) for s in (TRAIN, VAL, TEST))
    if len(val) == 0 and len(train) > 1:
        order = np.random.default_rng([seed, 0x76616C]).permutation(train)
        cut = max(1, len(train) // 10)
        val, train = np.sort(order[:cut]), np.sort(order[cut:])
    if len(train) == 0 or len(val) == 0 or len(test) == 0:
        raise SubstyleError(
            f"probes of {table.backbone} need at least one image to learn from, one to validate on and one to test on; "
            f"there are {len(train)}, {len(val)} and {len(test)}"
        )
    return train, val, test


def fine_task(table: EmbeddingTable, seed: int) -> Task | None:
    """Name the transformation, T ways; None for fewer than two transformations."""
    count = len(table.transformations)
    if count < 2:
        return None
    every = np.arange(count)
    split = images_of(table, np.ones(len(table.keys), bool), seed)
    trainable = _with_rows(table, every, split[0])
    return Task("fine", table.transformations, False, every, trainable, every, *split, table.distinct_TN)


def coarse_task(table: EmbeddingTable, seed: int, seen: Iterable[int] | None = None) -> Task | None:
    """Name the coarse class, learning from the transformations in ``seen`` (by default those of role train).

    None where fewer than two coarse classes can be learned. A transformation whose coarse class is not among those
    has no right answer and is not scored.
    """
    split = images_of(table, np.ones(len(table.keys), bool), seed)
    chosen = [t for t, role in enumerate(table.roles) if role == "train"] if seen is None else list(seen)
    train_T = _with_rows(table, np.array(sorted(chosen), np.int64), split[0])
    labels = tuple(dict.fromkeys(table.coarse[t] for t in train_T))
    if len(labels) < 2:
        return None
    answer = np.array([labels.index(c) if c in labels else UNKNOWN for c in table.coarse], np.int64)
    return Task("coarse", labels, False, answer, train_T, np.flatnonzero(answer >= 0), *split, table.distinct_TN)


def semantic_task(table: EmbeddingTable, seed: int) -> Task | None:
    """Name the image's class, learning from identity rows; None for fewer than two classes to learn from.

    Labels are the classes with a training image. Test images of another class count as wrong; unlabelled ones are
    left out. An indistinct variant obfuscates nothing, so it is not scored either.
    """
    labelled = table.label_N >= 0
    if len(np.unique(table.label_N[labelled & (table.split_N == TRAIN)])) < 2:
        return None
    if not (labelled & (table.split_N == TEST)).any():
        return None
    split = images_of(table, labelled, seed)
    present = np.unique(table.label_N[split[0]])
    if len(present) < 2:
        return None
    answer = np.full(len(table.keys), UNKNOWN, np.int64)
    for index, label in enumerate(present):
        answer[table.label_N == label] = index
    labels = tuple(table.class_names[label] for label in present)
    every = np.arange(len(table.transformations))
    return Task("semantic", labels, True, answer, np.array([identity(table)]), every, *split, table.distinct_TN)


def identity(table: EmbeddingTable) -> int:
    """Index of the transformation that changes nothing. Raises SubstyleError where there is none."""
    if "identity" not in table.transformations:
        raise SubstyleError(f"the embeddings of {table.backbone} have no identity variant, which probes need")
    return table.transformations.index("identity")


def _with_rows(table: EmbeddingTable, transformations: I64, images: I64) -> I64:
    return transformations[table.distinct_TN[np.ix_(transformations, images)].any(axis=1)]

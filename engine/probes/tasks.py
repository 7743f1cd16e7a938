"""Probing tasks: training rows, scored rows and answers; sampling of rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from substyle.engine.store.layout import TEST, TRAIN, VAL
from substyle.engine.store.table import EmbeddingTable
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


# The order in which rows are learned: endless streams of batches (t, n), each a pure function of its seed.


class Stream(Protocol):
    """An endless source of rows."""

    def batch(self, count: int) -> tuple[I64, I64]:
        """The next rows: transformation t and image n of each. Shapes: (count,), (count,)."""
        ...


class VariantStream:
    """Goes through the training images in random order; of each drawn image, a random one of its variants.

    Every variant of the image that may be learned from is equally likely.
    """

    def __init__(self, task: Task, rng: np.random.Generator) -> None:
        may_TN = task.distinct_TN[np.ix_(task.train_T, task.train_N)]
        self.images = _Shuffled(np.flatnonzero(may_TN.any(axis=0)), rng)
        self.task, self.rng, self.may_TN = task, rng, may_TN

    def batch(self, count: int) -> tuple[I64, I64]:
        n = self.images.take(count)
        t = self.rng.integers(len(self.task.train_T), size=count)
        wrong = np.flatnonzero(~self.may_TN[t, n])
        while len(wrong):  # each image has a variant, so every round gets some right
            t[wrong] = self.rng.integers(len(self.task.train_T), size=len(wrong))
            wrong = wrong[~self.may_TN[t[wrong], n[wrong]]]
        return self.task.train_T[t], self.task.train_N[n]


class BalancedStream:
    """Draws a class, then one of its transformations, then an image, each uniformly: every class is as frequent."""

    def __init__(self, task: Task, rng: np.random.Generator) -> None:
        if task.by_image:
            raise ValueError("a balanced stream draws classes of transformations")
        members = [task.train_T[task.answer[task.train_T] == c] for c in range(len(task.labels))]
        images = [task.train_N[task.distinct_TN[t, task.train_N]] for t in np.concatenate(members)]
        self.members, self.images, self.rng = _Ragged(members), _Ragged(images), rng

    def batch(self, count: int) -> tuple[I64, I64]:
        c = self.rng.integers(len(self.members.size), size=count)
        place, t = self.members.draw(c, self.rng)
        _, n = self.images.draw(place, self.rng)
        return t, n


class _Ragged:
    """Lists of different length, laid end to end."""

    def __init__(self, lists: Sequence[I64]) -> None:
        self.size = np.array([len(items) for items in lists])
        self.start = np.cumsum(self.size) - self.size
        self.flat = np.concatenate(lists)

    def draw(self, which: I64, rng: np.random.Generator) -> tuple[I64, I64]:
        """A uniform member of each of the lists named: its place in the concatenation, and itself."""
        place = self.start[which] + rng.integers(self.size[which])
        return place, self.flat[place]


class CrossStream:
    """Goes through every row, image by variant, in random order: each exactly once before any comes again."""

    def __init__(self, task: Task, rng: np.random.Generator) -> None:
        self.t, self.n = task.rows(task.train_T, task.train_N)
        self.order = _Shuffled(np.arange(len(self.t)), rng)

    def batch(self, count: int) -> tuple[I64, I64]:
        rows = self.order.take(count)
        return self.t[rows], self.n[rows]


class _Shuffled:
    """Items in random order, epoch after epoch."""

    def __init__(self, items: I64, rng: np.random.Generator) -> None:
        self.items, self.rng = items, rng
        self.left = items[:0]

    def take(self, count: int) -> I64:
        taken = [self.left[:count]]
        self.left, missing = self.left[count:], count - len(taken[0])
        while missing > 0:
            order = self.rng.permutation(self.items)
            taken.append(order[:missing])
            self.left, missing = order[missing:], missing - len(taken[-1])
        return np.concatenate(taken)


def stream_of(task: Task, sampling: str, seed: int) -> Stream:
    """The stream of a task: balanced for coarse classes, by image otherwise, or the full cross product."""
    rng = np.random.Generator(np.random.PCG64([seed, *task.name.encode()]))
    if sampling == "cross":
        return CrossStream(task, rng)
    return BalancedStream(task, rng) if task.name == "coarse" else VariantStream(task, rng)

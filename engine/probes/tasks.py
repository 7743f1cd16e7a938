"""Probing tasks: training rows, scored rows, targets, and sampling of rows."""

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
UNKNOWN = -1  # the target is none of the labels; always scored as wrong


@dataclass(frozen=True)
class Task:
    """A classification task on rows (t, n): transformation t of image n.

    Attributes:
        name: fine, coarse or semantic.
        labels: names of the C classes.
        by_image: whether the target is a property of the image, else of the transformation.
        answer: target of each image, (N,), or transformation, (T,), as an index into labels; -1 for none.
        train_T: transformations for training and validation.
        score_T: transformations to score.
        train_N, val_N, test_N: disjoint images, ascending.
        distinct_TN: valid rows; all others are neither trained on nor scored.
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
        """Targets of rows. Shape: (B,) int64."""
        return self.answer[n_B if self.by_image else t_B]

    def rows(self, transformations: I64, images: I64) -> tuple[I64, I64]:
        """Valid rows (t, n) of the given transformations and images, t-major."""
        t, n = np.nonzero(self.distinct_TN[np.ix_(transformations, images)])
        return transformations[t], images[n]

    def sample(self, images: I64, most: int, rng: np.random.Generator) -> tuple[I64, I64]:
        """Valid rows of the training transformations and the given images: all, or a random sample of ``most``."""
        cells = len(self.train_T) * len(images)
        if cells > 4 * most:  # sample cells first, to avoid listing all rows of a large table
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
        """Chance accuracy."""
        return 1.0 / len(self.labels)


def images_of(table: EmbeddingTable, eligible_N: NDArray[np.bool_], seed: int) -> tuple[I64, I64, I64]:
    """Train, validation and test images among the eligible ones.

    Without eligible validation images, a random tenth of the training images (at least one) is used.

    Raises:
        SubstyleError: a split is empty.
    """
    train, val, test = (np.flatnonzero((table.split_N == s) & eligible_N) for s in (TRAIN, VAL, TEST))
    if len(val) == 0 and len(train) > 1:
        order = np.random.default_rng([seed, 0x76616C]).permutation(train)
        cut = max(1, len(train) // 10)
        val, train = np.sort(order[:cut]), np.sort(order[cut:])
    if len(train) == 0 or len(val) == 0 or len(test) == 0:
        raise SubstyleError(
            f"probes of {table.backbone} need train, validation and test images; got {len(train)}, {len(val)} and "
            f"{len(test)}"
        )
    return train, val, test


def fine_task(table: EmbeddingTable, seed: int) -> Task | None:
    """Task to predict the transformation (T classes); None for fewer than two transformations."""
    count = len(table.transformations)
    if count < 2:
        return None
    every = np.arange(count)
    split = images_of(table, np.ones(len(table.keys), bool), seed)
    trainable = _with_rows(table, every, split[0])
    return Task("fine", table.transformations, False, every, trainable, every, *split, table.distinct_TN)


def coarse_task(table: EmbeddingTable, seed: int, seen: Iterable[int] | None = None) -> Task | None:
    """Task to predict the coarse class, trained on the transformations ``seen`` (default: role train).

    None for fewer than two coarse classes. Transformations of other coarse classes are not scored.
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
    """Task to predict the image's class, trained on identity rows; None for fewer than two classes.

    Labels are the classes with training images. Test images of other classes count as wrong. Unlabelled images and
    variants indistinct from identity are not scored.
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
    """Index of the identity transformation. Raises SubstyleError if there is none."""
    if "identity" not in table.transformations:
        raise SubstyleError(f"embeddings of {table.backbone} have no identity variant, which probes require")
    return table.transformations.index("identity")


def _with_rows(table: EmbeddingTable, transformations: I64, images: I64) -> I64:
    return transformations[table.distinct_TN[np.ix_(transformations, images)].any(axis=1)]


class Stream(Protocol):
    """An infinite stream of training rows, determined by its seed."""

    def batch(self, count: int) -> tuple[I64, I64]:
        """Return the next rows: transformation t and image n. Shapes: (count,), (count,)."""
        ...


class VariantStream:
    """Iterates over training images in random order, with a uniformly random valid variant of each."""

    def __init__(self, task: Task, rng: np.random.Generator) -> None:
        may_TN = task.distinct_TN[np.ix_(task.train_T, task.train_N)]
        self.images = _Shuffled(np.flatnonzero(may_TN.any(axis=0)), rng)
        self.task, self.rng, self.may_TN = task, rng, may_TN

    def batch(self, count: int) -> tuple[I64, I64]:
        n = self.images.take(count)
        t = self.rng.integers(len(self.task.train_T), size=count)
        wrong = np.flatnonzero(~self.may_TN[t, n])
        while len(wrong):  # terminates: each image has a valid variant
            t[wrong] = self.rng.integers(len(self.task.train_T), size=len(wrong))
            wrong = wrong[~self.may_TN[t[wrong], n[wrong]]]
        return self.task.train_T[t], self.task.train_N[n]


class BalancedStream:
    """Draws a class, then one of its transformations, then an image, each uniformly."""

    def __init__(self, task: Task, rng: np.random.Generator) -> None:
        if task.by_image:
            raise ValueError("balanced streams require a task on transformations")
        members = [task.train_T[task.answer[task.train_T] == c] for c in range(len(task.labels))]
        images = [task.train_N[task.distinct_TN[t, task.train_N]] for t in np.concatenate(members)]
        self.members, self.images, self.rng = _Ragged(members), _Ragged(images), rng

    def batch(self, count: int) -> tuple[I64, I64]:
        c = self.rng.integers(len(self.members.size), size=count)
        place, t = self.members.draw(c, self.rng)
        _, n = self.images.draw(place, self.rng)
        return t, n


class _Ragged:
    """Concatenated lists of different lengths."""

    def __init__(self, lists: Sequence[I64]) -> None:
        self.size = np.array([len(items) for items in lists])
        self.start = np.cumsum(self.size) - self.size
        self.flat = np.concatenate(lists)

    def draw(self, which: I64, rng: np.random.Generator) -> tuple[I64, I64]:
        """Draw a uniform member of each given list. Returns its position in the concatenation and its value."""
        place = self.start[which] + rng.integers(self.size[which])
        return place, self.flat[place]


class CrossStream:
    """Iterates over all rows in random order, each exactly once per epoch."""

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
    """Create the stream of a task: balanced for coarse tasks, else by image; or the full cross product."""
    rng = np.random.Generator(np.random.PCG64([seed, *task.name.encode()]))
    if sampling == "cross":
        return CrossStream(task, rng)
    return BalancedStream(task, rng) if task.name == "coarse" else VariantStream(task, rng)

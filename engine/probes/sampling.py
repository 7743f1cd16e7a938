"""The order in which rows are learned: endless streams of batches (t, n), each a pure function of its seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from substyle.engine.probes.tasks import I64, Task


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

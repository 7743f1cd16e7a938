"""Probing tasks: training rows, scored rows, targets, and sampling of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.store.layout import TEST, TRAIN, VAL
from substyle.engine.store.table import EmbeddingTable
from substyle.errors import SubstyleError
from substyle.kernels.dispatch import CPU
from substyle.kernels.philox import name_word, philox_4x32_torch
from substyle.kernels.shuffle import Shuffle

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Advance = Callable[[int], None]  # progress callback, receives the number of steps of optimisers or passes over rows
_Array = TypeVar("_Array", I64, torch.Tensor)
# names of the random streams of tasks, by which their rows are drawn
_STREAMS = {"transformation": "fine", "kind": "coarse", "class": "semantic"}
UNKNOWN = -1  # the target is none of the labels; always scored as wrong


@dataclass(frozen=True)
class Task:
    """A classification task on rows (t, n): transformation t of image n.

    Attributes:
        name: transformation, kind or class.
        labels: names of the C classes.
        by_image: whether the target is a property of the image, else of the transformation.
        answer: target of each image, (N,), transformation, (T,), or row, (T, N), as an index into labels; -1 for none.
        train_T: transformations for training and validation.
        score_T: transformations to score.
        train_N, val_N, test_N: disjoint images, ascending.
        distinct_TN: valid rows; all others are neither trained on nor scored.
        first_N: first near-duplicate of each image, itself if there is none.
        first: first output of a head for this task; not 0 if another task comes before it.
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
    first_N: I64
    first: int = 0

    @property
    def outputs(self) -> slice:
        """Outputs of a head for this task."""
        return slice(self.first, self.first + len(self.labels))

    def answers(self, t_B: I64, n_B: I64) -> I64:
        """Targets of rows. Shape: (B,) int64."""
        return self.targets(self.answer, t_B, n_B)

    def targets(self, answer: _Array, t_B: _Array, n_B: _Array) -> _Array:
        """Targets of rows from a copy of ``answer`` on any device."""
        return answer[t_B, n_B] if answer.ndim == 2 else answer[n_B if self.by_image else t_B]

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
        """Accuracy of guessing: of the most frequent label where labels are not balanced.

        Kinds are balanced in training and in scores.
        """
        if self.name == "kind":
            return 1.0 / len(self.labels)
        scored = self.answers(np.repeat(self.score_T, len(self.test_N)), np.tile(self.test_N, len(self.score_T)))
        return float(np.bincount(scored[scored != UNKNOWN], minlength=1).max() / len(scored))


def images_of(table: EmbeddingTable, eligible_N: NDArray[np.bool_], seed: int) -> tuple[I64, I64, I64]:
    """Train, validation and test images among the eligible ones.

    Without eligible validation images, a random tenth of the training images (at least one) is used. Near-duplicates
    stay together.

    Raises:
        SubstyleError: a split is empty.
    """
    train, val, test = (np.flatnonzero((table.split_N == s) & eligible_N) for s in (TRAIN, VAL, TEST))
    if len(val) == 0 and len(train) > 1:
        _, place, count_G = np.unique(table.groups("photograph")[train], return_inverse=True, return_counts=True)
        left, drawn = max(1, len(train) // 10), []
        for group in np.random.default_rng([seed, 0x76616C]).permutation(len(count_G)).tolist():
            if not left:
                break
            if count_G[group] <= left:
                drawn.append(group)
                left -= int(count_G[group])
        taken = np.isin(place, drawn or [int(count_G.argmin())])
        val, train = train[taken], train[~taken]
    if len(train) == 0 or len(val) == 0 or len(test) == 0:
        images, groups = int(eligible_N.sum()), len(np.unique(table.groups("photograph")[eligible_N]))
        alike = f"; near-duplicates share a split, and {groups} of {images} images differ"
        raise SubstyleError(
            f"probes of {table.backbone} need train, validation and test images; got {len(train)}, {len(val)} and "
            f"{len(test)}" + alike * (groups < images)
        )
    return train, val, test


def transformation_task(table: EmbeddingTable, seed: int) -> Task | None:
    """Task to predict the transformation; None for fewer than two.

    Severities of a transformation are one class, so that accuracies at each severity are comparable.
    """
    labels = tuple(dict.fromkeys(table.families))
    if len(labels) < 2:
        return None
    every = np.arange(len(table.transformations))
    answer = np.array([labels.index(family) for family in table.families], np.int64)
    split = images_of(table, np.ones(len(table.keys), bool), seed)
    trainable = _with_rows(table, every, split[0])
    return Task("transformation", labels, False, answer, trainable, every, *split, *_rows_of(table))


def kind_task(table: EmbeddingTable, seed: int, seen: Iterable[int] | None = None) -> Task | None:
    """Task to predict the kind, trained on the transformations ``seen`` (default: role train).

    None for fewer than two kinds. Transformations of other kinds are not scored.
    """
    split = images_of(table, np.ones(len(table.keys), bool), seed)
    chosen = [t for t, role in enumerate(table.roles) if role == "train"] if seen is None else list(seen)
    train_T = _with_rows(table, np.array(sorted(chosen), np.int64), split[0])
    labels = tuple(dict.fromkeys(table.kind[t] for t in train_T))
    if len(labels) < 2:
        return None
    answer = np.array([labels.index(c) if c in labels else UNKNOWN for c in table.kind], np.int64)
    return Task("kind", labels, False, answer, train_T, np.flatnonzero(answer >= 0), *split, *_rows_of(table))


def class_task(table: EmbeddingTable, seed: int) -> Task | None:
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
    return Task("class", labels, True, answer, np.array([identity(table)]), every, *split, *_rows_of(table))


def identity(table: EmbeddingTable) -> int:
    """Index of the identity transformation. Raises SubstyleError if there is none."""
    if "identity" not in table.transformations:
        raise SubstyleError(f"embeddings of {table.backbone} have no identity variant, which probes require")
    return table.transformations.index("identity")


def _rows_of(table: EmbeddingTable) -> tuple[NDArray[np.bool_], I64]:
    """Valid rows, and the first near-duplicate of each image."""
    return table.distinct_TN, table.groups("photograph")


def _with_rows(table: EmbeddingTable, transformations: I64, images: I64) -> I64:
    return transformations[table.distinct_TN[np.ix_(transformations, images)].any(axis=1)]


# A stream is an endless sequence of training rows. The row at a position depends only on seed, task and position; it is
# the same on every device, so any steps can be drawn alone and in any order.


class ImageStream:
    """Training images in random order, with a uniformly random valid variant of each.

    Each image comes exactly once per epoch.

    Attributes:
        answer: ``task.answer`` on the device.
    """

    def __init__(self, task: Task, seed: int, device: torch.device) -> None:
        may_NT = task.distinct_TN[np.ix_(task.train_T, task.train_N)].T
        some = may_NT.any(axis=1)
        self.images = _on(task.train_N[some], device)
        self.variants = _Lists(may_NT[some], task.train_T.astype(np.int16), device)
        self.order = Shuffle(len(self.images), seed, f"order:{_STREAMS[task.name]}")
        self.words = partial(_words, seed, f"rows:{_STREAMS[task.name]}", device)
        self.answer = _on(task.answer, device)

    def rows(self, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows at positions first … first + count - 1. Shapes: (count,), (count,)."""
        item = self.order(torch.arange(first, first + count, device=self.images.device))
        (word,) = self.words(first, 1, count)
        return self.variants.at(self.variants.place(item, word)), self.images[item]


class BalancedStream:
    """Draws a class, then one of its transformations, then an image, each uniformly."""

    def __init__(self, task: Task, seed: int, device: torch.device) -> None:
        if task.by_image:
            raise ValueError("balanced streams require a task on transformations")
        may_TN = task.distinct_TN[np.ix_(task.train_T, task.train_N)]
        some = may_TN.any(axis=1)
        own = task.train_T[some]
        self.transformations = _on(own, device)
        classes = np.unique(task.answer[own])
        self.members = _Lists(task.answer[own] == classes[:, None], np.arange(len(own), dtype=np.int16), device)
        self.images = _Lists(may_TN[some], task.train_N.astype(np.int32), device)
        self.words = partial(_words, seed, f"rows:{_STREAMS[task.name]}", device)
        self.answer, self.classes = _on(task.answer, device), len(classes)

    def rows(self, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows at positions first … first + count - 1. Shapes: (count,), (count,)."""
        of_class, of_member, of_image = self.words(first, 3, count)
        member = self.members.at(self.members.place(_below(self.classes, of_class), of_member))
        return self.transformations[member], self.images.at(self.images.place(member, of_image))


class _Lists:
    """Concatenated lists of different lengths: for each row of a mask the values of its true columns."""

    def __init__(self, mask_LV: NDArray[np.bool_], value_V: NDArray[np.integer[Any]], device: torch.device) -> None:
        self.flat = _on(np.broadcast_to(value_V, mask_LV.shape)[mask_LV], device)
        self.start = _on(np.concatenate([[0], mask_LV.sum(axis=1).cumsum()]), device)

    def place(self, list_B: torch.Tensor, word_B: torch.Tensor) -> torch.Tensor:
        """Places of uniform members of lists in the concatenation."""
        start_B = self.start[list_B]
        return start_B + _below(self.start[list_B + 1] - start_B, word_B)

    def at(self, place_B: torch.Tensor) -> torch.Tensor:
        """Values at places, int64."""
        return self.flat[place_B].long()


def _below(count: torch.Tensor | int, word_B: torch.Tensor) -> torch.Tensor:
    """Random numbers in [0, count) from 32-bit words; probabilities are equal within count / 2**32 of each."""
    return count * word_B >> 32


def _words(seed: int, name: str, device: torch.device, first: int, each: int, count: int) -> torch.Tensor:
    """Words of rows first … first + count - 1: those of `philox.words` from ``each * first``. Shape: (each, count)."""
    start, stop, name64 = first * each, (first + count) * each, name_word(name)
    block = torch.arange(start // 4, -(-stop // 4), device=device)
    counter = block & 0xFFFFFFFF, block >> 32, name64 & 0xFFFFFFFF, name64 >> 32
    lanes = philox_4x32_torch(counter, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))
    return torch.stack(lanes, 1).flatten()[start % 4 :][: stop - start].view(count, each).T


def _on(values: NDArray[Any], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)


Stream = ImageStream | BalancedStream


def stream_of(task: Task, seed: int, device: torch.device = CPU) -> Stream:
    """Create the stream of a task: balanced for kind tasks, else by image."""
    return BalancedStream(task, seed, device) if task.name == "kind" else ImageStream(task, seed, device)

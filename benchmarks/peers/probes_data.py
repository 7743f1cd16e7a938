"""Data for all contenders of the probe benchmark: synthetic embeddings with the structure of real ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch

from substyle.engine.probes.batches import Features
from substyle.engine.probes.dataset import Standardizer, standard_of
from substyle.engine.probes.tasks import Task, stream_of, transformation_task
from substyle.engine.probes.trainer import learning_rate
from substyle.engine.store.table import EmbeddingTable

VARIANTS, IMAGES, WIDTH = 31, 1600, 1280
BATCH = 1024
VALIDATION = 2048  # rows, as our trainer samples them


@dataclass(frozen=True)
class Problem:
    """Rows and batches shared by all contenders; peers receive standardised float32 rows at no cost.

    Attributes:
        table: the embeddings.
        task: name the variant, 31 ways.
        standard: statistics of the training rows.
        x_RD: all rows, standardised, float32.
        y_R: class of each row.
        batches: row indices of each step's batch.
        val_R, test_R: row indices for validation and test.
    """

    table: EmbeddingTable
    task: Task
    standard: Standardizer
    x_RD: torch.Tensor
    y_R: torch.Tensor
    batches: list[torch.Tensor]
    val_R: torch.Tensor
    test_R: torch.Tensor

    def fewer(self, images: int) -> Problem:
        """Return the problem with only the first ``images`` training images, and unchanged standardisation."""
        return replace(self, task=replace(self.task, train_N=self.task.train_N[:images]))

    def rate(self, done: int) -> float:
        """Return the learning rate of step ``done`` as a fraction of the peak."""
        return learning_rate(done, len(self.batches))


@cache
def table() -> EmbeddingTable:
    """Return 49,600 embeddings of width 1,280: 1,600 photographs of ten classes, each in 31 variants.

    A photograph is its class vector plus a random mix of 40 directions. A variant shifts it along the variant's own
    direction, by a random strength, and adds noise. A linear head names about four variants in five correctly, as with
    real embeddings.
    """
    rng = np.random.default_rng(0)
    label = np.arange(IMAGES) % 10
    content = rng.normal(size=(10, WIDTH))[label] + rng.normal(size=(IMAGES, 40)) @ rng.normal(size=(40, WIDTH)) / 4
    style = rng.normal(size=(VARIANTS, WIDTH)) * 2.5 / WIDTH**0.5
    x = np.empty((VARIANTS, IMAGES, WIDTH), np.float16)
    for t in range(VARIANTS):
        strength = rng.uniform(0.6, 1.4, (IMAGES, 1))
        x[t] = content + strength * style[t] + rng.normal(size=(IMAGES, WIDTH), scale=0.7)
    split = np.repeat(np.array([0, 1, 2], np.int8), np.array([13, 3, 4]) * IMAGES // 20)[rng.permutation(IMAGES)]
    names = ("identity", *(f"t{t:02d}" for t in range(1, VARIANTS)))
    return EmbeddingTable(
        "synthetic", x, names, names, ("train",) * VARIANTS, tuple(f"{i}.jpg" for i in range(IMAGES)),
        label.astype(np.int64), tuple("0123456789"), split, np.ones((VARIANTS, IMAGES), bool),
    )  # fmt: skip


def problem(steps: int, seed: int = 0) -> Problem:
    """Return the transformation task on the table, with the batches our trainer draws for ``seed``."""
    made = table()
    task = transformation_task(made, seed)
    assert task is not None
    standard = standard_of(made, task, seed)
    features = Features(made, standard, torch.device("cpu"), torch.float32)
    t, n = np.divmod(np.arange(VARIANTS * IMAGES), IMAGES)
    stream = stream_of(task, seed)
    of_rows, image = stream.rows(0, steps * BATCH)
    batches = list((of_rows * IMAGES + image).split(BATCH))
    validation = task.sample(task.val_N, VALIDATION, np.random.default_rng([seed, 0x726F7773]))
    test = task.rows(task.train_T, task.test_N)
    val_R, test_R = (torch.from_numpy(t * IMAGES + n) for t, n in (validation, test))
    return Problem(made, task, standard, features(t, n), torch.from_numpy(t), batches, val_R, test_R)


def settings(count: int) -> list[tuple[float, float]]:
    """Return a grid of (peak learning rate, weight decay); ``count`` is a multiple of 4."""
    rates = np.geomspace(3e-4, 1e-2, count // 4)
    return [(float(lr), decay) for lr in rates for decay in (0.0, 1e-2, 1e-1, 1.0)]


@dataclass(frozen=True)
class Outcome:
    """Result of a contender.

    Attributes:
        validation: validation accuracy of each head.
        seconds: training time of all heads, validation included, test excluded.
        score: computes the test accuracy of a head.
    """

    validation: list[float]
    seconds: float
    score: Callable[[int], float]

    @property
    def picked(self) -> float:
        """Test accuracy of the head with the best validation accuracy."""
        return self.score(int(np.argmax(self.validation)))


def head(hidden: int) -> torch.nn.Module:
    """Build a head with a hidden layer and dropout in plain torch."""
    layers = torch.nn.Linear(WIDTH, hidden), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(hidden, VARIANTS)
    return torch.nn.Sequential(*layers)


def accuracy(module: torch.nn.Module, problem: Problem, rows: torch.Tensor) -> float:
    module.eval()
    with torch.no_grad():
        return float((module(problem.x_RD[rows]).argmax(1) == problem.y_R[rows]).double().mean())

"""What the loop is ahead with: every embedding goes to its row, shards are written whole, and errors reach the loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.at_once import AtOnce

from substyle.engine.backbones.compile import CompiledBackbone
from substyle.engine.backbones.gate import GateError
from substyle.engine.backbones.spec import BackboneSpec
from substyle.engine.embedding.plan import ShardTask
from substyle.engine.embedding.scheduler import Batch, Scheduler, ShardInProgress

B, D = 4, 2
Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def first_value(canvas_BSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.repeat(canvas_BSSC[:, 0, 0, :1], D, axis=1).astype(np.float32)


def backbone(embed: Embed, name: str = "control:x") -> CompiledBackbone:
    zero = (0.0, 0.0, 0.0)
    spec = BackboneSpec(name, "none", D, 1, zero, zero, "none", "none", "none")
    return CompiledBackbone(spec, AtOnce(embed), {"name": "none", "precision": "fp32"}, None, 1.0)


def shard(number: int, names: list[str], backbones: int = 1, batches: int = 1) -> ShardInProgress:
    rows = batches * B
    keys = [f"{row}.jpg" for row in range(rows)]
    lacking, is_test = [names] * backbones, np.zeros(rows, np.bool_)
    return ShardInProgress(ShardTask(number, number * rows, lacking, np.arange(rows), keys, is_test, [None] * rows, {}))


def batch(of: ShardInProgress, name: str, value: int, part: int = 0) -> Batch:
    pixels = np.full((B, 1, 1, 3), value, np.uint8)
    ok = np.arange(B) != 2  # one image of every batch is quarantined
    rows = np.arange(part * B, (part + 1) * B)
    return Batch(of, name, pixels, rows, [f"{row}.jpg" for row in rows + of.task.first], ok)


class Book:
    """What was written, and how far the embedding was then."""

    def __init__(self) -> None:
        self.shards: list[ShardInProgress] = []
        self.seconds: list[float] = []
        self.arrived = 0

    def write(self, written: ShardInProgress, seconds: float) -> None:
        assert written.missing == 0
        self.shards.append(written)
        self.seconds.append(seconds)

    def count(self, images: int) -> None:
        self.arrived += images


def test_an_embedding_that_is_not_finite_is_not_stored() -> None:
    """That of a quarantined photograph may be anything."""
    book = Book()

    def embed(canvas: NDArray[np.uint8], bad: int) -> NDArray[np.float32]:
        found = first_value(canvas)
        found[bad, 1] = np.inf
        return found

    for bad in (2, 3):
        one = shard(7, ["x"])
        backlog = Scheduler([backbone(partial(embed, bad=bad))], book.write, book.count, waiting=4, most_in_flight=1)
        error = (
            nullcontext() if bad == 2 else pytest.raises(GateError, match=r"control:x, x: embedding of 31\.jpg is not")
        )
        with error, backlog.working():
            backlog.add(0, batch(one, "x", 1))
            backlog.done(one)
    assert len(book.shards) == 1

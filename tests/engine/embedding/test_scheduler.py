"""What the loop is ahead with: every embedding goes to its row, shards are written whole, and errors reach the loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.at_once import AtOnce

from substyle.engine import cuda
from substyle.engine.backbones.compile import CompiledBackbone
from substyle.engine.backbones.gate import GateError
from substyle.engine.backbones.spec import BackboneSpec
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
    return ShardInProgress(
        number, number * rows, range(rows), rows, [names] * backbones, [{} for _ in range(backbones)]
    )


def batch(of: ShardInProgress, name: str, value: int, part: int = 0) -> Batch:
    pixels = np.full((B, 1, 1, 3), value, np.uint8)
    ok = np.arange(B) != 2  # one image of every batch is quarantined
    rows = np.arange(part * B, (part + 1) * B)
    return Batch(of, name, pixels, rows, [f"{row}.jpg" for row in rows + of.first], ok)


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


def test_a_pass_gives_a_shard_the_layers_that_it_lacks() -> None:
    book, calls = Book(), []

    def embed(canvas: NDArray[np.uint8]) -> NDArray[np.float32]:
        calls.append(len(canvas))
        return np.concatenate([first_value(canvas), first_value(canvas) + 100], axis=1)

    whole = backbone(embed)
    layers = replace(whole, members=tuple(replace(whole.spec, name=name) for name in "ab"))
    backlog = Scheduler([backbone(first_value), layers], book.write, book.count, waiting=4, most_in_flight=1)
    one = ShardInProgress(0, 0, range(B), B, [[], ["x"], ["x", "y"]], [{}, {}, {}])
    with backlog.working():
        for value, name in enumerate("xy"):
            backlog.add(1, batch(one, name, value))
        backlog.done(one)
    assert calls == [B, B]
    assert [sorted(found) for found in one.buffers] == [[], ["x"], ["x", "y"]]
    valid = np.arange(B) != 2
    np.testing.assert_array_equal(one.buffers[1]["x"][valid], 0)
    np.testing.assert_array_equal(one.buffers[2]["x"][valid], 100)
    np.testing.assert_array_equal(one.buffers[2]["y"][valid], 101)
    assert np.isnan(one.buffers[2]["y"][2]).all()
    assert book.arrived == 3 * B


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


def test_every_embedding_goes_to_its_row_and_shards_are_written_in_order() -> None:
    book, names = Book(), ["identity", "blur", "noise"]
    made = [shard(i, names, backbones=2, batches=3) for i in range(5)]
    plain, doubled = backbone(first_value), backbone(lambda canvas: 2 * first_value(canvas))
    backlog = Scheduler([plain, doubled], book.write, book.count, waiting=4, most_in_flight=2)
    with backlog.working():
        for each in made:
            for part in range(3):
                for t in range(len(names)):
                    for i in range(2):
                        backlog.add(i, batch(each, names[t], 10 * each.number + 3 * t + part, part))
            backlog.done(each)
    assert [written.number for written in book.shards] == [0, 1, 2, 3, 4]
    assert book.arrived == 5 * 3 * 3 * 2 * B
    assert min(book.seconds) > 0
    for each in made:
        for t, name in enumerate(names):
            for part in range(3):
                expected = np.full((B, D), 10 * each.number + 3 * t + part, np.float32)
                expected[2] = np.nan
                rows = slice(part * B, (part + 1) * B)
                np.testing.assert_array_equal(each.buffers[0][name][rows], expected)
                np.testing.assert_array_equal(each.buffers[1][name][rows], 2 * expected)


def test_a_backbone_goes_on_while_something_waits_for_it() -> None:
    calls: list[int] = []
    slow = threading.Event()

    def record(i: int) -> Embed:
        def embed(canvas_BSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
            slow.wait()
            calls.append(i)
            return first_value(canvas_BSSC)

        return embed

    one = shard(0, ["identity"], backbones=2)
    backlog = Scheduler(
        [backbone(record(0)), backbone(record(1))], Book().write, Book().count, waiting=8, most_in_flight=1
    )
    with backlog.working():
        for _ in range(8):
            backlog.add(0, batch(one, "identity", 1))
            backlog.add(1, batch(one, "identity", 1))
        slow.set()
        backlog.done(one)
    switches = sum(a != b for a, b in pairwise(calls))
    assert sorted(calls) == [0] * 8 + [1] * 8
    assert switches == 1


def test_the_giver_waits_when_too_much_waits() -> None:
    go, one = threading.Event(), shard(0, ["identity"])

    def embed(canvas_BSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
        go.wait()
        return first_value(canvas_BSSC)

    added: list[int] = []
    backlog = Scheduler([backbone(embed)], Book().write, Book().count, waiting=3, most_in_flight=1)

    def give_all() -> None:
        with backlog.working():
            for i in range(20):
                backlog.add(0, batch(one, "identity", i))
                added.append(i)
            backlog.done(one)

    giver = threading.Thread(target=give_all)
    giver.start()
    time.sleep(0.2)
    assert len(added) <= 5  # three wait, one is held by the backbone
    go.set()
    giver.join()
    assert len(added) == 20


class BrokenError(Exception):
    pass


def give(backlog: Scheduler, shards: Iterable[ShardInProgress], batches: int) -> None:
    """Give batches of the values 0, 1, … to each shard."""
    with backlog.working():
        for each in shards:
            for value in range(batches):
                backlog.add(0, batch(each, "identity", value))
            backlog.done(each)


def test_an_error_of_a_backbone_reaches_the_giver() -> None:
    seen: list[int] = []

    def embed(canvas_BSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
        seen.append(int(canvas_BSSC[0, 0, 0, 0]))
        if seen[-1] == 5:
            raise BrokenError
        return first_value(canvas_BSSC)

    book = Book()
    backlog = Scheduler([backbone(embed)], book.write, book.count, waiting=2, most_in_flight=1)
    with pytest.raises(BrokenError):
        give(backlog, [shard(0, ["identity"])], 200)
    assert seen == list(range(6))
    assert book.shards == []


def test_an_error_in_writing_reaches_the_giver() -> None:
    written: list[int] = []
    made = (shard(i, ["identity"]) for i in range(1000))

    def write(each: ShardInProgress, seconds: float) -> None:
        if each.number == 1:
            raise BrokenError
        written.append(each.number)

    backlog = Scheduler([backbone(first_value)], write, Book().count, waiting=2, most_in_flight=1)
    with pytest.raises(BrokenError):
        give(backlog, made, 1)
    assert written[0] == 0
    assert next(made).number < 100


def test_an_interrupted_giver_finishes_the_shard_that_is_being_written() -> None:
    begun, book = threading.Event(), Book()

    def write(each: ShardInProgress, seconds: float) -> None:
        begun.set()
        time.sleep(0.1)
        book.write(each, seconds)

    def interrupted() -> Iterator[ShardInProgress]:
        yield shard(0, ["identity"])
        begun.wait()
        raise KeyboardInterrupt

    backlog = Scheduler([backbone(first_value)], write, book.count, waiting=2, most_in_flight=1)
    with pytest.raises(KeyboardInterrupt):
        give(backlog, interrupted(), 1)
    assert [each.number for each in book.shards] == [0]


@pytest.mark.parametrize("known", [False, True], ids=["before the executor knows it", "after"])
def test_an_interruption_at_the_start_of_the_thread_ends_it(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    embedding, start = list[threading.Thread](), threading.Thread.start

    def started(thread: threading.Thread) -> None:
        thread.daemon = True  # so that this process ends even if it does not
        start(thread)
        if thread.name.startswith("substyle-embed"):
            embedding.append(thread)
            if not known:
                raise KeyboardInterrupt

    def submitted(own: ThreadPoolExecutor, *given: Callable[[], None]) -> Future[None]:
        submit(own, *given)
        raise KeyboardInterrupt

    def work() -> None:
        backlog = Scheduler([backbone(first_value)], lambda *_: None, lambda _: None, waiting=1, most_in_flight=1)
        with suppress(KeyboardInterrupt), backlog.working():
            pass

    submit = ThreadPoolExecutor.submit
    worker = threading.Thread(target=work)
    monkeypatch.setattr(threading.Thread, "start", started)
    if known:
        monkeypatch.setattr(ThreadPoolExecutor, "submit", submitted)
    worker.start()
    worker.join(10)
    assert not worker.is_alive()
    (thread,) = embedding
    thread.join(10)
    assert not thread.is_alive()


def test_an_interruption_within_the_lock_does_not_keep_it() -> None:
    """As one is raised just after the lock is taken, before the block that gives it back."""
    backlog = Scheduler([backbone(first_value)], Book().write, Book().count, waiting=1, most_in_flight=1)

    def interrupted() -> None:
        with backlog.working():
            backlog._changed.acquire()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()


def test_a_batch_waits_for_its_own_pixels_before_it_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []
    monkeypatch.setattr(cuda, "after", lambda event, device: said.append((event, str(device))))

    def embed(canvas_BSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
        said.append(int(canvas_BSSC[0, 0, 0, 0]))
        return first_value(canvas_BSSC)

    one = shard(0, ["identity"])
    backlog = Scheduler([backbone(embed)], Book().write, Book().count, waiting=8, most_in_flight=2)
    with backlog.working():
        for value in (3, 4):
            backlog.add(0, replace(batch(one, "identity", value), made=f"pixels of {value}"))  # type: ignore[arg-type]
        backlog.done(one)
    assert said == [("pixels of 3", "cpu"), 3, ("pixels of 4", "cpu"), 4]


def test_what_is_there_is_embedded_while_nobody_knows_what_comes_next() -> None:
    """However little it is, and though another backbone would have its turn first: others may wait for the shard."""
    one, book, more = shard(0, ["a"], backbones=2), Book(), Future[str]()
    backlog = Scheduler(
        [backbone(first_value), backbone(first_value)], book.write, book.count, waiting=100, most_in_flight=1
    )
    with backlog.working(), ThreadPoolExecutor(1) as other:
        for i in range(2):
            backlog.add(i, batch(one, "a", 7))
        backlog.done(one)
        told = other.submit(backlog.until, more)
        while not book.shards:
            time.sleep(0.001)
        assert not told.done()
        more.set_result("a further shard")
        assert told.result() == "a further shard"
    assert book.arrived == 2 * B


@pytest.mark.parametrize("where", ["embed", "write"])
def test_what_goes_wrong_ends_the_waiting_for_more(where: str) -> None:
    def fail(*arguments: object) -> NDArray[np.float32]:
        raise OSError(28, "No space left on device")

    one, book = shard(0, ["a"]), Book()
    write = fail if where == "write" else book.write
    backlog = Scheduler(
        [backbone(fail if where == "embed" else first_value)], write, book.count, waiting=100, most_in_flight=1
    )

    def work() -> None:
        with backlog.working():
            backlog.add(0, batch(one, "a", 7))
            backlog.done(one)
            backlog.until(Future[str]())

    with pytest.raises(OSError, match="No space left"):
        work()

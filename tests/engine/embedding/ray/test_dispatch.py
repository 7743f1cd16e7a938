"""Which worker gets which shard, and when a shard is lost: rules alone, no process."""

from __future__ import annotations

import random

import pytest

from substyle.engine.embedding.ray_executor import ShardQueue

ONE, TWO = {0: None}.keys(), {0: None, 1: None}.keys()


def test_shards_are_taken_in_order() -> None:
    queue = ShardQueue(range(3), retries=2)
    assert [queue.take(worker, TWO) for worker in (1, 0)] == [0, 1]
    queue.finished(1)
    assert queue.take(0, TWO) == 2
    assert queue.take(1, TWO) is None
    queue.finished(0)
    assert not queue.done
    queue.finished(2)
    assert queue.done
    assert queue.lost == {}


def test_a_failed_shard_goes_to_another_worker_before_anything_new() -> None:
    queue = ShardQueue(range(4), retries=2)
    assert (queue.take(0, TWO), queue.take(1, TWO)) == (0, 1)
    assert queue.failed(0, 0, "killed") is False
    assert queue.take(0, TWO) == 2  # shard 0 waits for the other worker
    queue.finished(1)
    assert queue.take(1, TWO) == 0
    queue.finished(0)
    assert queue.take(1, TWO) == 3


def test_the_only_worker_retries_itself() -> None:
    queue = ShardQueue(range(1), retries=2)
    assert queue.take(0, ONE) == 0
    queue.failed(0, 0, "killed")
    assert not queue.done
    assert queue.take(0, ONE) == 0


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_shard_is_lost_after_so_many_retries(retries: int) -> None:
    queue = ShardQueue(range(1), retries)
    for attempt in range(retries + 1):
        assert queue.take(attempt % 2, TWO) == 0
        assert queue.failed(0, attempt % 2, f"reason {attempt}") is (attempt == retries)
    assert queue.done
    assert (queue.lost[0].tries, queue.lost[0].reason) == (retries + 1, f"reason {retries}")


def test_when_everything_fails_the_rest_is_not_tried() -> None:
    queue = ShardQueue(range(100), retries=0)
    tried = 0
    while not queue.hopeless(2):
        assert queue.take(0, TWO) == tried
        queue.failed(tried, 0, "no room on the disk")
        tried += 1
    assert tried == 4
    assert not queue.done


def test_one_finished_shard_gives_hope() -> None:
    queue = ShardQueue(range(9), retries=0)
    for shard in range(9):
        assert queue.take(0, ONE) == shard
        if shard % 3 == 2:
            queue.finished(shard)
        else:
            queue.failed(shard, 0, "bad")
        assert not queue.hopeless(1)
    assert set(queue.lost) == {0, 1, 3, 4, 6, 7}


@pytest.mark.parametrize("seed", range(20))
def test_every_shard_is_finished_or_lost_for_its_own_fault(seed: int) -> None:
    rng = random.Random(seed)
    bad = set(rng.sample(range(40), 3))
    queue, workers = ShardQueue(range(40), retries=2), {0: None, 1: None, 2: None}.keys()
    active: dict[int, int] = {}
    finished: set[int] = set()
    for _ in range(10_000):
        if queue.done or queue.hopeless(3):
            break
        worker = rng.randrange(3)
        if worker not in active:
            shard = queue.take(worker, workers)
            if shard is not None:
                assert shard not in active.values()
                active[worker] = shard
        elif active[worker] in bad or rng.random() < 0.01:
            queue.failed(active.pop(worker), worker, "bad")
        else:
            shard = active.pop(worker)
            queue.finished(shard)
            assert shard not in finished
            finished.add(shard)
    assert queue.done
    assert finished | set(queue.lost) == set(range(40))
    assert not finished & set(queue.lost)
    assert bad <= set(queue.lost)

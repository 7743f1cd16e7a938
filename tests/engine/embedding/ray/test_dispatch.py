"""Which worker gets which shard, and when a shard is lost: rules alone, no process."""

from __future__ import annotations

from substyle.engine.embedding.ray_executor import ShardQueue

ONE, TWO = {0: None}.keys(), {0: None, 1: None}.keys()


def test_the_only_worker_retries_itself() -> None:
    queue = ShardQueue(range(1), retries=2)
    assert queue.take(0, ONE) == 0
    queue.failed(0, 0, "killed")
    assert not queue.done
    assert queue.take(0, ONE) == 0


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


def test_a_worker_has_a_second_shard_while_many_wait() -> None:
    queue = ShardQueue(range(4), retries=1)
    assert (queue.take(0, TWO), queue.take(1, TWO)) == (0, 1)
    assert queue.take(0, TWO, [0]) == 2
    assert queue.take(1, TWO, [1]) is None, "the last one is for whoever is idle first"
    assert queue.take(1, TWO) == 3


def test_of_two_shards_that_failed_together_each_is_tried_alone() -> None:
    """Either may be to blame."""
    queue = ShardQueue(range(9), retries=0)
    assert (queue.take(0, ONE), queue.take(0, ONE, [0])) == (0, 1)
    for shard in (0, 1):
        assert not queue.failed(shard, 0, "killed", alone=False)
    assert queue.take(0, ONE) == 0
    assert queue.take(0, ONE, [0]) is None
    queue.finished(0)
    assert queue.take(0, ONE) == 1
    assert queue.failed(1, 0, "killed")
    assert set(queue.lost) == {1}
    assert (queue.take(0, ONE), queue.take(0, ONE, [2])) == (2, 3)


def test_a_shard_that_failed_comes_before_fresh_ones() -> None:
    """Also where workers have two shards: another one ends those that it has, and takes it."""
    queue = ShardQueue(range(20), retries=2)
    assert (queue.take(0, TWO), queue.take(1, TWO)) == (0, 1)
    queue.failed(0, 0, "killed")
    assert queue.take(1, TWO, [1]) is None
    assert queue.take(0, TWO) == 2, "not on the worker that it failed on"
    queue.finished(1)
    assert queue.take(1, TWO) == 0

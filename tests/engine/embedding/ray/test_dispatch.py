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

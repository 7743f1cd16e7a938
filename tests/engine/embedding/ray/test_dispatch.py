"""Who gets which shard, and when a shard is given up: rules alone, no process."""

from __future__ import annotations

import random

import pytest

from substyle.engine.embedding.ray_cluster import ShardQueue


def started(shards: int, workers: int = 2, retries: int = 2) -> ShardQueue:
    dispatch = ShardQueue(range(shards), retries)
    for worker in range(workers):
        dispatch.join(worker)
    return dispatch


def test_shards_go_out_in_order_to_whoever_asks() -> None:
    dispatch = started(4)
    assert [dispatch.next(worker) for worker in (1, 0, 0, 1, 1)] == [0, 1, 2, 3, None]
    assert dispatch.held(0) == [1, 2]
    for worker, shard in ((0, 1), (1, 0), (1, 3)):
        dispatch.written(worker, shard)
    assert not dispatch.over
    dispatch.written(0, 2)
    assert dispatch.over
    assert dispatch.lost == {}


def test_what_a_dead_worker_held_goes_to_the_other_before_anything_new() -> None:
    dispatch = started(3)
    assert (dispatch.next(0), dispatch.next(1)) == (0, 1)
    assert dispatch.failed(0, "killed") == [0]
    dispatch.join(0)
    assert dispatch.next(0) == 2  # another worker may have more luck with shard 0
    assert dispatch.next(1) is None  # which it gets when it holds nothing else
    dispatch.written(1, 1)
    assert dispatch.next(1) == 0
    dispatch.written(1, 0)
    dispatch.written(0, 2)
    assert dispatch.over


def test_the_only_worker_tries_again_itself() -> None:
    dispatch = started(1, workers=1)
    assert dispatch.next(0) == 0
    dispatch.failed(0, "killed")
    assert not dispatch.over
    dispatch.join(0)
    assert dispatch.next(0) == 0


def test_a_shard_that_has_failed_is_alone_with_its_worker() -> None:
    dispatch = started(5, workers=1)
    dispatch.next(0)
    dispatch.failed(0, "killed")
    dispatch.join(0)
    assert dispatch.next(0) == 0
    assert dispatch.next(0) is None
    dispatch.written(0, 0)
    assert [dispatch.next(0), dispatch.next(0)] == [1, 2]


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_shard_is_given_up_after_so_many_tries(retries: int) -> None:
    dispatch = started(1, retries=retries)
    for attempt in range(retries + 1):
        worker = attempt % 2
        assert dispatch.next(worker) == 0
        dispatch.failed(worker, f"reason {attempt}")
        dispatch.join(worker)
    assert dispatch.over
    assert (dispatch.lost[0].tries, dispatch.lost[0].why) == (retries + 1, f"reason {retries}")


def test_a_shard_that_was_only_near_is_not_given_up() -> None:
    dispatch = started(2, workers=1, retries=0)
    assert (dispatch.next(0), dispatch.next(0)) == (0, 1)
    assert dispatch.failed(0, "which of them?") == [0, 1]
    assert dispatch.lost == {}
    dispatch.join(0)
    assert dispatch.next(0) == 0
    dispatch.failed(0, "this one")
    assert set(dispatch.lost) == {0}
    dispatch.join(0)
    assert dispatch.next(0) == 1
    dispatch.written(0, 1)
    assert dispatch.over


def test_when_everything_fails_the_rest_is_not_tried() -> None:
    dispatch = started(100, workers=2, retries=0)
    given = 0
    while not dispatch.hopeless:
        assert dispatch.next(0) == given
        dispatch.failed(0, "no room on the disk")
        dispatch.join(0)
        given += 1
    assert given == 4
    assert not dispatch.over


def test_one_shard_that_is_finished_gives_hope() -> None:
    dispatch = started(9, workers=1, retries=0)
    for shard in range(9):
        assert dispatch.next(0) == shard
        if shard % 3 == 2:
            dispatch.written(0, shard)
        else:
            dispatch.failed(0, "bad")
            dispatch.join(0)
        assert not dispatch.hopeless
    assert set(dispatch.lost) == {0, 1, 3, 4, 6, 7}


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_every_shard_is_finished_or_given_up_for_its_own_fault(seed: int) -> None:
    rng = random.Random(seed)
    bad = set(rng.sample(range(40), 3))
    dispatch = started(40, workers=3, retries=2)
    finished: set[int] = set()
    for _ in range(10_000):
        if dispatch.over or dispatch.hopeless:
            break
        worker = rng.randrange(3)
        while rng.random() < 0.6 and dispatch.next(worker) is not None:
            pass
        held = dispatch.held(worker)
        if held and (held[0] in bad or rng.random() < 0.01):
            dispatch.failed(worker, "bad")
            dispatch.join(worker)
        elif held:
            dispatch.written(worker, held[0])
            assert held[0] not in finished
            finished.add(held[0])
    assert dispatch.over
    assert finished | set(dispatch.lost) == set(range(40))
    assert bad <= set(dispatch.lost)

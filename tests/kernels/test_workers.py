"""Threads over images: every image once, errors are raised, and the number of threads does not matter."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from substyle.kernels.dispatch import for_each_image, scratch


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_each_image_once(threads: int, count: int) -> None:
    seen: list[int] = []
    for_each_image(count, seen.append)
    assert sorted(seen) == list(range(count))


def test_one_thread_stays_in_the_caller(threads: int) -> None:
    names: set[int] = set()
    barrier = threading.Barrier(threads, timeout=30)

    def work(_: int) -> None:
        barrier.wait()
        names.add(threading.get_ident())

    for_each_image(threads, work)
    assert len(names) == threads
    assert (threading.get_ident() in names) == (threads == 1)


def test_errors_come_out(threads: int) -> None:
    def work(i: int) -> None:
        if i == 2:
            raise KeyError("third")

    with pytest.raises(KeyError, match="third"):
        for_each_image(4, work)


def test_a_forked_process_has_its_own_threads(threads: int) -> None:
    for_each_image(4, lambda _: None)  # the parent's threads exist
    child = multiprocessing.get_context("fork").Process(target=for_each_image, args=(4, lambda _: None))
    child.start()
    child.join(30)
    alive = child.is_alive()
    child.kill()
    child.join()
    assert not alive
    assert child.exitcode == 0


def test_work_arrays_are_reused_by_use_shape_type_and_thread() -> None:
    first = scratch("test", (3, 4), np.float32)
    assert first.shape == (3, 4)
    assert first.dtype == np.float32
    assert scratch("test", (3, 4), np.float32) is first
    assert scratch("other", (3, 4), np.float32) is not first
    assert scratch("test", (3, 4), np.int32).dtype == np.int32
    assert scratch("test", (5,), np.int32).shape == (5,)
    elsewhere: list[object] = []
    thread = threading.Thread(target=lambda: elsewhere.append(scratch("other", (3, 4), np.float32)))
    thread.start()
    thread.join()
    assert elsewhere[0] is not scratch("other", (3, 4), np.float32)

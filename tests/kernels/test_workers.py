"""Threads over images: every image once, errors are raised, and the number of threads does not matter."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator

import pytest
import torch

from substyle.kernels.dispatch import for_each_image


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


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

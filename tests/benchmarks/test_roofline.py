"""Least work against counts by hand, and that it grows with every length."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from benchmarks import roofline


def test_bytes_of_one_canvas() -> None:
    """224 x 224 x 3: 150,528 bytes of pixels, 50,176 pixels."""
    one, pixels = 150528, 50176
    assert roofline.noise(1, 224, 224, 3, 6).bytes == 2 * one
    assert roofline.remap(1, 224, 224, 3).bytes == 2 * one + 8 * pixels
    assert roofline.swirl(1, 224, 224, 3).bytes == roofline.grid(1, 224, 224, 3).bytes == 2 * one
    assert roofline.dots(1, 224, 224, 3).bytes == roofline.lines(1, 224, 224, 3).bytes == 2 * one
    assert roofline.elastic(1, 224, 224, 3, 15).bytes == 2 * one + 2 * pixels * (2 + 2 + 4 + 4)
    assert roofline.jpeg(1, 224, 224).bytes == 2 * one + 2 * (pixels + 2 * 112 * 112)
    assert roofline.gather(1024, 768, 2, 2).bytes == 1024 * (768 * 4 + 8)
    assert roofline.gather(1024, 768, 1, 2).bytes == 1024 * (768 * 3 + 12)
    assert roofline.dropout(6, 2048 * 1024).bytes == 6 * 2048 * 1024


def test_a_probe_step_s_element_wise_halves_by_hand() -> None:
    """2 heads of 3 classes and 5 rows: 30 logits, 10 weights of rows. 7 parameters of 2 heads."""
    assert roofline.cross_entropy(2, 3, 5) == (30 * 4 + 30 * 4 + 5 * 8 + 10 * 4 + 2 * 4, 30 * 13 + 10 * 5)
    assert roofline.cross_entropy(2, 3, 5, 2).bytes == 30 * 2 + 30 * 2 + 5 * 8 + 10 * 4 + 2 * 4
    assert roofline.adamw(2, 7) == (7 * (4 * 4 + 3 * 4) + 2 * 8, 7 * 16)
    assert roofline.adamw(2, 7, 2).bytes == 7 * (3 * 4 + 2 + 3 * 4) + 2 * 8


def test_the_slower_of_the_two_counts() -> None:
    least = roofline.Least(1000, 500)
    assert least.seconds(100.0, 1000.0) == 10.0
    assert least.seconds(1e6, 50.0) == 10.0


@pytest.mark.parametrize(
    ("function", "lengths"),
    [
        (roofline.bits16, (2, 8)),
        (roofline.noise, (2, 4, 4, 2, 3)),
        (roofline.remap, (2, 4, 4, 2)),
        (roofline.swirl, (2, 4, 4, 2)),
        (roofline.grid, (2, 4, 4, 2)),
        (roofline.elastic, (2, 4, 4, 2, 3)),
        (roofline.jpeg, (2, 4, 4)),
        (roofline.dots, (2, 4, 4, 2)),
        (roofline.lines, (2, 4, 4, 2)),
        (roofline.gather, (4, 8, 2, 2)),
        (roofline.dropout, (4, 32)),
        (roofline.cross_entropy, (2, 4, 8)),
        (roofline.adamw, (2, 64)),
    ],
)
def test_more_is_more(function: Callable[..., roofline.Least], lengths: tuple[int, ...]) -> None:
    least = function(*lengths)
    assert min(least) > 0
    for i, length in enumerate(lengths):
        more = function(*lengths[:i], length + (1 if isinstance(length, bool) else 8), *lengths[i + 1 :])
        assert sum(more) > sum(least)
        assert more.bytes >= least.bytes
        assert more.operations >= least.operations

from __future__ import annotations

import numpy as np
import pytest

from substyle.engine.store.splits import assign
from substyle.engine.table import TEST, TRAIN, VAL
from substyle.kernels.errors import ConfigError


def test_fractions_hold_in_every_class() -> None:
    keys = [f"{label}/{i}" for label in range(3) for i in range(100)]
    labels = [label for label in range(3) for _ in range(100)]
    codes = assign(keys, labels, [None] * 300, seed=1, fractions=(0.6, 0.15, 0.25))
    for label in range(3):
        assert np.bincount(codes[label * 100 : label * 100 + 100]).tolist() == [60, 15, 25]


def test_order_of_images_does_not_matter() -> None:
    keys = [f"k{i}" for i in range(50)]
    codes = dict(zip(keys, assign(keys, [-1] * 50, [None] * 50, seed=0).tolist(), strict=True))
    back = assign(keys[::-1], [-1] * 50, [None] * 50, seed=0).tolist()
    assert codes == dict(zip(keys[::-1], back, strict=True))


def test_seed_matters() -> None:
    keys = [f"k{i}" for i in range(50)]
    assert not np.array_equal(
        assign(keys, [-1] * 50, [None] * 50, seed=0), assign(keys, [-1] * 50, [None] * 50, seed=1)
    )


def test_given_splits_are_kept() -> None:
    given = ["train", "test", "val", "train"]
    assert assign(list("abcd"), [0] * 4, given, seed=0).tolist() == [TRAIN, TEST, VAL, TRAIN]


def test_train_and_val_alone_are_train_and_test() -> None:
    given: list[str | None] = ["train"] * 80 + ["val"] * 20
    codes = assign([f"k{i}" for i in range(100)], [0] * 100, given, seed=0)
    assert (codes[80:] == TEST).all()
    assert set(codes[:80].tolist()) == {TRAIN, VAL}
    assert 10 <= (codes[:80] == VAL).sum() <= 20


def test_split_for_some_images_only_is_refused() -> None:
    with pytest.raises(ConfigError, match="b has none"):
        assign(["a", "b"], [0, 0], ["train", None], seed=0)


def test_empty() -> None:
    assert assign([], [], [], seed=0).shape == (0,)

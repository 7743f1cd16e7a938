from __future__ import annotations

import numpy as np
import pytest

from substyle.engine.store.layout import TEST, TRAIN, VAL
from substyle.engine.store.manifest import assign
from substyle.errors import ConfigError


def test_fractions_hold_in_every_class() -> None:
    keys = [f"{label}/{i}" for label in range(3) for i in range(100)]
    labels = [label for label in range(3) for _ in range(100)]
    codes = assign(keys, labels, [None] * 300, seed=1, fractions=(0.6, 0.15, 0.25))
    for label in range(3):
        assert np.bincount(codes[label * 100 : label * 100 + 100]).tolist() == [60, 15, 25]


def test_given_splits_are_kept() -> None:
    given = ["train", "test", "val", "train"]
    assert assign(list("abcd"), [0] * 4, given, seed=0).tolist() == [TRAIN, TEST, VAL, TRAIN]


def test_groups_are_in_one_split_whatever_else_there_is() -> None:
    keys = [f"{patient}-{scan}" for patient in range(400) for scan in range(3)]
    groups: list[str | None] = [key.split("-")[0] for key in keys]
    groups[-30:] = [None] * 30  # groups of their own
    codes = assign(keys, [0] * 1200, [None] * 1200, seed=1, fractions=(0.6, 0.15, 0.25), groups=groups)
    by_group = codes[:1170].reshape(-1, 3)
    assert (by_group == by_group[:, :1]).all()
    assert len(set(codes[-30:].tolist())) > 1
    assert np.bincount(by_group[:, 0]) / 390 == pytest.approx([0.6, 0.15, 0.25], abs=0.06)
    some = slice(300, 900)
    alone = assign(keys[some], [0] * 600, [None] * 600, seed=1, fractions=(0.6, 0.15, 0.25), groups=groups[some])
    assert np.array_equal(codes[some], alone)
    other = assign(keys, [0] * 1200, [None] * 1200, seed=2, fractions=(0.6, 0.15, 0.25), groups=groups)
    assert not np.array_equal(codes, other)


def test_split_for_some_images_only_is_refused() -> None:
    with pytest.raises(ConfigError, match="'b ") as caught:
        assign(["a", "b"], [0, 0], ["train", None], seed=0)
    assert caught.value.field == "split"


def test_order_of_images_does_not_matter() -> None:
    keys = [f"k{i}" for i in range(50)]
    codes = dict(zip(keys, assign(keys, [-1] * 50, [None] * 50, seed=0).tolist(), strict=True))
    back = assign(keys[::-1], [-1] * 50, [None] * 50, seed=0).tolist()
    assert codes == dict(zip(keys[::-1], back, strict=True))


@pytest.mark.parametrize("fractions", [(0.65, 0.15, 0.2), (0.1, 0.1, 0.8), (0.98, 0.01, 0.01)])
def test_classes_are_cut_one_by_one(fractions: tuple[float, float, float]) -> None:
    keys = [f"k{i}" for i in range(300)]
    labels = np.random.default_rng(0).integers(-1, 40, 300)
    codes = assign(keys, labels.tolist(), [None] * 300, seed=5, fractions=fractions)
    for label in range(-1, 40):
        rows = np.flatnonzero(labels == label)
        alone = assign([keys[i] for i in rows], [0] * len(rows), [None] * len(rows), seed=5, fractions=fractions)
        assert codes[rows].tolist() == alone.tolist()

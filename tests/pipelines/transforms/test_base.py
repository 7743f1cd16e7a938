"""Declaration of transformations and draws of parameters."""

from __future__ import annotations

import numpy as np
import pytest

from substyle.engine.store.catalog import Definition
from substyle.errors import ConfigError
from substyle.kernels import philox
from substyle.pipelines.transforms.base import KINDS, Choice, Transformation, Uniform, get, register
from substyle.pipelines.variants import load_all

KEYS = philox.image_keys(0, [str(i) for i in range(4000)])


def test_choices_are_equally_likely_and_tuples_stay_together() -> None:
    t = Transformation(
        "t", "tone", "train", "kernel", (Choice("line", ((1, 2), (3, 4)), unit="px"), Choice("n", (5, 6, 7)))
    )
    drawn = t.draw(KEYS, 448)
    assert {tuple(row) for row in drawn["line"].tolist()} == {(2.0, 4.0), (6.0, 8.0)}
    counts = np.unique(drawn["n"], return_counts=True)[1]
    assert (np.abs(counts - 4000 / 3) < 5 * np.sqrt(4000 * 2 / 9)).all()


def test_uniform_range_sign_and_units() -> None:
    parameters = (Uniform("a", 2, 4, unit="px"), Uniform("b", 0.3, 0.7, unit="S"), Uniform("c", 36, 180, signed=True))
    drawn = Transformation("t", "tone", "train", "kernel", parameters).draw(KEYS, 112)
    assert 1 <= drawn["a"].min() < 1.01
    assert 1.99 < drawn["a"].max() <= 2
    assert 0.3 * 112 <= drawn["b"].min() < drawn["b"].max() <= 0.7 * 112
    assert np.abs(drawn["c"]).min() >= 36
    assert abs((drawn["c"] < 0).mean() - 0.5) < 5 * 0.5 / np.sqrt(4000)
    assert abs(np.corrcoef(drawn["a"], drawn["b"])[0, 1]) < 0.08


def test_draws_belong_to_the_image() -> None:
    t = Transformation("t", "tone", "train", "kernel", (Uniform("a", 0, 1), Choice("b", (1, 2, 3, 4))))
    whole, part = t.draw(KEYS, 224), t.draw(KEYS[100:103], 224)
    assert all(np.array_equal(whole[name][100:103], part[name]) for name in ("a", "b"))
    assert {name: len(values) for name, values in t.draw(KEYS[:0], 224).items()} == {"a": 0, "b": 0}


def test_split_assets_reach_prepare() -> None:
    seen = {}
    t = Transformation(
        "t", "tone", "train", "dali", split_assets=True, prepare=lambda args, side: seen.update(args) or {}
    )
    t.draw(KEYS[:3], 224)
    assert seen["test_B"].tolist() == [False] * 3
    t.draw(KEYS[:3], 224, np.array([True, False, True]))
    assert seen["test_B"].tolist() == [True, False, True]


def test_a_definition_without_role_and_class() -> None:
    a = Transformation("t", "tone", "train", "kernel", (Choice("x", (1, 2)),))
    same = Transformation("t", "blur", "held_out", "kernel", (Choice("x", (1, 2)),))
    assert Definition(same.describe()).declared == Definition(a.describe()).declared
    for other in (
        Transformation("t", "tone", "train", "kernel", (Choice("x", (1, 3)),)),
        Transformation("t", "tone", "train", "kernel", (Choice("x", (1, 2), unit="px"),)),
        Transformation("t", "tone", "train", "kernel", (Choice("x", (1, 2)),), version=2),
        Transformation("u", "tone", "train", "kernel", (Choice("x", (1, 2)),)),
    ):
        assert Definition(other.describe()).declared != Definition(a.describe()).declared


def test_registry_refuses() -> None:
    load_all()
    with pytest.raises(ConfigError) as caught:
        register(get("jpeg"))
    assert (caught.value.field, caught.value.given) == ("transformation", "jpeg")
    with pytest.raises(ConfigError) as caught:
        register(Transformation("new", "colour", "train", "kernel"))
    assert (caught.value.field, caught.value.allowed) == ("new.kind", ", ".join(KINDS))
    with pytest.raises(ConfigError, match="gaussian_blur") as caught:
        get("gaussian_blurr")
    assert (caught.value.field, caught.value.given) == ("transformation", "gaussian_blurr")

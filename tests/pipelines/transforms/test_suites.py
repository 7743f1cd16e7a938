"""Suites agree with the registry; names are validated."""

from __future__ import annotations

from collections import Counter

import pytest

from substyle.kernels.errors import ConfigError
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import SUITES, suite
from substyle.pipelines.variants import load_all


def test_substance31() -> None:
    load_all()
    names = suite("substance31")
    assert len(names) == len(set(names)) == 31
    assert names[0] == "identity"
    transformations = [base.get(name) for name in names]
    order = [base.COARSE.index(t.coarse) for t in transformations]
    assert order == sorted(order)
    assert len(set(order)) == 10
    assert Counter(t.role for t in transformations[1:]) == {"train": 19, "held_out": 11}
    assert sum(t.made_by == "dali" for t in transformations) >= 16
    for coarse in base.COARSE[1:]:  # a test of generalisation needs both roles in each class
        assert {t.role for t in transformations if t.coarse == coarse} == {"train", "held_out"}


@pytest.mark.parametrize("name", sorted(SUITES))
def test_every_suite_exists_in_full(name: str) -> None:
    load_all()
    names = suite(name)
    assert names[0] == "identity"
    assert all(base.get(n).name == n for n in names)


@pytest.mark.parametrize("text", ["jpeg,elastic", " jpeg , identity, elastic ", "identity,jpeg,elastic,"])
def test_names_separated_by_commas(text: str) -> None:
    assert suite(text) == ("identity", "jpeg", "elastic")


def test_one_name() -> None:
    assert suite("jpeg") == ("identity", "jpeg")


@pytest.mark.parametrize(
    ("text", "field", "given", "named"),
    [
        ("substance32", "suite", "substance32", "substance31"),
        ("jpeg,blurr", "transformation", "blurr", "gaussian_blur"),
        ("jpeg,jpeg", "suite", "jpeg", ""),
        ("", "suite", "", "substance31"),
    ],
)
def test_wrong_names(text: str, field: str, given: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        suite(text)
    assert (caught.value.field, caught.value.given) == (field, given)
    assert named in caught.value.allowed

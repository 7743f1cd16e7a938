"""The plain script has the transformations of the engine's suite, and stands alone."""

from __future__ import annotations

from pathlib import Path

from benchmarks import paper

from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import load_all

ROOT = Path(__file__).parents[2]


def test_transformations_have_the_coarse_classes_and_roles_of_the_suite() -> None:
    load_all()
    for function, (coarse, seen) in paper.SUITE.items():
        known = base.get(function.__name__)
        assert (known.coarse, known.role == "train") == (coarse, seen)


def test_it_is_short_and_needs_nothing_of_substyle() -> None:
    text = (ROOT / "benchmarks" / "paper.py").read_text()
    assert len(text.splitlines()) <= 300
    assert "import substyle" not in text
    assert "from substyle" not in text

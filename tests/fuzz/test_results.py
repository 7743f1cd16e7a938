"""results.json of any content: `compare` and the report name what is wrong with it, or show what it says."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from tests.engine.report.real import real_results, shortened
from tests.engine.results.test_convert import document
from tests.fuzz.harness import attempt, examine, put
from tests.fuzz.mutations import changed, spoilt_json, written

from substyle.engine.report import page
from substyle.engine.report.tables import headline_table
from substyle.engine.stages.results import read_results, validate_results
from substyle.engine.study.compare import compare_results
from substyle.engine.study.report import write_report
from substyle.errors import SubstyleError


def results(*names: str) -> dict[str, Any]:
    """A small results.json: of four transformations."""
    return shortened(real_results(*names, "net", "control:pixels"), 4)


def contents(whole: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Spoilt results; one part of a backbone, or the rest of the file, so that every part is met often."""
    backbone = whole["backbones"]["net"]
    rest = {**whole, "backbones": {}}

    def with_part(key: str, part: Any) -> bytes:  # noqa: ANN401
        backbones = {**whole["backbones"], "net": {**backbone, key: part}}
        return written({**whole, "backbones": backbones})

    def with_rest(changed_rest: Any) -> bytes:  # noqa: ANN401
        kept = {"backbones": whole["backbones"]} if isinstance(changed_rest, dict) else {}
        return written({**changed_rest, **kept} if kept else changed_rest)

    parts = st.sampled_from(sorted(backbone)).flatmap(
        lambda key: changed(backbone[key], 2).map(lambda part: with_part(key, part))
    )
    return st.one_of(parts, parts, changed(rest, 2).map(with_rest), spoilt_json(json.dumps(whole).encode()))


def test_any_results_can_be_compared(tmp_path: Path, cases: int) -> None:
    path = tmp_path / "results.json"
    other = results("other")

    def check(content: bytes | None, first: bool) -> None:
        put(path, content)
        read = attempt(read_results, path, names=(path.name,))
        if read is None:
            return
        runs = [("a", read), ("b", copy.deepcopy(other))]
        compared = attempt(compare_results, runs if first else runs[::-1], tmp_path / "out", names=("compare",))
        assert compared is not None
        shown = (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
        assert "<h2>Scores</h2>" in shown

    examine(check, st.one_of(contents(results()), st.none()), st.booleans(), cases=cases)


def test_any_results_that_pass_can_be_shown(tmp_path: Path, cases: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    monkeypatch.setattr(page, "draw_plots", lambda *_: ({}, []))  # a second each

    def check(content: bytes) -> None:
        put(path, content)
        read = attempt(read_results, path, names=(path.name,))
        if read is not None:
            write_report(validate_results(read), tmp_path / "out")
            assert headline_table(validate_results(read))

    examine(check, contents(results()), cases=max(cases // 10, 8))


def test_any_results_of_an_earlier_schema_are_converted_or_named(tmp_path: Path, cases: int) -> None:
    path = tmp_path / "results.json"

    def check(content: bytes) -> None:
        put(path, content)
        attempt(read_results, path, names=(path.name,))

    examine(check, contents(document()), cases=cases)


FOUND: list[tuple[object, tuple[str, ...]]] = [
    ([0.4], ("transformation", "linear", "accuracy", "two_way")),
    ("high", ("transformation", "linear", "accuracy", "two_way")),
    ({"low": 0.1}, ("transformation", "linear", "accuracy", "two_way")),
    ([0.4], ("transformation", "linear", "accuracy", "low")),
    ("high", ("transformation", "linear", "accuracy", "high")),
    (None, ("transformation", "linear", "accuracy", "high")),
    ([0.4], ("transformation", "linear", "accuracy")),
    (0.4, ("transformation", "linear", "accuracy")),
    ({"low": 0.1, "high": 0.2}, ("transformation", "linear", "accuracy")),
    ([0.4], ("transformation", "linear", "accuracy", "value")),
    ("0.4", ("transformation", "linear", "accuracy", "value")),
    (None, ("transformation", "linear", "accuracy", "value")),
    ([0.4], ("transformation", "linear", "by_transformation", "motion_blur")),
    (3, ("transformation", "linear", "certificate")),
    ([3], ("transformation", "linear", "certificate")),
    ([[1, 2], [3, 4]], ("transformation", "linear", "confusion", "counts")),
    (["a"], ("transformation", "linear", "confusion", "labels")),
    (0.5, ("kind", "linear", "by_transformation", "motion_blur")),
    ([0.5], ("kind", "linear", "by_transformation", "motion_blur", "accuracy", "low")),
    ("x", ("class", "linear", "original", "value")),
    ([0.1], ("class", "linear", "transformed", "low")),
    ({"x": 0.5}, ("knn", "transformation")),
    ([0.1], ("knn", "transformation", "10", "low")),
    ({}, ("balance", "same_image")),
    ([0.5], ("sensitivity", "motion_blur")),
    ([0.5], ("shift", "fog@1,fog@3", "accuracy", "low")),
    (0.5, ("shift", "fog@1,fog@3", "images")),
    ("x", ("multitask", "difference", "transformation", "value")),
    (7.5, ("dim",)),
    ("x", ("gate", "cosine_min")),
    (10**400, ("dim",)),
]


@pytest.mark.parametrize(("value", "way"), FOUND)
def test_parts_that_could_not_be_shown_are_named(value: object, way: tuple[str, ...]) -> None:
    made = results()
    place = made["backbones"]["net"]
    for key in way[:-1]:
        place = place[key]
    assert way[-1] in place
    place[way[-1]] = value
    with pytest.raises(SubstyleError, match=re.escape(".".join(way[:3]))):
        validate_results(made)


def test_parameters_that_could_not_be_shown_are_named() -> None:
    for parameters, path in (
        (3, ": "),
        ([3], "[0]: "),
        ([{"name": "x", "uniform": [1]}], "[0].uniform: "),
        ([{"name": "x", "one_of": 3}], "[0].one_of: "),
        ([{"name": None}], "[0].name: "),
    ):
        made = results()
        made["transformations"][1]["parameters"] = parameters
        with pytest.raises(SubstyleError, match=re.escape(f"transformations[1].parameters{path}")):
            validate_results(made)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 20_000,
        "9" * 5_000,
        '{"schema": 4, "name": "x", "images": 1, "transformations": [], "backbones": '
        + '{"a":' * 100
        + "1"
        + "}" * 101,
    ],
)
def test_texts_that_python_does_not_parse_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(SubstyleError, match=r"results\.json: (not JSON|results.* deep)"):
        read_results(path)

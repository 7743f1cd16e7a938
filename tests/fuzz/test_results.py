"""results.json of any content: `compare` and the report name what is wrong with it, or show what it says."""

from __future__ import annotations

import json
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
from substyle.engine.study.report import write_report


def results(*names: str) -> dict[str, Any]:
    """A small results.json: of four transformations."""
    return shortened(real_results(*names, "net", "control:pixels"), 4)


def contents(whole: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Spoilt results; one part of a backbone, or the rest of the file, so that every part is met often."""
    name, backbone = next(iter(whole["backbones"].items()))
    rest = {**whole, "backbones": {}}

    def with_part(key: str, part: Any) -> bytes:  # noqa: ANN401
        backbones = {**whole["backbones"], name: {**backbone, key: part}}
        return written({**whole, "backbones": backbones})

    def with_rest(changed_rest: Any) -> bytes:  # noqa: ANN401
        kept = {"backbones": whole["backbones"]} if isinstance(changed_rest, dict) else {}
        return written({**changed_rest, **kept} if kept else changed_rest)

    parts = st.sampled_from(sorted(backbone)).flatmap(
        lambda key: changed(backbone[key], 2).map(lambda part: with_part(key, part))
    )
    return st.one_of(parts, parts, changed(rest, 2).map(with_rest), spoilt_json(json.dumps(whole).encode()))


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

"""Rows of results: what they hold, and directories of them that anybody may have edited."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import the_json
from tests.engine.report.real import BACKBONE, NAMES, drop, real_results

from substyle.engine.cli import main
from substyle.engine.extensions.site import directory
from substyle.engine.extensions.site.directory import add_rows, read_directory
from substyle.engine.extensions.site.row import Row, rows_of
from substyle.engine.stages import stamp
from substyle.engine.store.layout import slug
from substyle.files import UnsafeFileError


def results(**changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """A results.json with the identity that a run has."""
    made = drop(real_results(), "settings", "study")
    return made | {"identity": {"sources": "pets", "photographs": "0123456789abcdef"}} | changes


def recorded(**changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """Results with stamps."""
    return results(stamps={f"probes/{slug(name)}": "0" * 16 for name in NAMES}, **changes)


def write_run(folder: Path, made: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(made | {"checksum": stamp.checksum(made)}))
    return folder


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """A directory of results."""
    add_rows(rows_of(results()), tmp_path / "there")
    return tmp_path / "there"


def first(root: Path) -> Path:
    return next(path for path in sorted(root.rglob("*.json")) if "lite1" in str(path))


def test_a_row_has_what_a_number_needs_to_be_cited() -> None:
    made = results()
    row = next(row for row in rows_of(made) if row.backbone.name == BACKBONE)
    own = made["backbones"][BACKBONE]
    scores = {score.key: score for score in row.scores}
    accuracy, turned = (own[task]["linear"]["accuracy"] for task in ("transformation", "kind_rotation"))
    assert scores["transformation_linear"].value == accuracy["value"]
    assert scores["transformation_linear"].ci95 == [accuracy["low"], accuracy["high"]]
    assert scores["transformation_linear"].n == made["splits"]["test"]
    assert scores["rotation_linear"].ci95 == [turned["low"], turned["high"]]
    assert scores["rotation_linear"].ci95 != turned["one_way"]
    assert (row.data.photographs, row.data.classes, row.data.digest) == (85, 17, "0123456789abcdef")
    assert (row.study.seed, row.study.canvas, row.substyle) == (made["seed"], made["canvas"], made["version"])
    assert [each.name for each in row.suite.transformations] == [each["name"] for each in made["transformations"]]
    table = next(table for table in row.tables if table.name == "per_transformation")
    assert {cells[0]: cells[3][0] for cells in table.rows} == own["transformation"]["linear"]["by_transformation"]


def test_equal_rows_change_nothing_and_other_numbers_are_refused(there: Path) -> None:
    rows = rows_of(results(created="2030-01-01T00:00:00Z"))
    before = {path: path.read_bytes() for path in there.rglob("*.json")}
    done = add_rows(rows, there)
    assert (done.added, done.refused, len(done.unchanged)) == ([], {}, len(rows))
    add_rows(rows_of(recorded()), there)
    changed = recorded()
    changed["backbones"][BACKBONE]["transformation"]["linear"]["accuracy"] = {"value": 0.123}
    done = add_rows(rows_of(changed), there)
    assert list(done.refused.values()) == ["other numbers for the same stamp are there"]
    assert {path: path.read_bytes() for path in before} == before


def test_other_names_notes_and_versions_are_no_other_numbers(tmp_path: Path) -> None:
    add_rows(rows_of(recorded()), tmp_path / "to")
    changed = recorded(note="a note", name="another name", version="9", environment={"torch": "9"})
    done = add_rows(rows_of(changed), tmp_path / "to")
    assert (done.added, done.refused, len(done.unchanged)) == ([], {}, len(NAMES))
    changed["backbones"][BACKBONE]["transformation"]["linear"]["by_transformation"]["jpeg"] = 0.123
    assert len(add_rows(rows_of(changed), tmp_path / "to").refused) == 1


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], Path]:
    def edited(path: Path) -> Path:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        return path

    return edited


def key_twice(content: dict[str, Any]) -> None:
    content["scores"].append(content["scores"][0])


def summed(content: dict[str, Any]) -> None:
    """An edited number, with the checksum that it should have."""
    content["scores"][0]["value"] = 0.999
    content["checksum"] = Row.model_validate(content).sum()


def huge_number(content: dict[str, Any]) -> None:
    cells = {"section": "s", "name": "n", "caption": "c", "rows": [[10**400]]}
    cells["columns"] = [{"name": "v", "heading": "v", "kind": "count", "interval": False}]
    content["tables"].append(cells)


def written(text: str) -> Callable[[Path], Path]:
    def replaced(path: Path) -> Path:
        path.write_text(text)
        return path

    return replaced


def moved(path: Path) -> Path:
    new = path.parent.parent / "other-01234567" / path.name
    new.parent.mkdir()
    return path.rename(new)


def link(path: Path) -> Path:
    path.symlink_to(path.rename(path.parents[4] / "elsewhere.json"))
    return path


def linked_folder(path: Path) -> Path:
    path.parent.symlink_to(path.parent.rename(path.parents[4] / "elsewhere"))
    return path.parent


def pipe(path: Path) -> Path:
    path.unlink()
    os.mkfifo(path)
    return path


TAMPERED = {
    "number": edit(lambda content: content["scores"][0].update(value=0.999)),
    "number with checksum": edit(summed),
    "unknown field": edit(lambda content: content["backbone"].update(remark="hello")),
    "not finite": edit(lambda content: content["scores"][0].update(value=float("inf"))),
    "half a character": edit(lambda content: content["study"].update(settings={"probes": {"note": "\ud800"}})),
    "key twice": edit(key_twice),
    "huge number": edit(huge_number),
    "moved": moved,
    "renamed": lambda path: path.rename(path.with_name("0" * 16 + ".json")),
    "link": link,
    "linked folder": linked_folder,
    "oversized": written(" " * (directory.MAX_BYTES + 1)),
    "deep": written("[" * 100_000),
    "pipe": pipe,
}


@pytest.mark.parametrize("tamper", TAMPERED.values(), ids=TAMPERED)
def test_check_names_each_bad_file_and_pull_leaves_it(
    tamper: Callable[[Path], Path], there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = len(read_directory(there).rows)
    bad = tamper(first(there))
    assert main(["share", "rows", "check", str(there), "--json"]) == 1
    answer = the_json(capsys)
    assert (list(answer["bad"]), answer["rows"]) == ([str(bad)], count - 1)
    assert main(["share", "rows", "pull", str(there), "--to", str(tmp_path / "copy"), "--json"]) == 1
    assert len(the_json(capsys)["added"]) == answer["rows"]
    assert read_directory(tmp_path / "copy").bad == {}


def test_nothing_is_written_through_links(there: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "results").symlink_to(tmp_path / "outside")
    with pytest.raises(UnsafeFileError):
        add_rows(read_directory(there).rows.values(), tmp_path / "linked")
    with pytest.raises(UnsafeFileError):
        read_directory(tmp_path / "linked")
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize("name", ["../../x", "a/b\\c\0", "x" * 3000, "."])
def test_names_stay_inside(name: str, tmp_path: Path) -> None:
    made = results(suite=name)
    made["identity"]["sources"] = name
    made["backbones"] = {name: made["backbones"][BACKBONE]} | made["backbones"]
    rows = rows_of(made)
    assert rows[0].backbone.name == name
    add_rows(rows, tmp_path / "to")
    found = read_directory(tmp_path / "to")
    assert found.bad == {}
    assert sorted(found.rows) == sorted(row.path for row in rows)

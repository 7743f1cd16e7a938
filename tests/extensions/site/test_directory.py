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
from substyle.errors import ConfigError, MissingError
from substyle.files import UnsafeFileError


def results(**changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """A results.json with the identity that a run has."""
    made = drop(real_results(), "settings", "study")
    return made | {"identity": {"sources": "pets", "photographs": "0123456789abcdef"}} | changes


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
    assert {cells[0]: cells[3] for cells in table.rows} == own["transformation"]["linear"]["by_transformation"]


def test_equal_rows_change_nothing_and_other_numbers_are_refused(there: Path) -> None:
    rows = rows_of(results(created="2030-01-01T00:00:00Z"))
    before = {path: path.read_bytes() for path in there.rglob("*.json")}
    done = add_rows(rows, there)
    assert (done.added, done.refused, len(done.unchanged)) == ([], {}, len(rows))
    stamps = {"stamps": {f"probes/{stamp_of}": "0" * 16 for stamp_of in slugs()}}
    add_rows(rows_of(results(**stamps)), there)
    changed = results(**stamps)
    changed["backbones"][BACKBONE]["transformation"]["linear"]["accuracy"] = {"value": 0.123}
    done = add_rows(rows_of(changed), there)
    assert list(done.refused.values()) == ["other numbers for the same stamp are there"]
    assert {path: path.read_bytes() for path in before} == before


def recorded(**changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """Results with stamps."""
    return results(stamps={f"probes/{name}": "0" * 16 for name in slugs()}, **changes)


def test_other_names_notes_and_versions_are_no_other_numbers(tmp_path: Path) -> None:
    add_rows(rows_of(recorded()), tmp_path / "to")
    changed = recorded(note="a note", name="another name", version="9", environment={"torch": "9"})
    done = add_rows(rows_of(changed), tmp_path / "to")
    assert (done.added, done.refused, len(done.unchanged)) == ([], {}, len(NAMES))
    changed["backbones"][BACKBONE]["transformation"]["linear"]["by_transformation"]["jpeg"] = 0.123
    assert len(add_rows(rows_of(changed), tmp_path / "to").refused) == 1


def slugs() -> list[str]:
    from substyle.engine.store.layout import slug

    return [slug(name) for name in NAMES]


def _edit(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def _summed(content: dict[str, Any]) -> None:
    """Give edited content the checksum that it should have."""
    content["checksum"] = Row.model_validate(content).sum()


def edited_number(path: Path) -> Path:
    return _edit(path, lambda content: content["scores"][0].update(value=0.999))


def edited_number_with_checksum(path: Path) -> Path:
    return _edit(path, lambda content: (content["scores"][0].update(value=0.999), _summed(content)))


def unknown_field(path: Path) -> Path:
    return _edit(path, lambda content: content["backbone"].update(remark="hello"))


def not_finite(path: Path) -> Path:
    return _edit(path, lambda content: content["scores"][0].update(value=float("inf")))


def overflow(path: Path) -> Path:
    path.write_text(path.read_text().replace('"note": null', '"note": 1e999'))
    return path


def half_a_character(path: Path) -> Path:
    return _edit(path, lambda content: content["study"].update(settings={"probes": {"note": "\ud800"}}))


def key_twice(path: Path) -> Path:
    return _edit(path, lambda content: content["scores"].append(content["scores"][0]))


def huge_number(path: Path) -> Path:
    cells = {"section": "s", "name": "n", "caption": "c", "rows": [[10**400]]}
    cells["columns"] = [{"name": "v", "heading": "v", "kind": "count", "interval": False}]
    return _edit(path, lambda content: content["tables"].append(cells))


def wrong_cell(path: Path) -> Path:
    return _edit(path, lambda content: content["tables"][0]["rows"][0].append(1))


def moved(path: Path) -> Path:
    new = path.parent.parent / "other-01234567" / path.name
    new.parent.mkdir()
    return path.rename(new)


def renamed(path: Path) -> Path:
    return path.rename(path.with_name("0" * 16 + ".json"))


def other_name(path: Path) -> Path:
    return path.rename(path.with_name("row.json"))


def link(path: Path) -> Path:
    target = path.rename(path.parents[4] / "elsewhere.json")
    path.symlink_to(target)
    return path


def linked_folder(path: Path) -> Path:
    target = path.parent.rename(path.parents[4] / "elsewhere")
    path.parent.symlink_to(target)
    return path.parent


def oversized(path: Path) -> Path:
    with path.open("a") as file:
        file.write(" " * directory.MAX_BYTES)
    return path


def deep(path: Path) -> Path:
    path.write_text("[" * 100_000)
    return path


def pipe(path: Path) -> Path:
    path.unlink()
    os.mkfifo(path)
    return path


def beside(path: Path) -> Path:
    new = path.parents[2] / "README.md"
    new.write_text("hello")
    return new


TAMPERED = (
    edited_number, edited_number_with_checksum, unknown_field, not_finite, overflow, half_a_character, wrong_cell,
    key_twice, huge_number, moved, renamed, other_name, link, linked_folder, oversized, deep, pipe, beside,
)  # fmt: skip


@pytest.mark.parametrize("tamper", TAMPERED, ids=lambda tamper: tamper.__name__)
def test_check_names_each_bad_file_and_pull_leaves_it(
    tamper: Callable[[Path], Path], there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = len(read_directory(there).rows)
    bad = tamper(first(there))
    assert main(["share", "rows", "check", str(there), "--json"]) == 1
    answer = the_json(capsys)
    assert (list(answer["bad"]), answer["rows"]) == ([str(bad)], count - (tamper is not beside))
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


def test_arguments_are_checked(there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["share", "rows", "add", str(tmp_path)]) == MissingError.exit_code
    assert main(["share", "rows", "check", str(there), "--to", str(tmp_path)]) == ConfigError.exit_code
    with pytest.raises(ConfigError, match="directory of results"):
        read_directory(tmp_path)
    monkeypatch.setattr(directory, "MAX_FILES", 2)
    with pytest.raises(ConfigError, match="at most 2 files"):
        read_directory(there)


@pytest.mark.parametrize("name", ["../../x", "a/b\\c\0", "<b>&", "x" * 3000, ".", "\u202e\x1b[2J"])
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

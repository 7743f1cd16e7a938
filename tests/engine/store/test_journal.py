from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from substyle.engine.store import journal
from substyle.kernels.errors import SubstyleError


def record(shard: int, backbone: str = "b", *names: str) -> journal.Record:
    notes = (
        journal.ImageNote(shard * 4, 10, 20, "", "00", ("grayscale",)),
        journal.ImageNote(shard * 4 + 1, 0, 0, 'a "bad" image: ü', "", ()),
    )
    checksums = {name: f"{shard}{name}" for name in names or ("identity", "jpeg")}
    return journal.Record(shard, shard * 4, shard * 4 + 2, backbone, checksums, notes, 1.5, "run")


def test_round_trip() -> None:
    one = record(3)
    assert journal.Record.from_json(one.to_json()) == one


def test_written_records_are_read_in_order(tmp_path: Path) -> None:
    for shard in (2, 0, 1):
        journal.write(tmp_path, record(shard))
    assert journal.read(tmp_path) == [record(0), record(1), record(2)]


def test_compaction_changes_nothing_that_is_read(tmp_path: Path) -> None:
    for shard in range(5):
        journal.write(tmp_path, record(shard))
    before = journal.read(tmp_path)
    journal.compact(tmp_path, at=6)
    assert len(list((tmp_path / journal.FOLDER).glob("*.json"))) == 5
    journal.compact(tmp_path, at=5)
    assert not list((tmp_path / journal.FOLDER).glob("*.json"))
    assert journal.read(tmp_path) == before
    journal.write(tmp_path, record(9))
    journal.compact(tmp_path, at=1)
    assert journal.read(tmp_path) == [*before, record(9)]


def test_a_crash_between_compaction_and_removal_is_harmless(tmp_path: Path) -> None:
    journal.write(tmp_path, record(0))
    (path,) = (tmp_path / journal.FOLDER).glob("*.json")
    text = path.read_text()
    journal.compact(tmp_path, at=1)
    path.write_text(text)
    assert journal.read(tmp_path) == [record(0)]


def test_transformations_added_later_have_a_record_of_their_own(tmp_path: Path) -> None:
    journal.write(tmp_path, record(0, "b", "identity", "jpeg"))
    journal.write(tmp_path, record(0, "b", "pixelate", "swirl"))
    assert [set(r.checksums) for r in journal.read(tmp_path)] == [{"identity", "jpeg"}, {"pixelate", "swirl"}]


def test_same_record_written_again_replaces_it(tmp_path: Path) -> None:
    journal.write(tmp_path, record(0))
    again = dataclasses.replace(record(0), seconds=9.0)
    journal.write(tmp_path, again)
    assert journal.read(tmp_path) == [again]


@pytest.mark.parametrize("text", ["", "{", "{}", '{"shard": 1}', "null", "[]"])
def test_a_broken_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / journal.FOLDER).mkdir()
    (tmp_path / journal.FOLDER / "x.json").write_text(text)
    with pytest.raises(SubstyleError, match="journal"):
        journal.read(tmp_path)


def test_no_journal_yet(tmp_path: Path) -> None:
    assert journal.read(tmp_path) == []

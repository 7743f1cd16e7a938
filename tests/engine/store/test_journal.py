from __future__ import annotations

from pathlib import Path

import pytest

from substyle.engine.store import journal
from substyle.engine.store.files import digest
from substyle.kernels.errors import SubstyleError


def record(shard: int, backbone: str = "b", *names: str) -> journal.Record:
    notes = (
        journal.ImageNote(shard * 4, 10, 20, "", "00" * 72, ("grayscale",)),
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


@pytest.mark.parametrize("compacted", [False, True])
def test_withdrawn_transformations_are_gone_and_nothing_else(tmp_path: Path, compacted: bool) -> None:
    for shard in range(3):
        journal.write(tmp_path, record(shard))
        journal.write(tmp_path, record(shard, "other"))
    if compacted:
        journal.compact(tmp_path, at=1)
    journal.withdraw(tmp_path, {(1, "b"): {"jpeg"}, (2, "other"): {"identity", "jpeg"}})
    left = {(r.shard, r.backbone): set(r.checksums) for r in journal.read(tmp_path)}
    both = {"identity", "jpeg"}
    assert left == {(0, "b"): both, (0, "other"): both, (1, "b"): {"identity"}, (1, "other"): both, (2, "b"): both}
    journal.write(tmp_path, record(1, "b", "jpeg"))
    assert sum(set(r.checksums) == {"jpeg"} for r in journal.read(tmp_path)) == 1


def test_withdrawing_a_damaged_file_keeps_the_others(tmp_path: Path) -> None:
    journal.write(tmp_path, record(0))
    journal.compact(tmp_path, at=1)
    journal.write(tmp_path, record(1))
    (segment,) = (tmp_path / journal.FOLDER).glob("*.parquet")
    segment.write_bytes(segment.read_bytes()[:-1])
    with pytest.raises(SubstyleError, match="not what was written"):
        journal.read(tmp_path)
    journal.withdraw(tmp_path, {}, [segment])
    assert journal.read(tmp_path) == [record(1)]


@pytest.mark.parametrize("text", ["", "{", "{}", '{"shard": 1}', "null", "[]", '{"images": [1]}', '{"images": "ab"}'])
@pytest.mark.parametrize("named", [False, True])
def test_a_broken_record_is_named(tmp_path: Path, text: str, named: bool) -> None:
    (tmp_path / journal.FOLDER).mkdir()
    name = f"x-{digest(text.encode())}.json" if named else "x.json"
    (tmp_path / journal.FOLDER / name).write_text(text)
    with pytest.raises(SubstyleError, match=f"journal/{name}"):
        journal.read(tmp_path)


def test_no_journal_yet(tmp_path: Path) -> None:
    assert journal.read(tmp_path) == []

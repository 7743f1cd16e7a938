from __future__ import annotations

import io
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.conftest import put

from substyle.engine.store import compaction, files, journal, records
from substyle.engine.store.files import digest
from substyle.engine.store.records import FileNote, ImageNote, Record
from substyle.errors import SubstyleError
from substyle.pipelines.storage import Place, place


def record(shard: int, backbone: str = "b", *names: str) -> Record:
    notes = (
        ImageNote(shard * 4, 10, 20, "", "00" * 72, ("grayscale",)),
        ImageNote(shard * 4 + 1, 0, 0, 'a "bad" image: ü', "", ()),
    )
    checksums = {name: f"{shard}{name}" for name in names or ("identity", "jpeg")}
    return Record(shard, shard * 4, shard * 4 + 2, backbone, checksums, notes, 1.5, "run")


def test_round_trip() -> None:
    one = record(3)
    assert Record.from_json(one.to_json()) == one


def test_written_records_are_read_in_order(home: Place) -> None:
    for shard in (2, 0, 1):
        journal.write(home, record(shard))
    assert journal.read(home) == [record(0), record(1), record(2)]


def test_compaction_changes_nothing_that_is_read(home: Place) -> None:
    for shard in range(5):
        journal.write(home, record(shard))
    before = journal.read(home)
    compaction.compact(home, at=6)
    assert len(list((home / journal.FOLDER).glob("*.json"))) == 5
    compaction.compact(home, at=5)
    assert not list((home / journal.FOLDER).glob("*.json"))
    assert journal.read(home) == before
    journal.write(home, record(9))
    compaction.compact(home, at=1)
    assert journal.read(home) == [*before, record(9)]


def test_a_crash_between_compaction_and_removal_is_harmless(home: Place) -> None:
    journal.write(home, record(0))
    (path,) = (home / journal.FOLDER).glob("*.json")
    text = path.read_bytes()
    compaction.compact(home, at=1)
    put(path, text)
    assert journal.read(home) == [record(0)]


def test_transformations_added_later_have_a_record_of_their_own(disk: Place) -> None:
    journal.write(disk, record(0, "b", "identity", "jpeg"))
    journal.write(disk, record(0, "b", "pixelate", "swirl"))
    assert {(*r.checksums,) for r in journal.read(disk)} == {("identity", "jpeg"), ("pixelate", "swirl")}


@pytest.mark.parametrize("compacted", [False, True])
def test_withdrawn_transformations_are_gone_and_nothing_else(disk: Place, compacted: bool) -> None:
    for shard in range(3):
        journal.write(disk, record(shard))
        journal.write(disk, record(shard, "other"))
    if compacted:
        compaction.compact(disk, at=1)
    compaction.withdraw(disk, {(1, "b"): {"jpeg"}, (2, "other"): {"identity", "jpeg"}})
    left = {(r.shard, r.backbone): set(r.checksums) for r in journal.read(disk)}
    both = {"identity", "jpeg"}
    assert left == {(0, "b"): both, (0, "other"): both, (1, "b"): {"identity"}, (1, "other"): both, (2, "b"): both}
    journal.write(disk, record(1, "b", "jpeg"))
    assert sum(set(r.checksums) == {"jpeg"} for r in journal.read(disk)) == 1


def test_withdrawing_leaves_other_files_of_a_shard_alone(disk: Place) -> None:
    """Transformations that were added later have files of their own, for the same shards and backbone."""
    for name in ("identity", "jpeg"):
        for shard in range(2):
            journal.write(disk, record(shard, "b", name))
        compaction.compact(disk, at=1)
    compaction.withdraw(disk, {(0, "b"): {"jpeg"}})
    left = sorted((r.shard, *r.checksums) for r in journal.read(disk))
    assert left == [(0, "identity"), (1, "identity"), (1, "jpeg")]


def test_withdrawing_a_damaged_file_keeps_the_others(disk: Place) -> None:
    journal.write(disk, record(0))
    compaction.compact(disk, at=1)
    journal.write(disk, record(1))
    (table,) = journal.files(disk).tables
    put(table, table.read_bytes()[:-1])
    with pytest.raises(SubstyleError, match=f"{table.name}.*run substyle verify"):
        journal.read(disk)
    compaction.withdraw(disk, {}, [table])
    assert journal.read(disk) == [record(1)]


@pytest.mark.parametrize("text", ["", "{", "{}", '{"shard": 1}', "null", "[]", '{"images": [1]}', '{"images": "ab"}'])
@pytest.mark.parametrize("named", [False, True])
def test_a_broken_record_is_named(tmp_path: Path, text: str, named: bool) -> None:
    (tmp_path / journal.FOLDER).mkdir()
    name = f"x-{digest(text.encode())}.json" if named else "x.json"
    (tmp_path / journal.FOLDER / name).write_text(text)
    with pytest.raises(SubstyleError, match=f"journal/{name}"):
        journal.read(place(tmp_path))


def test_no_journal_yet(disk: Place) -> None:
    assert journal.read(disk) == []


def test_the_index_is_what_the_records_say(tmp_path: Path) -> None:
    """Random journals, compacted now and then, against a dictionary of sets."""
    rng = random.Random(0)
    names = ("identity", "jpeg", "swirl")
    for case in range(10):
        store = place(tmp_path / f"{case}")
        expected: dict[tuple[int, str], set[str]] = {}
        for _ in range(rng.randint(0, 40)):
            shard, backbone = rng.randrange(8), rng.choice("ab")
            some = rng.sample(names, rng.randint(1, 3))
            journal.write(store, record(shard, backbone, *some))
            expected.setdefault((shard, backbone), set()).update(some)
            compaction.compact(store, at=rng.choice([1, 4, 100]))
        found = journal.read_index(store)
        for backbone in "abc":
            done_ST = found.finished(backbone, names, 8)
            rows = [[name in expected.get((shard, backbone), set()) for name in names] for shard in range(8)]
            assert done_ST.tolist() == rows
            listed = {(shard, name) for shard, _, names in found.of([backbone]).records() for name in names}
            assert listed == {(shard, name) for shard in range(8) for name in expected.get((shard, backbone), ())}
        assert len(found) == len(journal.read(store))


def test_a_file_holds_no_more_than_is_wanted_in_memory_at_once(disk: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    size = journal.write(disk, record(0))
    for shard in range(1, 10):
        journal.write(disk, record(shard))
    monkeypatch.setattr(compaction, "BYTES", 20 * size)
    compaction.compact(disk, at=100)
    assert journal.has_loose(disk)
    monkeypatch.setattr(compaction, "BYTES", 9 * size // 2)
    compaction.compact(disk, at=100)
    assert not journal.has_loose(disk)
    assert len(journal.files(disk).tables) == 3
    assert [r.shard for r in journal.read(disk)] == list(range(10))


@pytest.mark.parametrize("compacted", [0, 2, 4])
def test_notes_are_what_records_say_of_images(disk: Place, compacted: int) -> None:
    again = replace(record(1, "z", "swirl"), images=(ImageNote(4, 10, 20, "", "01" * 72, ("swirl",)),))
    for i, one in enumerate([record(2), record(0), again, record(1)]):
        if i == compacted:
            compaction.compact(disk, at=1)
        journal.write(disk, one)
    if compacted == 4:
        compaction.compact(disk, at=1)
    found = journal.read_notes(disk, np.array([0, 1, 2, 4, 5, 8, 9]))
    assert found.known_N.tolist() == [True, True, False, True, True, True, True]
    assert found.ok_N.tolist() == found.seen_N.tolist() == [True, False, False, True, False, True, False]
    assert found.reasons == dict.fromkeys([1, 4, 6], 'a "bad" image: ü')
    assert found.small_NRC[[0, 3]].max(axis=(1, 2)).tolist() == [0, 1]  # the last backbone's
    assert {name: there_N.tolist() for name, there_N in found.indistinct.items()} == {
        "grayscale": [True, False, False, True, False, True, False],
        "swirl": [False, False, False, True, False, False, False],
    }
    other = journal.read_notes(disk, np.array([2, 5]))  # notes on other rows are left out
    assert (other.known_N.tolist(), other.ok_N.tolist(), list(other.reasons)) == ([False, True], [False, False], [1])


def with_files(shard: int, *notes: FileNote) -> Record:
    return replace(record(shard, "b", "identity", "phone"), files=notes)


@pytest.mark.parametrize("compacted", [0, 1, 2, 3])
def test_notes_on_files_are_what_records_say(disk: Place, compacted: int) -> None:
    """Also if some records have none, and some are compacted."""
    first = with_files(0, FileNote(0, "phone", "", "ab" * 16, 7), FileNote(1, "phone", "no file"))
    again = replace(first, backbone="z", files=(FileNote(0, "phone", "damaged", "ab" * 16, 0), *first.files[1:]))
    for i, one in enumerate([record(1), first, again]):
        if i == compacted:
            compaction.compact(disk, at=1)
        journal.write(disk, one)
    if compacted == 3:
        compaction.compact(disk, at=1)
    assert sorted(journal.read(disk), key=lambda r: (r.backbone, r.shard)) == [first, record(1), again]
    (found,) = journal.read_notes(disk, np.array([0, 1, 4, 5])).files.values()
    assert found.known_N.tolist() == [True, True, False, False]
    assert found.reasons == {0: "damaged", 1: "no file"}
    assert found.left_out_N.tolist() == [True, True, False, False]
    assert journal.hex_of(found.content_N2) == ["ab" * 16, "", "", ""]
    assert found.mark_N.tolist() == [7, 0, 0, 0]
    assert journal.read_notes(disk, np.array([4, 5])).files == {}  # notes on other rows are left out


def test_files_go_with_their_transformation(disk: Place) -> None:
    journal.write(disk, with_files(0, FileNote(0, "phone", "", "ab" * 16, 7)))
    compaction.withdraw(disk, {(0, "b"): {"phone"}})
    (left,) = journal.read(disk)
    assert (list(left.checksums), left.files) == (["identity"], ())


def test_files_outside_a_shard_or_of_another_length_are_refused(disk: Place) -> None:
    with pytest.raises(ValueError, match="outside rows 0 to 2"):
        with_files(0, FileNote(2, "phone"))
    journal.write(disk, with_files(0, FileNote(0, "phone", "", "ab" * 16)))
    compaction.compact(disk, at=1)
    (path,) = journal.files(disk).tables
    rows = pq.read_table(io.BytesIO(path.read_bytes())).to_pylist()
    for change in ({"content": b"short"}, {"reason": None}):
        spoilt = [{**row, "files": [{**note, **change} for note in row["files"]]} for row in rows]
        with pytest.raises(ValueError, match=r"content: expected values of 16 bytes|null values"):
            records.decode(files.encoded(pa.Table.from_pylist(spoilt, records.SCHEMA)))

from __future__ import annotations

import io
import random
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from substyle.engine.store import compaction, files, journal, records
from substyle.engine.store.records import FileNote, ImageNote, Record
from substyle.pipelines.storage import Place, place


def record(shard: int, backbone: str = "b", *names: str) -> Record:
    notes = (
        ImageNote(shard * 4, 10, 20, "", "00" * 72, ("grayscale",)),
        ImageNote(shard * 4 + 1, 0, 0, 'a "bad" image: ü', "", ()),
    )
    checksums = {name: f"{shard}{name}" for name in names or ("identity", "jpeg")}
    return Record(shard, shard * 4, shard * 4 + 2, backbone, checksums, notes, 1.5, "run")


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


def with_files(shard: int, *notes: FileNote) -> Record:
    return replace(record(shard, "b", "identity", "phone"), files=notes)


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

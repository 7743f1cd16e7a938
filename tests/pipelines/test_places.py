"""Every place does what `Place` says, on a disk and in a bucket; and on a disk, no link leads out of a store."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from substyle.files import UnsafeFileError
from substyle.pipelines.storage import LocalPlace, ObjectPlace, Place, at_once, each, place

FILES = ("a/zarr.json", "b/c/0/0", "b/zarr.json", "notes-7.txt")


@pytest.fixture
def store(home: Place) -> Place:
    """A place with `FILES`, each of which contains its name; beside it one whose name begins alike."""
    for path in (*(home / "s" / name for name in FILES), home / "s2" / "other.txt"):
        path.write("/".join(path.relative_to(home / "s").parts if path.parent.name != "s2" else ()).encode())
    return home / "s"


def names(found: object, store: Place) -> list[str]:
    return [each.relative_to(store).as_posix() for each in found]  # type: ignore[attr-defined]


# --- names ------------------------------------------------------------------------------------------------------------


def test_names(home: Place) -> None:
    there = home / "s.zarr" / "a-7.json"
    assert (there.name, there.stem, there.suffix) == ("a-7.json", "a-7", ".json")
    assert there.parent == home / "s.zarr"
    assert there.parent.parent == home
    assert there.relative_to(home).as_posix() == "s.zarr/a-7.json"
    assert str(there) == f"{home}/s.zarr/a-7.json"
    assert there.absolute() == there
    assert (home / "a") < (home / "b")
    assert len({there, home / "s.zarr/a-7.json", home}) == 2
    with pytest.raises(ValueError, match="other"):
        there.relative_to(home / "other")


def test_a_place_is_found_again_by_its_text_and_by_another_process(store: Place) -> None:
    there = store / "notes-7.txt"
    assert place(there) is there
    assert place(str(there)) == there
    again = pickle.loads(pickle.dumps(there))
    assert (type(again), again) == (type(there), there)
    assert again.read_bytes() == b"notes-7.txt"


def test_a_path_is_a_place_once_it_was_converted(tmp_path: Path) -> None:
    there = place(tmp_path)
    assert isinstance(there, LocalPlace)
    assert there == tmp_path
    assert os.fspath(there) == str(tmp_path)
    assert isinstance((there / "a").parent, LocalPlace)


@pytest.mark.parametrize("name", ["..", "../s2/other.txt", "/etc", "a/../../s2", "", ".", "a//b", "a\\b", "a\0b"])
def test_a_name_that_leaves_a_folder_is_refused(store: Place, name: str) -> None:
    with pytest.raises(UnsafeFileError):
        store.inside(name)
    assert store.inside("b/zarr.json") == store / "b" / "zarr.json"


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_file_is_read_whole_and_in_ranges(store: Place) -> None:
    there, data = store / "b" / "c" / "0" / "0", b"b/c/0/0"
    assert there.read_bytes() == data
    for tail in (1, 3, 7, 99):
        with there.reading(tail) as file:
            assert (file.size, file.tail) == (7, data[-tail:])
    with there.reading(1) as file:
        for offset, size, expected in ((0, 7, data), (2, 3, b"c/0"), (5, 9, b"/0")):
            buffer = bytearray(size)
            assert file.fill(memoryview(buffer), offset) == len(expected)
            assert bytes(buffer[: len(expected)]) == expected


READS: dict[str, Callable[[Place, Place], object]] = {
    "bytes": lambda there, root: there.read_bytes(),
    "reading": lambda there, root: there.reading(1).__enter__(),
}


@pytest.mark.parametrize("read", READS)
def test_a_missing_file_is_named(store: Place, read: str) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        READS[read](store / "b" / "nothing", store)


def test_an_empty_file(store: Place) -> None:
    (store / "x").write(b"")
    with (store / "x").reading(9) as file:
        assert (file.size, file.tail) == (0, b"")


def test_an_object_that_is_replaced_is_not_read_on(bucket: Place) -> None:
    (bucket / "x").write(b"old")
    with (bucket / "x").reading(1) as file:
        (bucket / "x").write(b"new")
        with pytest.raises(OSError, match="has changed"):
            file.fill(memoryview(bytearray(3)), 0)


def test_what_is_there(store: Place) -> None:
    there = store / "notes-7.txt"
    assert there.is_file()
    for other in (store / "nothing", store / "b" / "c"):
        assert not other.is_file()


def test_a_mark_is_that_of_the_file(store: Place) -> None:
    there = store / "notes-7.txt"
    before = there.mark()
    assert there.mark() == before
    there.write(b"notes-8.txt")
    assert before is None or there.mark() != before


# --- listing ----------------------------------------------------------------------------------------------------------


def test_lists(store: Place) -> None:
    assert sorted(names(store.sizes(), store)) == list(FILES)
    assert names(store.files(".txt"), store) == ["notes-7.txt"]
    assert store.files(".json") == (store / "nothing").files(".json") == []
    assert names(sorted(store.glob("*/zarr.json")), store) == ["a/zarr.json", "b/zarr.json"]
    assert names(store.glob("b/*/*/0"), store) == ["b/c/0/0"]
    assert names(store.glob("notes-[0-9].txt"), store) == ["notes-7.txt"]
    assert list(store.glob("nothing/*")) == list((store / "nothing").sizes()) == []


def test_files_are_listed_in_order(home: Place) -> None:
    for number in (2, 10, 1):
        (home / f"{number:05d}.json").write(b"")
    assert [path.stem for path in home.files(".json")] == ["00001", "00002", "00010"]


def test_sizes(store: Place) -> None:
    sizes = store.sizes()
    assert [sizes.get(store / name) for name in (*FILES, "nothing", "b")] == [11, 7, 11, 11, None, None]


# --- writing ----------------------------------------------------------------------------------------------------------


def test_writing_replaces(store: Place) -> None:
    there = store / "a" / "zarr.json"
    for data in (b"1", b"", b"two"):
        there.write(data)
        assert there.read_bytes() == data
    assert sorted(names(store.sizes(), store)) == list(FILES)


def test_the_same_is_written_once_more(store: Place) -> None:
    for _ in range(2):
        (store / "x").write_once(b"1")
    assert (store / "x").read_bytes() == b"1"


def test_folders_are_made_for_a_file(home: Place) -> None:
    for data in (b"1", b"2"):
        (home / "x" / "y" / "z").write(data)
    assert names(home.sizes(), home) == ["x/y/z"]
    assert (home.free_bytes() or 1) > 0


def test_removal(store: Place) -> None:
    for _ in range(2):
        (store / "notes-7.txt").remove()
    assert sorted(names(store.sizes(), store)) == list(FILES[:-1])
    assert (store.parent / "s2" / "other.txt").is_file()


def test_readers_see_one_content_or_the_other(home: Place) -> None:
    there, contents = home / "x", [bytes([i]) * 100_000 for i in range(2)]
    there.write(contents[0])

    def write() -> None:
        for i in range(20):
            there.write(contents[i % 2])

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        assert there.read_bytes() in contents
    writer.join()


# --- many at once -----------------------------------------------------------------------------------------------------


def test_many_places_at_once(store: Place) -> None:
    paths = [store / name for name in FILES]
    assert at_once(lambda path: path.read_bytes().decode(), paths) == list(FILES)
    assert at_once(lambda path: path, []) == []
    with pytest.raises(FileNotFoundError):
        at_once(lambda path: path.read_bytes(), [*paths, store / "nothing"])


def test_a_disk_is_read_by_one_thread_and_a_bucket_by_several() -> None:
    def threads(requests: int) -> int:
        return len(set(each(lambda _: (gate.wait(), threading.get_ident())[1], range(2), requests)))

    gate = threading.Barrier(1)
    assert threads(LocalPlace.requests) == 1
    gate = threading.Barrier(2)
    assert threads(ObjectPlace.requests) == 2


# --- links on a disk --------------------------------------------------------------------------------------------------


@pytest.fixture
def linked(tmp_path: Path) -> LocalPlace:
    """A store with a link to a file and one to a folder, both outside."""
    outside = tmp_path / "outside"
    (outside / "0").mkdir(parents=True)
    (outside / "0" / "0").write_bytes(b"secret")
    store = LocalPlace(tmp_path, "s")
    store.mkdir()
    (store / "file").symlink_to(outside / "0" / "0")
    (store / "folder").symlink_to(outside)
    return store


@pytest.mark.parametrize("name", ["file", "folder/0/0"])
def test_links_are_not_followed(linked: LocalPlace, name: str) -> None:
    with pytest.raises(UnsafeFileError, match="link"), (linked / "file").reading(1):
        pass
    with pytest.raises(UnsafeFileError, match="link"):
        linked.inside(name)
    with pytest.raises(UnsafeFileError, match="link"):
        linked.require_no_links(1)
    assert (linked.parent / "outside" / "0" / "0").read_bytes() == b"secret"


def test_a_link_is_replaced_or_removed_and_not_its_target(linked: LocalPlace) -> None:
    (linked / "file").write(b"x")
    assert not (linked / "file").is_symlink()
    (linked / "folder").remove()
    (linked / "real").mkdir()
    with pytest.raises(IsADirectoryError):
        (linked / "real").remove()
    (linked / "real").rmdir()
    assert [path.name for path in linked.iterdir()] == ["file"]
    assert (linked.parent / "outside" / "0" / "0").read_bytes() == b"secret"


def test_a_folder_and_a_link_are_no_files_of_a_store(linked: LocalPlace) -> None:
    assert linked.sizes() == {linked / "file": len(os.fsencode(os.readlink(linked / "file")))}

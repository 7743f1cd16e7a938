"""Every place does what `Place` says, on a disk and in a bucket; and on a disk, no link leads out of a store."""

from __future__ import annotations

import pytest

from substyle.files import UnsafeFileError
from substyle.pipelines.storage import Place

FILES = ("a/zarr.json", "b/c/0/0", "b/zarr.json", "notes-7.txt")


@pytest.fixture
def store(home: Place) -> Place:
    """A place with `FILES`, each of which contains its name; beside it one whose name begins alike."""
    for path in (*(home / "s" / name for name in FILES), home / "s2" / "other.txt"):
        path.write("/".join(path.relative_to(home / "s").parts if path.parent.name != "s2" else ()).encode())
    return home / "s"


def names(found: object, store: Place) -> list[str]:
    return [each.relative_to(store).as_posix() for each in found]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["..", "../s2/other.txt", "/etc", "a/../../s2", "", ".", "a//b", "a\\b", "a\0b"])
def test_a_name_that_leaves_a_folder_is_refused(store: Place, name: str) -> None:
    with pytest.raises(UnsafeFileError):
        store.inside(name)
    assert store.inside("b/zarr.json") == store / "b" / "zarr.json"


def test_folders_are_made_for_a_file(home: Place) -> None:
    for data in (b"1", b"2"):
        (home / "x" / "y" / "z").write(data)
    assert names(home.sizes(), home) == ["x/y/z"]
    assert (home.free_bytes() or 1) > 0


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

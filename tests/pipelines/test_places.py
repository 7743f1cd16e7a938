"""Every place does what `Place` says, on a disk and in a bucket; and on a disk, no link leads out of a store."""

from __future__ import annotations

import pytest

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


# --- names ------------------------------------------------------------------------------------------------------------


# --- reading ----------------------------------------------------------------------------------------------------------


# --- listing ----------------------------------------------------------------------------------------------------------


def test_lists(store: Place) -> None:
    assert sorted(names(store.sizes(), store)) == list(FILES)
    assert names(store.files(".txt"), store) == ["notes-7.txt"]
    assert store.files(".json") == (store / "nothing").files(".json") == []
    assert names(sorted(store.glob("*/zarr.json")), store) == ["a/zarr.json", "b/zarr.json"]
    assert names(store.glob("b/*/*/0"), store) == ["b/c/0/0"]
    assert names(store.glob("notes-[0-9].txt"), store) == ["notes-7.txt"]
    assert list(store.glob("nothing/*")) == list((store / "nothing").sizes()) == []


# --- writing ----------------------------------------------------------------------------------------------------------


# --- many at once -----------------------------------------------------------------------------------------------------


# --- links on a disk --------------------------------------------------------------------------------------------------

"""Lists of photographs, and stores of several sources, that change between two commands."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.conftest import slow_after
from tests.scenarios.scene import Scene, numbers, rows, write

# --- lists ------------------------------------------------------------------------------------------------------------


class List:
    def __init__(self, scene: Scene) -> None:
        self.path = scene.root / "photos.csv"
        self.rows = {
            path.relative_to(scene.root).as_posix(): [path.parent.name, path.parent.parent.name]
            for path in sorted(scene.photos.rglob("*.jpg"))
        }
        self.save()

    def save(self) -> None:
        lines = [f"{path},{label},{split}\n" for path, (label, split) in self.rows.items()]
        self.path.write_text("path,label,split\n" + "".join(lines))

    @property
    def first(self) -> str:
        return next(path for path in self.rows if "/train/" in path)


def _label(table: List) -> None:
    table.rows[table.first][0] = "odd"


def _split(table: List) -> None:
    table.rows[table.first][1] = "test"


def _unlabel(table: List) -> None:
    table.rows[table.first][0] = ""


def _remove(table: List) -> None:
    del table.rows[table.first]


@pytest.mark.parametrize(
    "change", slow_after(2, [_label, _split, _unlabel, _remove]), ids=lambda f: f.__name__.strip("_")
)
def test_a_list_is_edited(scene: Scene, change: Callable[[List], None]) -> None:
    table = List(scene)
    scene.run(images=table.path)
    scene.embed(table.path)
    change(table)
    table.save()
    scene.run_refused(images=table.path)
    scene.refused(*scene.embedding(None), kind="PhotographsError", field="images")
    assert numbers(scene.run("out", table.path, "--fresh")) == numbers(scene.fresh(table.path))


def test_a_file_that_could_not_be_read_at_first(scene: Scene) -> None:
    table = List(scene)
    data = (scene.root / table.first).read_bytes()
    (scene.root / table.first).unlink()
    before = scene.run(images=table.path)
    assert [row["key"] for row in before["quarantined"]] == [table.first]
    write(scene.root / table.first, data)
    code, answer = scene.command(*scene.asked(images=table.path))
    if code:
        assert answer["error"]["type"] == "PhotographsError"
        scene.embed(table.path, "--replace", store="out/store.zarr")
        scene.run(images=table.path)
    shown = numbers(scene.run(images=table.path))
    assert shown == numbers(scene.fresh(table.path))


# --- several sources --------------------------------------------------------------------------------------------------


def test_a_source_is_added(scene: Scene) -> None:
    other = scene.add_all(scene.root / "other", seed=100)
    scene.embed(scene.photos)
    own = rows(scene.root / "s.zarr")
    added = scene.embed(other, "--add")
    assert added["new_shards"] > 0
    assert scene.embed(other, "--add")["new_shards"] == 0
    assert scene.embed(None, backbone="control:statistics")["images"] == 36
    info = scene.ok("info", scene.root / "s.zarr")
    assert (info["images"], info["complete"]) == (36, True)
    assert (info["classes"]["number"], [source["images"] for source in info["sources"]]) == (2, [18, 18])
    both = rows(scene.root / "s.zarr")
    assert {key: both[key] for key in own} == own
    alone = rows(scene.fresh_store(other))
    there = {(key.removeprefix("other/"), name): row for (key, name), row in both.items() if (key, name) not in own}
    assert there.keys() == alone.keys()
    for (key, name), row in alone.items():
        if name != "jpeg":  # its quality is drawn by key
            assert there[key, name] == row
    scene.run_refused(more=("--store", scene.root / "s.zarr"))

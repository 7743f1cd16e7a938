"""Labels in a study: when they are read, computed again and refused; and groups that stay in one split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import jpeg, photograph, setting
from tests.scenarios.scene import Scene, numbers, read, write

from substyle.engine.store.layout import TEST
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table

PIXELS = "control:pixels"


def listed(scene: Scene, values: Mapping[str, str], name: str = "sites.csv", column: str = "site") -> Path:
    lines = [f"path,{column}", *(f"{key},{value}" for key, value in values.items())]
    return write(scene.root / name, "\n".join(lines).encode())


def keys_of(scene: Scene) -> list[str]:
    return sorted(scene.key(path) for path in scene.photos.rglob("*.jpg"))


def asked(scene: Scene) -> dict[str, str]:
    sites = {key: ("east", "west")[i % 2] for i, key in enumerate(keys_of(scene))}
    listed(scene, sites)
    scene.study["labels"] = {"of": {"site": "file:sites.csv"}, "min_images": 2, "shots": 2, "max_values": 2}
    return sites


@pytest.mark.slow
def test_they_are_kept_until_a_value_changes(scene: Scene) -> None:
    sites = asked(scene)
    first = scene.run()
    own = first["backbones"][PIXELS]["labels"]["by_label"]["site"]
    assert (own["values"], own["images"], own["missing"]) == (2, 6, 0)
    stated = first["settings"]["labels"]
    assert str(scene.root) not in str(stated)
    assert list(stated["of"]) == ["site"]
    assert numbers(scene.run()) == numbers(first)
    store = scene.store
    path = scene.ok("report", store, "--study", scene.study_file())["results"]
    assert read(scene.root / path)["backbones"][PIXELS]["labels"]["by_label"]["site"] == own
    # another value of a test photograph
    last = [key for key in sites if key.startswith("test")][-1]
    listed(scene, {**sites, last: "east" if sites[last] == "west" else "west"})
    scene.refused("report", store, "--study", scene.study_file(), kind="StaleError")
    scene.ok("report", store)  # which does not open files that results name
    changed = scene.run()
    assert changed["settings"]["labels"]["of"] != stated["of"]
    assert numbers(changed) == numbers(scene.fresh())
    # a photograph without a value
    listed(scene, {key: value for key, value in sites.items() if key != last})
    assert scene.run()["backbones"][PIXELS]["labels"]["by_label"]["site"]["missing"] == 1


@pytest.mark.slow
def test_labels_of_a_store_alone(scene: Scene) -> None:
    asked(scene)
    store, out = scene.store, scene.root / "out"
    scene.run()
    scene.study.pop("labels")
    words = ("stage", "labels", store, "--out", out)

    def labels(*more: object) -> dict[str, Any]:
        found: dict[str, Any] = scene.ok(*words, *more)["backbones"][PIXELS]["labels"]["by_label"]
        return found

    of = setting(f"labels.of.site=file:{scene.root}/sites.csv", "labels.min_images=2")
    camera = ("--set", "labels.of.camera=exif:Model")
    assert labels(*of)["site"]["values"] == 2
    assert labels("--images", scene.photos, *camera)["camera"]
    assert labels(*camera)["camera"]["missing"] == 18
    column = ("--set", "labels.of.x=column:site")
    scene.refused(*words, *column, kind="ConfigError", field="labels.of.x")


def _patients(scene: Scene, count: int = 40) -> dict[str, str]:
    """Photographs without splits, two of each patient, of which one is of each class."""
    patients = {}
    for number in range(count):
        key = f"{('even', 'odd')[number % 2]}/{number:02d}.jpg"
        write(scene.photos / key, jpeg(photograph(number)))
        patients[key] = f"P{number // 2}"
    listed(scene, patients, "patients.csv", "patient")
    scene.study["source"] = {"group": "file:patients.csv:patient"}
    return patients


def _splits(scene: Scene, patients: Mapping[str, str]) -> dict[str, set[int]]:
    table = load_table(EmbeddingStore.open(scene.store), PIXELS)
    found: dict[str, set[int]] = {}
    for key, split in zip(table.keys, table.split_N.tolist(), strict=True):
        found.setdefault(patients[key], set()).add(split)
    return found


def test_a_group_stays_in_one_split(empty: Scene) -> None:
    patients = _patients(empty)
    first = empty.run()
    before = _splits(empty, patients)
    assert all(len(splits) == 1 for splits in before.values())
    assert {split for splits in before.values() for split in splits} == {0, 1, TEST}
    assert numbers(empty.run()) == numbers(first)
    merged = {key: f"P{int(name[1:]) // 4}" for key, name in patients.items()}  # over the splits of the store
    listed(empty, merged, "patients.csv", "patient")
    empty.run_refused("images")
    source = empty.study.pop("source")  # groups are given again
    empty.run_refused("source.group")
    empty.study["source"] = source
    # photographs of a known patient, and of new ones, that come later
    for number in range(40, 60):
        key = f"even/{number}.jpg"
        write(empty.photos / key, jpeg(photograph(number)))
        patients[key] = f"P{number % 25}"
    listed(empty, patients, "patients.csv", "patient")
    empty.run()
    after = _splits(empty, patients)
    assert all(len(splits) == 1 for splits in after.values())
    assert {name: after[name] for name in before} == before
    # the store reopens its photographs with their groups
    store = empty.store
    empty.ok("embed", "--store", store, "--backbone", "control:statistics")


def test_a_changed_column_is_noticed(empty: Scene) -> None:
    lines = ["path,label,scanner"]
    for number in range(24):
        write(empty.root / "photos" / f"{number}.jpg", jpeg(photograph(number)))
        lines.append(f"{number}.jpg,{('even', 'odd')[number % 2]},{('A', 'B')[number // 2 % 2]}")
    images = write(empty.root / "photos" / "list.csv", "\n".join(lines).encode())
    empty.study["labels"] = {"of": {"scanner": "column:scanner"}, "min_images": 2, "shots": 0, "max_values": 0}
    empty.run(images=images)
    store = empty.store
    empty.ok("report", store, "--study", empty.study_file(), "--images", images)
    lines[-1] = lines[-1].replace(",B", ",A")
    write(images, "\n".join(lines).encode())
    empty.refused("report", store, "--study", empty.study_file(), "--images", images, kind="StaleError")
    empty.ok("report", store)


def test_a_list_that_is_gone_refuses_runs_and_not_reports(scene: Scene) -> None:
    asked(scene)
    first = scene.run()
    (scene.root / "sites.csv").unlink()
    scene.run_refused("labels.of.site", "ConfigError")
    results = read(scene.root / scene.ok("report", scene.root / "out" / "store.zarr")["results"])
    assert results["backbones"][PIXELS]["labels"] == first["backbones"][PIXELS]["labels"]

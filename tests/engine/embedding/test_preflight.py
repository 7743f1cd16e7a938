"""What is found wrong with a study before anything is embedded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from substyle.engine import cache
from substyle.engine.config import BackboneChoice, Study
from substyle.engine.embedding import preflight
from substyle.engine.embedding.preflight import SplitCounts
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.stages.shift.checks import check_shift
from substyle.engine.store.layout import DEFAULT_FRACTIONS, ResampleBy, StoreSettings
from substyle.engine.store.manifest import Manifest
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.study.runner import checks
from substyle.errors import ConfigError
from substyle.pipelines.sources import ImageRecord, Understood
from substyle.pipelines.sources.base import LeftOut

BACKBONES = (BackboneChoice("control:pixels"),)


@dataclass(frozen=True)
class Listed:
    """A source of no bytes."""

    records: Sequence[ImageRecord]
    class_names: tuple[str, ...] = ()
    root: str = "listed"
    options: Mapping[str, str] = field(default_factory=dict)
    understood: Understood = field(default_factory=lambda: Understood(LeftOut("listed")))


def listed(counts: Mapping[str, Mapping[str | None, int]]) -> Listed:
    """Photographs by class ("" for none) and split."""
    names = tuple(sorted(name for name in counts if name))
    records = [
        ImageRecord(f"{name}/{split}/{i}", names.index(name) if name else None, split, bytes)
        for name, splits in counts.items()
        for split, count in splits.items()
        for i in range(count)
    ]
    return Listed(records, names)


def count(counts: Mapping[str, Mapping[str | None, int]], manifest: Manifest | None = None) -> SplitCounts:
    source = listed(counts)
    return preflight.count_splits(source.records, source, seed=0, fractions=DEFAULT_FRACTIONS, manifest=manifest)


GOOD: Mapping[str, Mapping[str | None, int]] = {"a": {None: 10}, "b": {None: 10}}


def test_a_store_that_exists_keeps_its_splits_and_classes() -> None:
    given_N = np.full(2, -1, np.int8)
    there = Manifest(np.arange(2), ("a/None/0", "z"), np.array([1, 0]), ("c", "a"), np.array([2, 0], np.int8), given_N)
    counts = count({"a": {"train": 3, "val": 1, "test": 0}}, there)
    assert counts.class_names == ("c", "a")
    assert counts.count_CS[0].tolist() == [1, 0, 0]
    assert counts.count_CS[1, 2] == 2  # one of the store, and the source's val, as it has no test images


def test_classes_that_are_not_tested_are_a_warning() -> None:
    (warning,) = preflight.check_splits(count({"a": {"train": 5, "test": 5}, "b": {"train": 5}, "c": {"train": 5}}))
    assert warning.startswith("2 of 3 classes ")
    assert warning.endswith(": b, c")


def test_classes_of_one_image_that_may_be_validated_on_are_a_warning() -> None:
    (warning,) = preflight.check_splits(count({"a": {"train": 2, "test": 5}, "b": {"train": 1, "test": 1}}))
    assert warning.endswith(": b")


def test_a_suite_without_identity() -> None:
    with pytest.raises(ConfigError, match="identity") as caught:
        preflight.check_suite(["jpeg"])
    assert (caught.value.field, caught.value.given) == ("suite", "jpeg")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Photographs of another kind: 3 of a, 2 of x, 1 of y."""
    folder = tmp_path / "other"
    for name, many in (("a", 3), ("x", 2), ("y", 1)):
        (folder / name).mkdir(parents=True)
        for i in range(many):
            (folder / name / f"{i}.jpg").write_bytes(b"not read")
    return folder


def test_shifts_that_cannot_be_scored(other: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "0.jpg").write_bytes(b"not read")
    strangers: Mapping[str, Mapping[str | None, int]] = {"b": {None: 10}, "c": {None: 10}}
    good, config = count(GOOD), ProbeConfig()
    cases = [
        (other, count(strangers), config, "shift.s", "'a, x, y'.*: b, c$"),
        (plain, good, config, "shift.s", str(plain)),
        (other, count({"": {None: 20}}), config, "shift", " 0 "),
        (other, good, dataclasses.replace(config, tasks=("transformation",)), "shift", "class in probes.tasks"),
        (other, good, dataclasses.replace(config, heads=("mlp",)), "shift", "linear in probes.heads"),
    ]
    for folder, counts, probes, name, named in cases:
        with pytest.raises(ConfigError, match=named) as caught:
            check_shift({"s": folder}, counts, probes)
        assert caught.value.field == name
    with pytest.raises(ConfigError):
        check_shift({"s": tmp_path / "missing"}, good, config)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that not even root can write to")
def test_a_folder_that_cannot_be_written_to_is_named() -> None:
    with pytest.raises(ConfigError, match=r"/proc: .*; use another$") as caught:
        preflight.check_writable(Path("/proc/substyle/a"), "--out", "use another")
    assert (caught.value.field, caught.value.given) == ("--out", "/proc/substyle/a")
    with pytest.raises(ConfigError, match=r"/proc: .* --store$") as caught:
        preflight.check_store(Path("/proc/substyle/s.zarr"))
    assert (caught.value.field, caught.value.given) == ("--store", "/proc/substyle")


def check(study: Study, source: Listed, tmp_path: Path, store: Path | None = None, **more: bool) -> list[str]:
    store = store or tmp_path / "out" / "store.zarr"
    return preflight.check_study(study, source, tmp_path / "out", store, source.records, checks=checks(), **more)


def test_a_whole_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: Path) -> None:
    study = Study("s", BACKBONES, suite="mini5", shift={"s": other})
    (warning,) = check(study, listed(GOOD), tmp_path)
    assert warning.startswith("shift s: ")
    assert "3 of 6 photographs" in warning
    assert not (tmp_path / "out").exists()
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    broken = [
        (dataclasses.replace(study, backbones=BACKBONES * 2), GOOD, "^backbone: got '"),
        (study, {"a": {None: 4}}, r"^splits\.test: "),
        (dataclasses.replace(study, shift={"s": tmp_path / "missing"}), GOOD, str(tmp_path / "missing")),
        (
            dataclasses.replace(study, probes=ProbeConfig(tasks=("class",)), shift={}),
            {"a": {None: 20}},
            r"^probes\.tasks: ",
        ),
    ]
    for changed, counts, named in broken:
        with pytest.raises(ConfigError, match=named):
            check(changed, listed(counts), tmp_path)
    with pytest.raises(ConfigError, match=r"^--store: "):
        check(study, listed(GOOD), tmp_path, blocked)
    assert check(study, listed(GOOD), tmp_path, blocked, writes_store=False) == [warning]
    monkeypatch.setenv("SUBSTYLE_CACHE", str(blocked / "cache"))
    assert cache.root() == blocked / "cache"
    with pytest.raises(ConfigError, match=r"^\$SUBSTYLE_CACHE: "):
        check(study, listed(GOOD), tmp_path)
    monkeypatch.undo()
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match=r"^--out: "):
        check(study, listed(GOOD), tmp_path, tmp_path / "s.zarr")


@pytest.mark.parametrize(
    ("counts", "folders"),
    [
        ({"a": {None: 20}}, 1),
        ({"a": {"train": 20}}, 1),  # test photographs are taken from them
        ({"a": {"train": 9, "val": 9, "test": 9}}, 1),
        ({"a": {"train": 9, "val": 9, "test": 9}, "b": {"train": 9, "test": 9}}, 2),
        ({"a": {None: 9}, "b": {None: 9}}, 2),
    ],
)
@pytest.mark.parametrize("resample_by", ["photograph", "folder"])
def test_test_photographs_of_one_folder_have_no_intervals_over_folders(
    counts: Mapping[str, Mapping[str | None, int]], folders: int, resample_by: ResampleBy, tmp_path: Path
) -> None:
    study = Study("s", BACKBONES, suite="mini5", resample_by=resample_by)
    warnings = check(study, listed(counts), tmp_path)
    assert any(each.startswith("no intervals") for each in warnings) == (resample_by == "folder" and folders < 2)


def test_a_store_that_another_process_creates_meanwhile_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, exists = tmp_path / "s.zarr", preflight.catalog.exists

    def created_just_after(path: Path) -> bool:
        found = exists(path)
        EmbeddingStore.create(store, StoreSettings(seed=0, canvas=64, shard_rows=8, dtype="float16"))
        return found

    with monkeypatch.context() as patched:
        patched.setattr(preflight.catalog, "exists", created_just_after)
        preflight.check_store(store)
    preflight.check_store(store)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ConfigError, match="an existing store"):
        preflight.check_store(tmp_path / "other")

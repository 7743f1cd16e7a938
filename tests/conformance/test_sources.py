"""Conformance tests of every kind of source."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conformance.kinds import CLASSES, KINDS, Kind, Photograph, photographs

from substyle.pipelines.sources import Source, SourceConfig, open_source

PHOTOGRAPHS = photographs()


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    assert isinstance(request.param, Kind)
    return request.param


def made(kind: Kind, root: Path, photos: Sequence[Photograph] = PHOTOGRAPHS) -> Path:
    root.mkdir(parents=True)
    kind.build(root, photos)
    return root


def opened(kind: Kind, root: Path) -> Source:
    return open_source(root / kind.path, kind.config(root))


def described(source: Source) -> dict[bytes, tuple[str | None, str | None]]:
    """Class and split of each image by its bytes."""
    names = source.class_names
    return {r.read(): (None if r.label is None else names[r.label], r.split) for r in source.records}


def expected(photos: Sequence[Photograph]) -> dict[bytes, tuple[str | None, str | None]]:
    return {photo.data: (photo.label, photo.split) for photo in photos}


def test_every_photograph_once_with_its_class_and_split(kind: Kind, tmp_path: Path) -> None:
    source = opened(kind, made(kind, tmp_path / "root"))
    assert len(source.records) == 12
    assert described(source) == expected(PHOTOGRAPHS)
    assert source.class_names == CLASSES
    assert source.root == str(tmp_path / "root" / kind.path)


def test_keys_are_unique_sorted_and_text(kind: Kind, tmp_path: Path) -> None:
    keys = [record.key for record in opened(kind, made(kind, tmp_path / "root")).records]
    assert keys == sorted(set(keys))
    for key in keys:
        assert key.encode()
        assert not key.startswith("/")
        assert str(tmp_path) not in key


def test_a_source_remembers_how_to_open_it(kind: Kind, tmp_path: Path) -> None:
    source = opened(kind, made(kind, tmp_path / "root"))
    options = json.loads(json.dumps(dict(source.options)))
    again = open_source(source.root, SourceConfig.from_options(options))
    assert again.records == source.records
    assert again.options == source.options


@pytest.fixture(scope="module")
def all_kinds(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    root = tmp_path_factory.mktemp("kinds")
    return [opened(kind, made(kind, root / kind.name / "root")) for kind in KINDS]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.integers(-14, 14), stop=st.integers(-14, 14), number=st.integers(0, len(KINDS) - 1), seed=st.integers(0)
)
def test_any_rows_in_any_order(all_kinds: list[Source], start: int, stop: int, number: int, seed: int) -> None:
    source = all_kinds[number]
    all_records = list(source.records)
    some = list(source.records[start:stop])
    assert some == all_records[start:stop]
    random.Random(seed).shuffle(some)
    truth = {record.key: record.read() for record in all_records}
    assert all(record.read() == truth[record.key] for record in some)
    with pytest.raises(IndexError):
        source.records[12]


@pytest.mark.parametrize("damage", ["cut", "gone", "other"])
def test_files_that_change_after_listing_give_errors_or_what_was_there(kind: Kind, tmp_path: Path, damage: str) -> None:
    root = made(kind, tmp_path / "root")
    source = opened(kind, root)
    for path in [path for path in root.rglob("*") if path.is_file()]:
        if damage == "cut":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif damage == "other":
            path.write_bytes(bytes(path.stat().st_size + 512))
        else:
            path.unlink()
    whole = {photo.data for photo in PHOTOGRAPHS}
    one_file_each = kind.name in ("folder", "variants", "csv", "tsv", "imagenet-list", "imagenet-kaggle")
    reasons = []
    for record in source.records:
        try:
            data = record.read()
        except OSError as error:
            reasons.append(error.strerror)
            continue
        # a plain file is read as it is now; the decoder rejects it
        assert one_file_each
        assert data not in whole
    assert all(reasons)
    assert one_file_each or len(reasons) == 12


def test_nothing_outside_is_readable(kind: Kind, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = made(kind, tmp_path / "root")
    secret = tmp_path / "outside" / "secret.jpg"
    secret.parent.mkdir()
    secret.write_bytes(b"SECRET" * 100)
    kind.smuggle(root, secret)
    with caplog.at_level(logging.WARNING):
        source = opened(kind, root)
    seen = set()
    for record in source.records:
        try:
            seen.add(record.read())
        except OSError:
            continue
    assert {photo.data for photo in PHOTOGRAPHS} == seen
    if kind.name not in ("tsv", "parquet-file"):
        assert source.understood.left_out.total > 0
        assert caplog.records

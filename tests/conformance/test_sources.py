"""Every kind of source has the same photographs, which give the same embeddings."""

from __future__ import annotations

import json
import logging
import pickle
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conformance.kinds import CLASSES, KINDS, Kind, Photograph, photographs
from tests.conftest import setting, the_json

from substyle.engine.cli import main
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, load_table
from substyle.pipelines.sources import Source, SourceConfig, open_source

PHOTOGRAPHS = photographs()


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    assert isinstance(request.param, Kind)
    return request.param


def made(kind: Kind, root: Path, of: Sequence[Photograph] = PHOTOGRAPHS) -> Path:
    root.mkdir(parents=True)
    kind.build(root, of)
    return root


def opened(kind: Kind, root: Path) -> Source:
    return open_source(root / kind.path, kind.config(root))


def test_every_photograph_once_with_its_class_and_split(kind: Kind, tmp_path: Path) -> None:
    source = opened(kind, made(kind, tmp_path / "root"))
    assert len(source.records) == 12
    names = source.class_names
    found = {r.read(): (None if r.label is None else names[r.label], r.split) for r in source.records}
    assert found == {photo.data: (photo.label, photo.split) for photo in PHOTOGRAPHS}
    assert names == CLASSES
    assert source.root == str(tmp_path / "root" / kind.path)
    keys = [record.key for record in source.records]
    assert keys == sorted(set(keys))
    for key in keys:
        assert key.encode()
        assert not key.startswith("/")
        assert str(tmp_path) not in key


def test_any_rows_in_any_order(kind: Kind, tmp_path: Path) -> None:
    source, rng = opened(kind, made(kind, tmp_path / "root")), random.Random(0)
    rows = list(source.records)
    truth = {record.key: record.read() for record in rows}
    for _ in range(20):
        start, stop = rng.randint(-14, 14), rng.randint(-14, 14)
        some = list(source.records[start:stop])
        assert some == rows[start:stop]
        rng.shuffle(some)
        assert all(record.read() == truth[record.key] for record in some)
    with pytest.raises(IndexError):
        source.records[12]


def test_another_process_reads_a_part_without_the_source(kind: Kind, tmp_path: Path) -> None:
    """What it gets does not grow with the source."""
    some = list(opened(kind, made(kind, tmp_path / "root")).records[3:6])
    sent = pickle.dumps(some)
    assert pickle.loads(sent) == some
    assert [record.read() for record in pickle.loads(sent)] == [record.read() for record in some]
    assert [record.mark() for record in pickle.loads(sent)] == [record.mark() for record in some]
    more = opened(kind, made(kind, tmp_path / "more", photographs(range(1, 100))))
    least = min(len(pickle.dumps(list(more.records[i : i + 3]))) for i in range(0, 96, 12))
    assert least < 2 * len(sent)


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


# --- embedded ---------------------------------------------------------------------------------------------------------

SMALL = ["--suite", "identity,grayscale", "--quiet"]
SMALL += setting("canvas=64", "embed.batch=4", "threads=1", "embed.precision=fp32")


def options(config: SourceConfig) -> list[str]:
    """A configuration as command-line options."""
    names = ("kind", "image_column", "label_column", "path_column", "synsets", "names")
    return setting(*(f"source.{name}={value}" for name, value in config.options().items() if name in names))


def table(store: Path, backbone: str) -> EmbeddingTable:
    return load_table(EmbeddingStore.open(store), backbone)


@pytest.fixture(scope="module")
def by_number(tmp_path_factory: pytest.TempPathFactory) -> dict[int, np.ndarray[Any, Any]]:
    """Embeddings of identity, from a folder."""
    root = tmp_path_factory.mktemp("folder")
    arguments = [
        "embed",
        str(made(KINDS[0], root / "images")),
        "--store",
        str(root / "s.zarr"),
        "--backbone",
        "control:pixels",
    ]
    assert main([*arguments, *SMALL]) == 0
    found = table(root / "s.zarr", "control:pixels")
    numbers = [int(key.rpartition("_")[2].split(".")[0]) for key in found.keys]
    return dict(zip(numbers, found.x_TND[0], strict=True))


def test_embed_and_embed_again_without_naming_the_source(
    kind: Kind, tmp_path: Path, by_number: dict[int, np.ndarray[Any, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    root, store = made(kind, tmp_path / "images"), tmp_path / "s.zarr"
    config = kind.config(root)
    arguments = ["embed", str(root / kind.path), "--store", str(store), "--backbone", "control:pixels"]
    assert main([*arguments, *options(config), *SMALL, "--json"]) == 0
    printed = capsys.readouterr()
    assert "12 images, 3 classes, splits train 9, val 3 (from " in printed.err
    answer = json.loads(printed.out.splitlines()[-1])
    assert (answer["images"], answer["quarantined"]) == (12, {})
    found = table(store, "control:pixels")
    assert found.class_names == CLASSES
    number = {photo.data: photo.number for photo in PHOTOGRAPHS}
    read = {record.key: number[record.read()] for record in opened(kind, root).records}
    for key, x_D in zip(found.keys, found.x_TND[0], strict=True):
        np.testing.assert_array_equal(x_D, by_number[read[key]])
    again = ["embed", "--store", str(store), "--backbone", "control:statistics", *SMALL, "--json"]
    assert main(again) == 0
    assert the_json(capsys)["quarantined"] == {}
    assert np.isfinite(table(store, "control:statistics").x_TND).all()


def test_a_store_remembers_which_folders_are_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = made(KINDS[0], tmp_path / "images")
    (root / "more").mkdir()
    (root / "more" / "x.jpg").write_bytes(PHOTOGRAPHS[0].data)
    arguments = ["embed", "--store", str(tmp_path / "s.zarr"), "--backbone", "control:pixels", *SMALL]
    assert main([*arguments, str(root)]) == 2
    assert "source.splits: got 'train/, val/ beside more/ in " in capsys.readouterr().err
    assert main([*arguments, str(root), "--set", "source.splits=folders"]) == 0
    capsys.readouterr()
    assert main([*arguments, "--backbone", "control:statistics"]) == 0
    assert "12 images, 3 classes, splits train 9, val 3 (from folders); left out 1: more/" in capsys.readouterr().err


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.tar"], "header at byte 0"),
        (["x.parquet"], "images: got 'x.parquet'"),
        (["x.csv"], "source.path_column: got 'nothing'"),
        ([".", "--set", "source.kind=zip"], "source.kind: got 'zip'"),
        ([".", "--set", "source.synsets=none.txt"], "train/<synset>/ and val/"),
        ([".", *setting("source.label_column=x", "source.kind=folder")], "source.label_column"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("x.tar", "x.parquet", "x.csv"):
        (here / name).write_bytes(b"neither this nor that, " * 50)
    assert main(["embed", *arguments, "--store", "s.zarr", "--backbone", "control:pixels"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.splitlines()[-1].startswith("substyle: ")
    assert "Traceback" not in error
    assert not (here / "s.zarr").exists()


def test_a_source_remembers_how_to_open_it(kind: Kind, tmp_path: Path) -> None:
    source = opened(kind, made(kind, tmp_path / "root"))
    options = json.loads(json.dumps(dict(source.options)))
    again = open_source(source.root, SourceConfig.from_options(options))
    assert again.records == source.records
    assert again.options == source.options

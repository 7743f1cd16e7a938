"""The same photographs give the same embeddings from every kind of source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conformance.kinds import CLASSES, KINDS, Kind, photographs
from tests.conftest import setting

from substyle.engine.cli import main
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, load_table
from substyle.pipelines.sources import SourceConfig, open_source

PHOTOGRAPHS = photographs()
SMALL = [
    "--suite",
    "identity,grayscale",
    *setting("canvas=64", "embed.batch=4", "threads=1", "embed.precision=fp32"),
]


def options(config: SourceConfig) -> list[str]:
    """A configuration as command-line options."""
    names = ("kind", "image_column", "label_column", "path_column", "synsets", "names")
    return setting(*(f"source.{name}={value}" for name, value in config.options().items() if name in names))


def table(store: Path, backbone: str) -> EmbeddingTable:
    return load_table(EmbeddingStore.open(store), backbone)


def last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    answer = json.loads(capsys.readouterr().out)
    assert isinstance(answer, dict)
    return answer


@pytest.fixture(scope="module")
def by_number(tmp_path_factory: pytest.TempPathFactory) -> dict[int, np.ndarray[Any, Any]]:
    """Embeddings of identity, from a folder."""
    root = tmp_path_factory.mktemp("folder")
    (root / "images").mkdir()
    KINDS[0].build(root / "images", PHOTOGRAPHS)
    arguments = ["embed", str(root / "images"), "--store", str(root / "s.zarr"), "--backbone", "control:pixels"]
    assert main([*arguments, *SMALL, "--quiet"]) == 0
    found = table(root / "s.zarr", "control:pixels")
    numbers = [int(key.rpartition("_")[2].split(".")[0]) for key in found.keys]
    return dict(zip(numbers, found.x_TND[0], strict=True))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_embed_and_embed_again_without_naming_the_source(
    kind: Kind, tmp_path: Path, by_number: dict[int, np.ndarray[Any, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    root, store = tmp_path / "images", tmp_path / "s.zarr"
    root.mkdir()
    kind.build(root, PHOTOGRAPHS)
    config = kind.config(root)
    arguments = ["embed", str(root / kind.path), "--store", str(store), "--backbone", "control:pixels"]
    assert main([*arguments, *options(config), *SMALL, "--quiet", "--json"]) == 0
    printed = capsys.readouterr()
    assert "12 images, 3 classes, splits train 9, val 3 (from " in printed.err
    answer = json.loads(printed.out.splitlines()[-1])
    assert (answer["images"], answer["quarantined"]) == (12, {})
    found = table(store, "control:pixels")
    assert found.class_names == CLASSES
    source = open_source(root / kind.path, config)
    number = {photo.data: photo.number for photo in PHOTOGRAPHS}
    read = {record.key: number[record.read()] for record in source.records}
    for key, x_D in zip(found.keys, found.x_TND[0], strict=True):
        np.testing.assert_array_equal(x_D, by_number[read[key]])
    again = ["embed", "--store", str(store), "--backbone", "control:statistics", *SMALL, "--quiet", "--json"]
    assert main(again) == 0
    assert last_json(capsys)["quarantined"] == {}
    assert np.isfinite(table(store, "control:statistics").x_TND).all()


def test_a_store_remembers_which_folders_are_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    KINDS[0].build(tmp_path / "images", PHOTOGRAPHS)
    (tmp_path / "images" / "more").mkdir()
    (tmp_path / "images" / "more" / "x.jpg").write_bytes(PHOTOGRAPHS[0].data)
    arguments = ["embed", "--store", str(tmp_path / "s.zarr"), "--backbone", "control:pixels", *SMALL, "--quiet"]
    assert main([*arguments, str(tmp_path / "images")]) == 2
    assert "source.splits: got 'train/, val/ beside more/ in " in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "images"), "--set", "source.splits=folders"]) == 0
    capsys.readouterr()
    assert main([*arguments, "--backbone", "control:statistics"]) == 0
    assert "12 images, 3 classes, splits train 9, val 3 (from folders); left out 1: more/" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none-{0..3}.tar"], ": none-0.tar, none-1.tar"),
        (["x.tar.gz"], "images: got 'x.tar.gz'"),
        (["x.tar"], "header at byte 0"),
        (["x.parquet"], "images: got 'x.parquet'"),
        (["x.csv"], "source.path_column: got 'nothing'"),
        (["x.csv", "--set", "source.label_column=b"], "source.path_column"),
        ([".", "--set", "source.kind=zip"], "source.kind: got 'zip'"),
        ([".", "--set", "source.synsets=none.txt"], "train/<synset>/ and val/"),
        ([".", *setting("source.label_column=x", "source.kind=folder")], "source.label_column"),
        ([".", *setting("source.names=none.txt", "source.kind=tar")], "source.names"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("x.tar.gz", "x.tar", "x.parquet", "x.csv"):
        (tmp_path / name).write_bytes(b"neither this nor that, " * 50)
    assert main(["embed", *arguments, "--store", "s.zarr", "--backbone", "control:pixels"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.splitlines()[-1].startswith("substyle: ")
    assert "Traceback" not in error
    assert not (tmp_path / "s.zarr").exists()

"""A folder of good photographs and one bad file of each kind, from the command line to the table of embeddings."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import jpeg, photograph, setting
from tests.pipelines.test_bad_images import BAD

from substyle.engine.cli import EXIT_QUARANTINED, main
from substyle.engine.store import journal
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table, store_facts
from substyle.pipelines.storage import place

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")

PHOTOGRAPHS = 6


def files() -> dict[str, tuple[bytes, str]]:
    """Bytes and expected reason by key: photographs (no reason) evenly among bad files, half of them called .png."""
    cases = list(BAD.values())
    last = PHOTOGRAPHS + len(cases) - 1
    for i in range(PHOTOGRAPHS):
        cases.insert(round(i * last / (PHOTOGRAPHS - 1)), (jpeg(photograph(i)), ""))
    return {f"a/{n:02d}.{('jpg', 'png')[n % 2]}": case for n, case in enumerate(cases)}


GOOD = [key for key, (_, reason) in files().items() if not reason]


def written(root: Path, keys: Iterable[str]) -> Path:
    """A folder of some of the files."""
    (root / "a").mkdir(parents=True)
    for key in keys:
        (root / key).write_bytes(files()[key][0])
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of the files."""
    return written(tmp_path_factory.mktemp("images") / "all", files())


def embed(images: Path, store: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of `substyle embed`."""
    arguments = ["embed", str(images), "--store", str(store), "--backbone", "control:pixels", "--set", "canvas=32"]
    options = [
        "--suite",
        "identity,grayscale",
        *setting("embed.batch=8", "embed.shard_rows=16", "threads=2"),
    ]
    code = main([*arguments, *options, "--json", "--quiet", *more])
    return code, json.loads(capsys.readouterr().out)


def test_bad_files_are_named_and_the_others_are_embedded(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "s.zarr"
    code, answer = embed(images, store, capsys)
    assert code == 0
    expected = {key: reason for key, (_, reason) in files().items() if reason}
    assert answer["quarantined"].keys() == expected.keys()
    for key, reason in answer["quarantined"].items():
        assert any(part in reason for part in expected[key].split("|")), key
    assert answer["images"] == len(GOOD) + len(expected)

    opened = EmbeddingStore.open(store)
    rows = dict(zip(opened.manifest().keys, opened.manifest().row_N.tolist(), strict=True))
    notes = {note.row: note for record in journal.read(place(store)) for note in record.images}
    assert {key: notes[rows[key]].reason for key in expected} == answer["quarantined"]
    assert {notes[rows[key]].reason for key in GOOD} == {""}
    assert store_facts(opened).quarantined == answer["quarantined"]
    entry = opened.backbone("control:pixels")
    for name in ("identity", "grayscale"):
        embeddings = opened.read(entry, name)
        assert np.isnan(embeddings[[rows[key] for key in expected]]).all()
        assert np.isfinite(embeddings[[rows[key] for key in GOOD]]).all()
    table = load_table(opened, "control:pixels")
    assert list(table.keys) == GOOD


def test_strict_says_so_and_changes_nothing(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "s.zarr"
    code, answer = embed(images, store, capsys, "--strict")
    assert code == EXIT_QUARANTINED
    again, second = embed(images, store, capsys, "--strict")  # there is nothing left to do; the answer stands
    assert again == EXIT_QUARANTINED
    assert second["quarantined"] == answer["quarantined"]
    assert second["new_shards"] == 0


def test_good_photographs_are_embedded_as_without_the_bad_files(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = written(tmp_path / "original", GOOD)
    embed(images, tmp_path / "s.zarr", capsys)
    code, answer = embed(original, tmp_path / "c.zarr", capsys, "--strict")
    assert (code, answer["quarantined"]) == (0, {})
    with_bad, without = (
        load_table(EmbeddingStore.open(tmp_path / name), "control:pixels") for name in ("s.zarr", "c.zarr")
    )
    assert with_bad.keys == without.keys
    np.testing.assert_array_equal(with_bad.x_TND, without.x_TND)

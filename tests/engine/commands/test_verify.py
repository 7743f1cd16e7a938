"""`substyle verify`, and repairs by `embed`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.conftest import shards_of
from tests.engine.embedding.test_run import PIXELS, plan

from substyle.engine.cli import main
from substyle.engine.embedding.run import embed
from substyle.engine.store.layout import StoreError
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table


def answer(capsys: pytest.CaptureFixture[str], store: Path, *more: str) -> tuple[int, dict[str, object], str]:
    code = main(["verify", str(store), "--json", "--quiet", *more])
    out, text = capsys.readouterr()
    return code, json.loads(out), text


def test_what_verify_finds_embed_redoes_and_nothing_else(
    tmp_path: Path, two_classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "s.zarr"
    embed(plan(two_classes, store), [PIXELS], quiet=True)
    code, sound, text = answer(capsys, store)
    assert (code, sound["ok"], sound["shards"], sound["images"]) == (0, True, 5, 40)
    assert "5 shards" in text
    assert "damaged" not in text
    before = shards_of(store)
    flipped = sorted(store.rglob("c.*"))[2]
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 128
    flipped.write_bytes(data)
    every = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    code, found, text = answer(capsys, store, "--no-note")
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == every
    assert (code, found["ok"], found["noted"], len(found["findings"])) == (1, False, False, 1)  # type: ignore[arg-type]
    assert f"shard: {flipped.relative_to(store)}: " in text
    untouched = {path: path.stat().st_mtime_ns for path in store.rglob("c.*") if path != flipped}
    code, found, text = answer(capsys, store)
    assert (code, found["noted"]) == (1, True)
    assert "run embed" in text.splitlines()[-1]
    assert (code, found, text) == answer(capsys, store)  # verify changes nothing that it looks at
    summary = embed(plan(two_classes, store), [PIXELS], quiet=True)
    assert summary.new_shards == 1
    assert shards_of(store) == before
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched
    assert answer(capsys, store)[0] == 0
    assert len(load_table(EmbeddingStore.open(store), "control:pixels").keys) == 40


def test_embed_redoes_shards_that_are_gone_without_being_told(
    tmp_path: Path, two_classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "s.zarr"
    embed(plan(two_classes, store), [PIXELS], quiet=True)
    before = shards_of(store)
    paths = sorted(store.rglob("c.*"))
    paths[0].unlink()
    paths[3].write_bytes(paths[3].read_bytes()[:100])
    with pytest.raises(StoreError, match="run substyle verify"):
        load_table(EmbeddingStore.open(store), "control:pixels")
    embed(plan(two_classes, store), [PIXELS], quiet=True)
    assert f"{store}: 2 finished shards are missing or truncated" in capsys.readouterr().err
    assert shards_of(store) == before
    assert answer(capsys, store)[0] == 0

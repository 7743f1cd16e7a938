"""`substyle verify`, and repairs by `embed`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.engine.embedding.test_run import PIXELS, chunks, plan

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
    assert (code, sound["ok"], sound["chunks"], sound["images"]) == (0, True, 25, 40)
    assert "25 chunks" in text
    assert "damaged" not in text
    before = chunks(store)
    slug = EmbeddingStore.open(store).backbone("control:pixels").slug
    arrays = store / "embeddings" / slug
    flipped = arrays / "grayscale" / "c" / "2" / "0"
    data = bytearray(flipped.read_bytes())
    data[-1] ^= 128
    flipped.write_bytes(data)
    code, found, text = answer(capsys, store, "--no-note")
    assert (code, found["ok"], found["noted"], len(found["findings"])) == (1, False, False, 1)  # type: ignore[arg-type]
    assert f"chunk: embeddings/{slug}/grayscale/c/2/0: " in text
    untouched = {path: path.stat().st_mtime_ns for path in arrays.rglob("c/*/0") if path != flipped}
    code, found, text = answer(capsys, store)
    assert (code, found["noted"]) == (1, True)
    assert "run embed" in text.splitlines()[-1]
    assert (code, found, text) == answer(capsys, store)  # verify changes nothing that it looks at
    summary = embed(plan(two_classes, store), [PIXELS], quiet=True)
    assert summary.new_shards == 1
    assert chunks(store) == before
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched
    assert answer(capsys, store)[0] == 0
    assert len(load_table(EmbeddingStore.open(store), "control:pixels").keys) == 40


def test_embed_redoes_chunks_that_are_gone_without_being_told(
    tmp_path: Path, two_classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "s.zarr"
    embed(plan(two_classes, store), [PIXELS], quiet=True)
    before = chunks(store)
    paths = sorted(store.rglob("c/*/0"))
    paths[0].unlink()
    paths[7].write_bytes(paths[7].read_bytes()[:100])
    with pytest.raises(StoreError, match="run substyle verify"):
        load_table(EmbeddingStore.open(store), "control:pixels")
    embed(plan(two_classes, store), [PIXELS], quiet=True)
    assert f"{store}: chunks of 2 " in capsys.readouterr().err
    assert chunks(store) == before
    assert answer(capsys, store)[0] == 0

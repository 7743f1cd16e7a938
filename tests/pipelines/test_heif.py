"""AVIF and HEIC photographs."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features
from tests.conftest import photograph

from substyle.engine.store.table import load_table, store_facts
from substyle.engine.study.api import embed
from substyle.errors import ImageError
from substyle.pipelines import image_header


def encoded(picture: Image.Image, kind: str) -> bytes:
    if kind == "AVIF":
        if not features.check("avif"):
            pytest.skip("this Pillow has no AVIF")
    else:
        pytest.importorskip("pillow_heif").register_heif_opener()
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=95)
    return buffer.getvalue()


@pytest.mark.parametrize(("kind", "suffix"), [("AVIF", ".avif"), ("HEIF", ".heic")])
def test_photographs_are_embedded_as_their_pixels_and_damaged_ones_quarantined(
    kind: str, suffix: str, tmp_path: Path
) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for seed in range(3):
        blob = encoded(photograph(seed), kind)
        (folder / f"{seed}{suffix}").write_bytes(blob)
        with Image.open(io.BytesIO(blob)) as image:
            image.convert("RGB").save(folder / f"{seed}.png")
    (folder / f"cut{suffix}").write_bytes(blob[: len(blob) // 2])
    (folder / f"head{suffix}").write_bytes(blob[:40])
    store = embed(folder, tmp_path / "s.zarr", ["control:pixels"], transformations="identity", canvas=64)
    assert set(store_facts(store).quarantined) == {f"cut{suffix}", f"head{suffix}"}
    table = load_table(store, "control:pixels")
    row = {key: table.take(0, np.array([i]))[0] for i, key in enumerate(table.keys)}
    assert len(row) == 6
    for seed in range(3):
        np.testing.assert_allclose(row[f"{seed}{suffix}"], row[f"{seed}.png"], atol=0.01)  # resized by another library
    assert np.abs(row[f"0{suffix}"] - row["1.png"]).max() > 0.1


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    blob = encoded(photograph(0), "HEIF")
    monkeypatch.setattr(image_header, "_heif", lambda: ())
    with pytest.raises(ImageError, match="extra heif"):
        image_header.inspect(blob)

"""The example of real pairs: each file shows its photograph."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks import pairs
from PIL import Image
from tests.conftest import jpeg, photograph

from substyle.pipelines.decode import Decoder
from substyle.pipelines.sources import SourceConfig, open_source


@pytest.mark.parametrize("browser", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_file_shows_its_photograph(tmp_path: Path, browser: bool) -> None:
    if browser and shutil.which(pairs.BROWSER) is None:
        pytest.skip(f"no {pairs.BROWSER}")
    identity = tmp_path / "identity"
    for number in range(3):
        path = identity / "some" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(photograph(number, 200 + 30 * number, 180)))
    paths = sorted(identity.rglob("*.jpg"))
    for suffix in pairs.QUALITY:
        pairs.encode(paths, identity, tmp_path / suffix, suffix)
    if browser:
        pairs.photograph_screen(paths, identity, tmp_path / "screenshot")
    source, decode = open_source(tmp_path, SourceConfig(kind="variants")), Decoder(64, 1, 1)
    assert source.understood.transformations == ("avif", *["screenshot"] * browser, "webp")
    for record in source.records:
        plain = decode([record.read()]).canvas_BSSC.numpy().astype(np.float64)
        for name in source.understood.transformations:
            variant = record.variant(name)
            assert variant is not None
            found = decode([variant.read()])
            assert found.reasons == [None]
            assert 0 < np.abs(found.canvas_BSSC.numpy() - plain).mean() < 12, name


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "webp" / "own.webp"
    kept.parent.mkdir()
    Image.new("RGB", (8, 8)).save(kept)
    monkeypatch.setattr(sys, "argv", ["pairs", str(tmp_path)])
    assert pairs.main() == 2
    assert kept.is_file()

"""`import substyle`: cost, and agreement of functions with commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.conftest import jpeg, photograph

import substyle


def test_every_public_name_is_importable_and_documented() -> None:
    for name in substyle.__all__:
        assert getattr(substyle, name).__doc__, name
    with pytest.raises(AttributeError, match="nothing"):
        substyle.nothing  # noqa: B018


def test_embed_open_and_load(tmp_path: Path) -> None:
    for n in range(4):
        folder = tmp_path / "photographs" / "ab"[n % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{n}.jpg").write_bytes(jpeg(photograph(n)))
    names = ["identity", "grayscale"]
    given = (tmp_path / "photographs", tmp_path / "s.zarr", ["control:pixels"])
    store = substyle.embed(*given, transformations=names, canvas=64)
    assert [entry.name for entry in store.backbones()] == ["control:pixels"]
    table = substyle.load_table(substyle.open_store(tmp_path / "s.zarr"), "control:pixels")
    assert table.transformations == ("identity", "grayscale")
    assert np.asarray(table.x_TND).shape == (2, 4, 768)
    again = substyle.embed(*given, transformations=names, canvas=64)
    np.testing.assert_array_equal(substyle.load_table(again, "control:pixels").x_TND, table.x_TND)

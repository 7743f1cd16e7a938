"""`import substyle`: cost, and agreement of functions with commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import jpeg, photograph

import substyle
from substyle.errors import ConfigError


def test_importing_it_loads_no_library_of_arrays() -> None:
    code = "import sys, substyle; dir(substyle); print([m for m in ('numpy', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


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


def test_lists() -> None:
    assert [d["name"] for d in substyle.transformations("identity,jpeg")] == ["identity", "jpeg"]
    assert len(substyle.transformations()) == 31
    assert {"mae:base", "package:clip_vit_b16"} <= set(substyle.backbones())
    with pytest.raises(ConfigError) as caught:
        substyle.transformations("jpg")
    assert caught.value.field == "suite"

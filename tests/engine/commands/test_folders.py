from __future__ import annotations

from pathlib import Path

import pytest

from substyle.engine.commands.options import default_out, out_of
from substyle.engine.store.layout import StoreSettings
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.study import outputs
from substyle.pipelines.storage import ObjectPlace

SETTINGS = StoreSettings(0, 64, 8, "float16")


@pytest.mark.parametrize(
    ("there", "out"),
    [
        ([], "runs/x"),
        (["even/0.jpg"], "runs/x-results"),  # photographs
        (["zarr.json"], "runs/x-results"),  # a store
    ],
)
def test_a_folder_of_something_else_gets_no_results(
    there: list[str], out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_out("x") == Path("runs/x")
    (tmp_path / "runs" / "x").mkdir(parents=True)
    for name in there:
        path = tmp_path / "runs" / "x" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert default_out("x") == Path(out)


def test_a_folder_of_results_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outputs.claim(Path("runs/x"), Path("runs/x/store.zarr"), "uuid")
    (tmp_path / "runs/x/even.jpg").touch()
    assert default_out("x") == Path("runs/x")


def test_results_of_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert out_of(EmbeddingStore.create(Path("runs/v1.2.zarr"), SETTINGS)) == Path("runs/v1.2")
    assert out_of(EmbeddingStore.create(Path("runs/plain"), SETTINGS)) == Path("runs/plain-results")  # not in the store
    monkeypatch.chdir(tmp_path / "runs" / "v1.2.zarr")
    assert out_of(EmbeddingStore.open(Path("."))) == Path("runs/v1.2")
    outputs.claim(tmp_path / "study", tmp_path / "study" / "store.zarr", "uuid")
    EmbeddingStore.create(tmp_path / "study" / "store.zarr", SETTINGS)
    monkeypatch.chdir(tmp_path / "study" / "store.zarr")
    assert out_of(EmbeddingStore.open(Path("."))) == tmp_path / "study"


def test_results_of_a_store_in_a_bucket(bucket: ObjectPlace) -> None:
    assert out_of(EmbeddingStore.create(bucket / "s.zarr", SETTINGS)) == Path("runs/s")

"""Real Ray on this machine: the store is that of one process, whoever dies or fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.conftest import setting, shards_of
from tests.engine.embedding.ray.conftest import COUNT
from tests.engine.embedding.ray.shards import ROWS, SUITE, WHITE, embed, left
from tests.pipelines.libraries.suites import forgotten, write

from substyle.engine.cli import main
from substyle.engine.store import journal
from substyle.pipelines.storage import place
from substyle.pipelines.transforms import base, registry

TWO = (*setting("executor.kind=ray", "executor.workers=2"), "--quiet")
SHARDS = 6
pytestmark = pytest.mark.usefixtures("ray_address")


@pytest.mark.slow
def test_two_workers_of_which_one_is_killed_make_the_store_of_one_process(
    images: Path, plugin: Path, how: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = f"{SUITE},trouble"
    alone, store = tmp_path / "alone" / "s.zarr", tmp_path / "s.zarr"
    assert main([*embed(images, alone, "--plugin", str(plugin), suite=suite), "--quiet"]) == 0
    how.write_text("die")
    capsys.readouterr()
    run = [*embed(images, store, "--plugin", str(plugin), suite=suite), *TWO]
    assert main(run) == 0
    out, said = capsys.readouterr()
    assert "is replaced: its process died" in said
    assert not how.exists()
    assert shards_of(store) == shards_of(alone) != {}
    assert left(store) == []
    answer = json.loads(out)
    assert (answer["images"], answer["shards"], answer["new_shards"]) == (COUNT, SHARDS, SHARDS)
    assert {"prepare", "decode", "variants", "total"} <= answer["seconds"].keys()
    assert main(run) == 0  # there is nothing to do
    assert json.loads(capsys.readouterr().out)["new_shards"] == 0


@pytest.mark.slow
def test_two_workers_with_transformations_of_libraries_make_the_store_of_one_process(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "suite").mkdir()
    monkeypatch.setattr(registry, "_loaded", [])  # workers of later tests may not run its code
    monkeypatch.chdir(tmp_path / "suite")  # functions are imported from the current folder
    suite = f"{write(tmp_path / 'suite').name}+kornia:RandomGaussianNoise"
    alone, store = tmp_path / "alone" / "s.zarr", tmp_path / "s.zarr"
    with forgotten():
        assert main([*embed(images, alone, "--allow-plugins", suite=suite), "--quiet"]) == 0
        assert main([*embed(images, store, "--allow-plugins", suite=suite), *TWO]) == 0
    assert shards_of(store) == shards_of(alone) != {}


@pytest.mark.slow
def test_a_shard_that_fails_is_named_and_the_rest_is_finished(
    images: Path, plugin: Path, how: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "s.zarr"
    how.write_text("fail")
    run = embed(images, store, "--plugin", str(plugin), suite="identity,trouble")
    # one worker, without another try (see test_dispatch.py): each worker takes seconds to start
    assert (
        main(
            [
                *run,
                *setting("executor.kind=ray", "executor.workers=1", "executor.retries=0"),
                "--quiet",
            ]
        )
        == 1
    )
    said = capsys.readouterr().err
    first = WHITE * ROWS
    assert f"1 of {SHARDS} shards failed each time; all others are finished" in said
    assert f"shard {WHITE} (rows {first} to {first + ROWS - 1}): ValueError: a white photograph" in said
    assert [record.shard for record in journal.read(place(store))] == [n for n in range(SHARDS) if n != WHITE]
    assert [name for name in left(store) if "journal" not in name] == []
    how.unlink()  # what made it fail is gone: the store is finished, here by this process
    assert main([*run, "--quiet"]) == 0
    assert len(journal.read(place(store))) == SHARDS


@pytest.mark.slow
def test_workers_embed_real_variants(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real, suite = tmp_path / "real", tmp_path / "real.toml"
    for name in ("identity", "rayphone"):
        shutil.copytree(images, real / name)
    (real / "rayphone" / "003.jpg").unlink()
    suite.write_text('transformations = [{ name = "rayphone", of = "photographs" }]')
    run = ("--set", "source.kind=variants", "--quiet")
    alone, store = tmp_path / "alone" / "s.zarr", tmp_path / "s.zarr"
    try:
        assert main([*embed(real, alone, *run, suite=str(suite))]) == 0
        capsys.readouterr()
        assert main([*embed(real, store, *run, suite=str(suite)), *TWO]) == 0
        assert json.loads(capsys.readouterr().out)["left_out"] == {"rayphone": {"003.jpg": "no file"}}
        assert shards_of(store) == shards_of(alone) != {}
    finally:
        base.REGISTRY.pop("rayphone", None)

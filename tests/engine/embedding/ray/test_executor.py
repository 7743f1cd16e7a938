"""Real Ray on this machine: the store is that of one process, whoever dies or fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.conftest import setting, shards_of
from tests.engine.embedding.ray.conftest import COUNT
from tests.engine.embedding.ray.shards import ROWS, SUITE, WHITE, embed, left

from substyle.engine.cli import main
from substyle.engine.store import journal
from substyle.pipelines.storage import place

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

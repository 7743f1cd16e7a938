"""Stores and folders that others write to, that change meanwhile, are damaged, or whose making is interrupted."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import zarr
from tests.conftest import jpeg, photograph, slow_after
from tests.scenarios.scene import STAGES, Scene, numbers, other_bytes, rows, write

from substyle.engine.cli import main
from substyle.engine.stages import probes
from substyle.engine.store import lock

SLOW = """
import time
from pathlib import Path

from substyle.pipelines.transforms.base import kernel

CALLS = []


@kernel('mine_slow', kind='tone', role='train', parameters=[])
def slow(canvas_BSSC, args, keys_B):
    if len(canvas_BSSC) != 4:  # photographs: eight, eight, two; the pictures of its identity are four
        CALLS.append(1)
    while len(CALLS) > 2 and Path({flag!r}).exists():
        time.sleep(0.02)
    return 255 - canvas_BSSC
"""


# --- what others do to a store ----------------------------------------------------------------------------------------


def test_attributes_and_groups_belong_to_users(scene: Scene) -> None:
    scene.embed(scene.photos)
    store = scene.root / "s.zarr"
    first = numbers(scene.stages(store))
    before = rows(store)
    root: Any = zarr.open_group(store, mode="a")
    root.attrs["mine"] = "root"
    (backbone,) = (group for _, group in root["embeddings"].groups())
    backbone.attrs["mine"] = "backbone"
    next(backbone.arrays())[1].attrs["substyle"] = {"name": "something else"}
    root.create_group("notes").attrs["mine"] = "group"
    zarr.consolidate_metadata(store)
    assert scene.ok("verify", store)["ok"]
    assert rows(store) == before
    assert numbers(scene.stages(store)) == first
    scene.embed(None, backbone="control:statistics")
    scene.add(50)
    scene.embed(scene.photos)
    assert rows(store).items() >= before.items()
    verdict = scene.ok("verify", store)
    assert (verdict["ok"], verdict["complete"]) == (True, False)  # statistics lack the new photograph
    assert {finding["kind"] for finding in verdict["findings"]} == {"addition"}
    root = zarr.open_group(store, mode="r", use_consolidated=False)
    assert root.attrs["mine"] == "root"
    assert root["embeddings"][backbone.basename].attrs["mine"] == "backbone"
    assert root["notes"].attrs["mine"] == "group"


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("harm", slow_after(1, [Path.unlink, _flip, _cut]), ids=["missing", "flipped", "cut"])
def test_damage_is_found_refused_and_repaired(scene: Scene, harm: Callable[[Path], None]) -> None:
    first = numbers(scene.run())
    store = scene.store
    before = rows(store)
    harm(sorted(store.glob("embeddings/*/*/c.*"))[0])
    verdicts = []
    for _ in range(2):
        code, verdict = scene.command("verify", store)
        assert (code, verdict["ok"]) == (1, False)
        verdicts.append(verdict)
    assert verdicts[0] == verdicts[1]
    assert not scene.ok("info", store)["complete"]
    scene.refused_stages(store, kind="StoreError")
    if harm is not Path.unlink:  # else `run` repairs it
        assert scene.embed(None, store="out/store.zarr")["new_shards"] == 1
        assert rows(store) == before
    assert numbers(scene.run()) == first
    assert rows(store) == before
    assert scene.ok("verify", store)["complete"]


# --- interrupted ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("edited", slow_after(1, ["not yet embedded", "embedded"]))
@pytest.mark.slow
def test_an_interrupted_embed_goes_on(scene: Scene, edited: str) -> None:
    """A photograph is edited before resuming: rejected if already embedded, otherwise used as it is now."""
    plugin, flag, store = scene.root / "slow.py", scene.root / "flag", scene.root / "s.zarr"
    plugin.write_text(SLOW.format(flag=str(flag)))
    flag.touch()
    words = ["--suite", "identity,mine_slow", "--plugin", plugin]
    command = list(map(str, scene.embedding(scene.photos, *words, "--json", "--quiet")))
    process = subprocess.Popen(
        [sys.executable, "-m", "substyle.engine.cli", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list((store / "journal").glob("*.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    flag.unlink()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert json.loads(out)["error"]["type"] == "Interrupted"
    done = scene.ok("info", store)["backbones"][0]["embeddings"]
    assert 0 < done["done"] < done["total"]
    finished = {key for key, _ in rows(store)}
    path = next(p for p in sorted(scene.photos.rglob("*.jpg")) if (scene.key(p) in finished) == (edited == "embedded"))
    path.write_bytes(other_bytes(path))
    again = scene.embedding(scene.photos, *words)
    if edited == "embedded":
        scene.refused(*again, kind="PhotographsError", field="images")
        again.append("--replace")
    scene.ok(*again)
    scene.ok(*scene.embedding(scene.photos, *words, store="fresh.zarr"))
    assert rows(store) == rows(scene.root / "fresh.zarr")
    assert scene.ok("verify", store)["complete"]


# --- inputs that must not be mixed ------------------------------------------------------------------------------------


def test_results_never_go_among_other_files(scene: Scene) -> None:
    thesis = scene.root / "out"
    for name in ("figures/one.png", "tables/two.csv", "report.html"):
        write(thesis / name, b"mine")
    for more in ((), ("--fresh",)):
        scene.refused(*scene.asked("out", None, *more), kind="ConfigError", field="--out")
    scene.embed(scene.photos)
    for stage in STAGES[:2]:
        scene.refused(*stage, scene.root / "s.zarr", "--out", thesis, kind="ConfigError", field="--out")
    assert sorted(path.name for path in thesis.rglob("*.*")) == ["one.png", "report.html", "two.csv"]
    assert not (thesis / "substyle.json").exists()
    before = sorted(scene.photos.rglob("*"))
    scene.refused(*scene.asked(scene.photos), kind="ConfigError", field="--out")
    assert sorted(scene.photos.rglob("*")) == before


def test_a_store_without_its_manifest_takes_no_photographs(scene: Scene) -> None:
    scene.embed(scene.photos)
    store = scene.root / "s.zarr"
    shutil.rmtree(store / "images.parquet")
    other = scene.add_all(scene.root / "other", seed=500)
    scene.refused(*scene.embedding(other), kind="StoreError")
    findings = scene.command("verify", store)[1]["findings"]
    assert "manifest" in {finding["kind"] for finding in findings}


def test_embeddings_that_change_while_probes_are_trained(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.embed(scene.photos)
    train = probes.run_probes

    def meanwhile(*words: Any, **more: Any) -> Any:  # noqa: ANN401
        outcome = train(*words, **more)
        scene.one().write_bytes(other_bytes(scene.one()))
        with redirect_stdout(io.StringIO()):
            assert main([*map(str, scene.embedding(scene.photos, "--replace")), "--quiet"]) == 0
        return outcome

    monkeypatch.setattr(probes, "run_probes", meanwhile)
    store = scene.root / "s.zarr"
    out = scene.root / "results"
    scene.refused("stage", "probes", store, "--study", scene.study_file(), "--out", out, kind="StaleError")
    scene.refused("report", store, "--out", out, kind="ConfigError", field="STORE")


def test_fresh_deletes_nothing_where_the_run_would_fail(scene: Scene) -> None:
    scene.run()
    before = sorted((scene.root / "out").rglob("*"))
    few = write(scene.root / "few" / "train" / "even" / "0.jpg", jpeg(photograph(0))).parents[2]
    for images, field in ((scene.root / "nothing", "images"), (few, "splits.train")):
        scene.refused(*scene.asked("out", images, "--fresh"), kind="ConfigError", field=field)
    with lock.hold(scene.store, "busy"):
        scene.refused(*scene.asked("out", None, "--fresh"), kind="LockedError")
    assert sorted((scene.root / "out").rglob("*")) == before


@pytest.mark.parametrize("changed", slow_after(1, ["out", "copy"]))
def test_results_of_a_store_that_has_changed_are_not_compared(scene: Scene, changed: str) -> None:
    scene.run()
    shutil.copytree(scene.root / "out", scene.root / "copy")
    comparison = ["compare", scene.root / "out", scene.root / "copy", "--out", scene.root / "comparison"]
    scene.ok(*comparison)
    path = scene.root / changed / "results.json"
    written = path.read_text()
    results = json.loads(written)
    del results["checksum"]
    results["backbones"]["control:pixels"]["transformation"]["linear"]["accuracy"]["value"] = 0.99
    path.write_text(json.dumps(results))
    for words in (comparison, ["share", "card", scene.root / changed]):
        scene.refused(*words, kind="StaleError")
    path.write_text(written)
    scene.ok(*comparison)
    scene.one().write_bytes(other_bytes(scene.one()))
    scene.embed(scene.photos, "--replace", store=f"{changed}/store.zarr")
    scene.refused(*comparison, kind="StaleError")
    scene.refused("share", "card", scene.root / changed, kind="StaleError")

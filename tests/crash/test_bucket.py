"""Stores in a bucket: killed, cut off, held by others; what is resumed is what a run on a disk makes, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.crash.conftest import Whole, photographs
from tests.crash.harness import MORE, PIXELS, differences, embed
from tests.crash.moments import until
from tests.crash.processes import Warm
from tests.object_server import KEY, SECRET, Fault, Server

from substyle.engine.cli import main
from substyle.engine.store import journal, lock
from substyle.engine.store.lock import Holder
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table
from substyle.engine.store.verify import verify
from substyle.pipelines.storage import ObjectPlace, Place


def fetched(store: ObjectPlace, folder: Path) -> Path:
    """A store in a bucket as a store on a disk."""
    local = folder / "fetched" / "s.zarr"
    for found, _ in store.walk():
        path = local / found.relative_to(store)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(found.read_bytes())
    return local


def puts(server: Server, store: ObjectPlace) -> int:
    """How often something was put into a store."""
    return sum(method == "PUT" and f"/{store.key}/" in path for method, path in server.requests)


@pytest.mark.slow
@pytest.mark.parametrize("moment", [1, 4, 8, 12, 20, 30])
def test_a_killed_run_is_resumed_to_the_same_bytes(
    warm: Warm, finished: Whole, bucket: ObjectPlace, server: Server, tmp_path: Path, moment: int
) -> None:
    store = bucket / "s.zarr"
    arguments = embed(finished.images, store)
    run = warm(arguments)
    until(lambda: puts(server, store) >= moment, run)
    run.kill().require(-9)
    assert len(journal.read(store)) < finished.shards
    warm(arguments).wait().require(0)
    assert differences(fetched(store, tmp_path), finished.store) == []
    assert verify(store, quiet=True).ok


@pytest.mark.slow
def test_parts_fill_one_store(warm: Warm, finished: Whole, bucket: ObjectPlace, tmp_path: Path) -> None:
    store = bucket / "s.zarr"
    runs = [warm(embed(finished.images, store, "--part", f"{i}/2")) for i in (1, 2)]
    for run in runs:
        run.wait().require(0)
    assert differences(fetched(store, tmp_path), finished.store) == []


@pytest.mark.slow
def test_a_second_run_is_refused_and_told_whose_store_it_is(
    warm: Warm, finished: Whole, bucket: ObjectPlace, server: Server
) -> None:
    store = bucket / "s.zarr"
    run = warm(embed(finished.images, store))
    until((store / lock.NAME).is_file, run)
    ended = warm(embed(finished.images, store)).wait()
    if run.running():
        ended.require(1, f"pid {run.pid}", str(store))
    run.wait().require(0)
    assert puts(server, store) > 0


@pytest.mark.slow
def test_the_lock_of_another_host_goes_when_the_user_says_that_its_run_has_ended(
    warm: Warm, tiny: Whole, bucket: ObjectPlace
) -> None:
    store = bucket / "s.zarr"
    far = Holder("far", "another-host", 1, "yesterday", system="another system")
    warm(embed(tiny.images, store, "--set", "limit=8")).wait().require(0)
    (store / lock.NAME).write(far.to_json())
    warm(embed(tiny.images, store)).wait().require(1, "run far (pid 1 on another-host", "--take-over")
    warm(embed(tiny.images, store, "--take-over")).wait().require(0, "run far")
    assert not (store / lock.NAME).is_file()
    assert len(EmbeddingStore.open(store).manifest().keys) == 12


# what is busy or broken is asked again for a quarter of a minute
@pytest.mark.slow
@pytest.mark.parametrize("status", [403, pytest.param(503, marks=pytest.mark.slow)])
def test_a_bucket_that_refuses_ends_the_run_and_keeps_what_is_finished(
    warm: Warm, finished: Whole, bucket: ObjectPlace, server: Server, tmp_path: Path, status: int
) -> None:
    store = bucket / "s.zarr"
    arguments = embed(finished.images, store)
    with server.failing(Fault("PUT", r"/c\.0\.\d+\.0$", status=status, after=2)):
        ended = warm(arguments).wait().require(1, "/c.0.", str(status), "kept")
    assert KEY not in ended.err + ended.out
    assert SECRET not in ended.err + ended.out
    kept = journal.read(store)
    assert 0 < len(kept) < finished.shards
    warm(arguments).wait().require(0)
    again = {record.shard: record.run for record in journal.read(store)}
    assert all(again[record.shard] == record.run for record in kept)
    assert differences(fetched(store, tmp_path), finished.store) == []


@pytest.mark.slow
def test_a_request_that_fails_now_and_then_is_made_again(
    warm: Warm, finished: Whole, bucket: ObjectPlace, server: Server, tmp_path: Path
) -> None:
    store = bucket / "s.zarr"
    faults = [Fault(method, ".", times=1, status=status, after=after) for method, status, after in (
        ("PUT", 500, 9), ("PUT", 0, 20), ("GET", 503, 12), ("PUT", 0, 33), ("POST", 500, 0), ("HEAD", 500, 2),
    )]  # fmt: skip
    with server.failing(*faults):
        warm(embed(finished.images, store)).wait().require(0)
    assert [fault for fault in faults if fault.seen <= fault.after] == []
    assert differences(fetched(store, tmp_path), finished.store) == []


@pytest.mark.slow
def test_growth_redoes_nothing(warm: Warm, bucket: ObjectPlace, tmp_path: Path) -> None:
    images, local = photographs(tmp_path / "photographs", 12), tmp_path / "local" / "s.zarr"
    store = bucket / "s.zarr"

    def fill(place: Place, suite: str, *backbones: str) -> None:
        warm(embed(images, place, suite=suite, backbones=backbones)).wait().require(0)

    first: dict[str, bytes] = {}
    for place in (store, local):
        fill(place, "identity,grayscale", PIXELS)
    first = {str(p): p.read_bytes() for p, _ in (store / "embeddings").walk() if "/c." in str(p)}
    photographs(images, 5, first=12)
    for place in (store, local):
        fill(place, MORE, PIXELS, "control:statistics")
    assert {name: data for name, data in first.items() if _read(store, name) == data} == first
    assert differences(fetched(store, tmp_path), local) == []
    assert load_table(EmbeddingStore.open(store), PIXELS).x_TND.shape[:2] == (4, 17)


def _read(store: ObjectPlace, name: str) -> bytes:
    return (store / name.removeprefix(f"{store}/")).read_bytes()


def test_no_secret_reaches_a_store(warm: Warm, finished: Whole, bucket: ObjectPlace) -> None:
    store = bucket / "s.zarr"
    ended = warm(embed(finished.images, store, "--set", "limit=8")).wait().require(0)
    for text in (ended.out, ended.err, *(p.read_bytes().decode("latin-1") for p, _ in store.walk())):
        assert KEY not in text
        assert SECRET not in text


@pytest.mark.parametrize("bad", [f"s3://{KEY}:{SECRET}@bucket/s.zarr", f"s3://bucket/s.zarr?X-Amz-Signature={SECRET}"])
def test_an_address_with_a_secret_is_refused_everywhere(
    bad: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, local, out = tmp_path / "study.toml", str(tmp_path / "s.zarr"), str(tmp_path / "out")
    begin = f'name = "s"\nbackbones = ["{PIXELS}"]\n'
    run = ["run", str(study), "--out", out]
    for arguments, text in (
        (["embed", str(tmp_path), "--store", bad, "--backbone", PIXELS], begin),
        (["embed", bad, "--store", local, "--backbone", PIXELS], begin),
        (["verify", bad], begin),
        (["stage", "probes", bad], begin),
        ([*run, "--images", bad], begin),
        ([*run, "--store", bad], begin),
        (run, f"{begin}images = {json.dumps(bad)}\n"),
        (run, f"{begin}store = {json.dumps(bad)}\n"),
        (run, f"{begin}[shift]\nother = {json.dumps(bad)}\n"),
    ):
        study.write_text(text)
        assert main(arguments) == 2, arguments
        said = capsys.readouterr()
        assert "allowed:" in said.err
        assert SECRET[:9] not in said.err + said.out
        assert KEY not in said.err + said.out
    assert list(tmp_path.iterdir()) == [study]

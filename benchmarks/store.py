"""How fast are embeddings written and read, against the memory's and the file system's own speed?"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import zarr
from numpy.typing import NDArray

from benchmarks import networks
from benchmarks.harness import CEILING, OURS, Row, interleave
from substyle.engine.store import arrays, compaction
from substyle.engine.store.catalog import Definition
from substyle.engine.store.layout import BackboneEntry, Codec, StoreSettings
from substyle.engine.store.records import ImageNote
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table

NAME = "store"
QUESTION = "how fast are embeddings written to a store and read from it?"
DIM, VARIANTS, SHARD = 768, 31, 1024
_PEER = "one Zarr array (N, T, D), zarr"
_FACTS = {"name": "bench:x", "dim": DIM, "spec": {"weights_hash": "x", "control": False},
          "runtime": {"name": "none", "precision": "fp32"}}  # fmt: skip


def run(quick: bool) -> list[Row]:
    """Write, full read, one variant of all images, and what a probe's epoch gathers."""
    images = SHARD * (1 if quick else 16)  # fewer, and a read is over before it has begun
    repeats = 3 if quick else 7
    rng = np.random.default_rng(0)
    x_TND = rng.normal(size=(VARIANTS, images, DIM)).astype(np.float16)
    with tempfile.TemporaryDirectory(prefix="substyle-bench-") as place:
        path = Path(place) / "s.zarr"
        store, entry = _empty(path, images)
        rows = [_write(store, entry, x_TND, repeats)]
        compaction.compact(store.path)  # as a run does at its end
        rows.append(_read_all(store, x_TND, repeats))
        rows.append(_one_variant(store, entry, x_TND, repeats))
        rows.append(_epoch(store, x_TND, repeats))
    return rows + [row for codec in get_args(Codec) for row in _codec(codec, repeats)]


def _names() -> list[str]:
    return ["identity", *(f"t{i:02d}" for i in range(1, VARIANTS))]


def _empty(path: Path, images: int, codec: Codec = "none", dim: int = DIM) -> tuple[EmbeddingStore, BackboneEntry]:
    store = EmbeddingStore.create(path, StoreSettings(0, 224, SHARD, "float16", codec=codec))
    keys = [f"{i}.jpg" for i in range(images)]
    store.add_images(keys, np.zeros(images, np.int64), ["x"], np.zeros(images, np.int8))
    found = [
        Definition({"name": name, "kind": "identity" if name == "identity" else "blur", "role": "train"})
        for name in _names()
    ]
    return store, store.ensure_backbone({**_FACTS, "dim": dim, "gate": {"cosine_min": 1.0}}, found)


def _write(store: EmbeddingStore, entry: BackboneEntry, x_TND: NDArray[np.float16], repeats: int) -> Row:
    images = x_TND.shape[1]
    wide_TND = x_TND.astype(np.float32)
    plain = Path(str(store.path.parent), "plain")
    plain.mkdir()
    small = np.random.default_rng(1).integers(0, 256, (images, 72), dtype=np.uint8)  # thumbnails, no two alike

    def ours() -> None:
        for shard in range(images // SHARD):
            first = shard * SHARD
            notes = [ImageNote(first + i, 1, 1, "", small[first + i].tobytes().hex(), ()) for i in range(SHARD)]
            part = {name: wide_TND[t, first : first + SHARD] for t, name in enumerate(_names())}
            store.write_shard(entry, shard, part, notes, seconds=0.0, run="r")

    def files() -> None:
        for shard in range(images // SHARD):
            with (plain / f"{shard}").open("wb") as file:
                file.write(x_TND[:, shard * SHARD : (shard + 1) * SHARD].tobytes())
                file.flush()
                os.fsync(file.fileno())

    timings = interleave({OURS: ours, CEILING: files}, repeats=repeats)
    return Row("write (cast, checksum, fsync); ceiling: plain files with fsync", "bytes", x_TND.nbytes, timings)


def _read_all(store: EmbeddingStore, x_TND: NDArray[np.float16], repeats: int) -> Row:
    path, chunks = str(store.path.parent / "single.zarr"), (SHARD, 1, DIM)
    x_NTD = x_TND.transpose(1, 0, 2)
    peer = zarr.create_array(path, shape=x_NTD.shape, chunks=chunks, dtype="float16", compressors=None)
    peer[:] = x_NTD
    np.testing.assert_array_equal(load_table(store, "bench:x").x_TND, x_TND)
    contenders: dict[str, Callable[[], object]] = {OURS: lambda: load_table(store, "bench:x"), CEILING: x_TND.copy}
    contenders[f"{_PEER} alone"] = lambda: peer[:]
    if importlib.util.find_spec("zarrs") is not None:
        with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
            fast = zarr.open_array(path, mode="r")
        contenders[f"{_PEER}s"] = lambda: fast[:]
    timings = interleave(contenders, repeats=repeats)
    return Row("full read as a table; ceiling: memory copy", "bytes", x_TND.nbytes, timings)


def _one_variant(store: EmbeddingStore, entry: BackboneEntry, x_TND: NDArray[np.float16], repeats: int) -> Row:
    single = zarr.open_array(str(store.path.parent / "single.zarr"), mode="r")
    name, one = _names()[7], x_TND[7]
    contenders = {OURS: lambda: store.read(entry, name), CEILING: one.copy, f"{_PEER} alone": lambda: single[:, 7]}
    timings = interleave(contenders, repeats=3 * repeats)
    return Row("one variant of all images; ceiling: memory copy", "bytes", one.nbytes, timings)


def _epoch(store: EmbeddingStore, x_TND: NDArray[np.float16], repeats: int) -> Row:
    """Random rows of random variants, 1,024 at a time, in float32, as in a probe's epoch."""
    table = load_table(store, "bench:x")
    rng = np.random.default_rng(0)
    images = x_TND.shape[1]
    order = rng.permutation(images)
    variants = rng.integers(0, VARIANTS, images)

    def ours() -> None:
        for start in range(0, images, 1024):
            part = slice(start, start + 1024)
            table.x_TND[variants[part], order[part]].astype(np.float32)

    def ceiling() -> None:
        for start in range(0, images, 1024):
            x_TND[0, start : start + 1024].astype(np.float32)

    timings = interleave({OURS: ours, CEILING: ceiling}, repeats=3 * repeats)
    return Row("gather of a probe's epoch; ceiling: the same rows in order", "bytes", images * DIM * 2, timings)


@cache
def _real() -> NDArray[np.float32]:
    """EfficientNet-Lite0's embeddings of all variants of the gate's photographs. Shape: (992, 1280)."""
    embed = networks.openvino(networks.LITE0, "fp32")
    samples = networks.samples()
    pictures = samples.pictures({name: range(samples.images()) for name in samples.names()})
    return np.concatenate([embed(batch) for batch in pictures.values()]).astype(np.float32)


def _codec(codec: Codec, repeats: int) -> list[Row]:
    """Write and read a shard of real embeddings, against the zarr library with the same codec."""
    x_ND = _real()
    kept_ND = arrays.rounded(x_ND.astype(np.float16), codec)
    mean_D = x_ND.mean(axis=0)
    a, b = kept_ND - mean_D, x_ND - mean_D
    cosine_N = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    with tempfile.TemporaryDirectory(prefix="substyle-bench-") as place:
        path = Path(place) / "s.zarr"
        store, entry = _empty(path, len(x_ND), codec, x_ND.shape[1])
        notes = [ImageNote(i, 1, 1, "", "", ()) for i in range(len(x_ND))]
        part = {name: x_ND for name in _names()}
        own = zarr.open_array(str(store.catalog.array(entry.slug, "identity").node(store.path)), mode="r")
        peer = zarr.create_array(
            f"{place}/zarr", shape=(VARIANTS, *kept_ND.shape), chunks=(1, SHARD, x_ND.shape[1]), dtype="float16",
            compressors=own.compressors,
        )  # fmt: skip

        def theirs() -> None:
            for t in range(VARIANTS):
                peer[t] = x_ND

        def ours() -> None:
            store.write_shard(entry, 0, part, notes, seconds=0.0, run="r")

        written = interleave({OURS: ours, "zarr alone": theirs}, repeats=repeats)
        compaction.compact(store.path)
        np.testing.assert_array_equal(load_table(store, "bench:x").x_TND[7], kept_ND)
        contenders = {OURS: lambda: load_table(store, "bench:x"), "zarr alone": lambda: peer[:]}
        read = interleave(contenders, repeats=repeats)
        plain = VARIANTS * store.settings.chunk_bytes(x_ND.shape[1])
        facts = {"size": store.stored_bytes(entry, _names()) / plain, "cosine_min": float(cosine_N.min())}
    size = VARIANTS * kept_ND.nbytes
    title = f"EfficientNet-Lite0's embeddings, codec {codec}"
    return [
        Row(f"write {title} (cast, checksum, fsync)", "bytes", size, written, facts=facts, headline=False),
        Row(f"read {title}", "bytes", size, read, facts=facts, headline=False),
    ]

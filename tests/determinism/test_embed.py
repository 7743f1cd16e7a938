"""Whole runs: embeddings do not depend on how a run is batched, ordered or continued.

Variants are compared with a backbone that returns the canvas. The compiled backbone is the same artefact in every run.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tests.at_once import AtOnce
from tests.conftest import shards_of
from tests.determinism.artefacts import SIDE, SMALL, Artefact, kept, loaded
from tests.determinism.canvases import Picture

from substyle.engine.backbones.compile import CompiledBackbone
from substyle.engine.backbones.spec import BackboneSpec
from substyle.engine.config import EmbedConfig, Settings
from substyle.engine.embedding.plan import EmbedPlan
from substyle.engine.embedding.prepare import PixelPipeline
from substyle.engine.embedding.run import embed_compiled
from substyle.engine.store.layout import TEST
from substyle.engine.store.store import EmbeddingStore
from substyle.pipelines.sources import FolderSource
from substyle.pipelines.storage import place
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import suite

SHARD = 4
NAMES = suite("motion_blur,gaussian_noise,hue_shift,low_contrast,jpeg,elastic,icon_overlay,dot_halftone")
IMAGES = [
    f"{split}/{name}/{i}.jpg"
    for split, name, count in (("train", "a", 4), ("train", "b", 5), ("test", "a", 2), ("test", "b", 2))
    for i in range(count)
]
BACKBONES = ("control:canvas", SMALL)
Rows = dict[tuple[str, str], bytes]  # (key, transformation): the embedding's bytes


def write(root: Path, keys: Sequence[str]) -> Path:
    for key in keys:
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        number = zlib.crc32(key.encode())
        kind = ("scene", "photograph", "noise", "tint", "grey")[number % 5]  # networks divide by the contrast
        out = io.BytesIO()
        picture = Image.fromarray(Picture(kind, number).canvas(70 + number % 30))
        picture.save(out, "JPEG", quality=90)
        path.write_bytes(out.getvalue())
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("images"), IMAGES)


def canvas_values() -> CompiledBackbone:
    zero, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    spec = BackboneSpec("control:canvas", "none", SIDE * SIDE * 3, SIDE, zero, one, "none", "none", "canvas-1")

    def values(canvas_BSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
        return canvas_BSSC.reshape(len(canvas_BSSC), -1).astype(np.float32)

    return CompiledBackbone(spec, AtOnce(values), {"name": "none", "precision": "fp32"}, None, 1e6)


def network() -> CompiledBackbone:
    runtime = {"name": "openvino", "precision": "bf16", "float32_layers": 6}
    return CompiledBackbone(loaded(SMALL).spec, kept(Artefact(SMALL, "bf16", 6)), runtime, None, 1e6)


class Run:
    """Settings of a run: batches and threads."""

    def __init__(self, batch: int, threads: int, *, names: Sequence[str] = NAMES) -> None:
        config = EmbedConfig(batch=batch, threads=threads, precision="auto", dtype="float32", shard_rows=SHARD)
        self.pipeline = PixelPipeline(Settings(5, SIDE, tuple(names)), config)
        self.backbones = [canvas_values(), network()]

    def fill(self, images: Path, store: Path) -> None:
        embed_compiled(EmbedPlan(FolderSource(images), place(store), self.pipeline), self.backbones, quiet=True)


def rows(path: Path, backbone: str, names: Sequence[str] = NAMES) -> Rows:
    store = EmbeddingStore.open(path)
    entry, manifest = store.backbone(backbone), store.manifest()
    found = {}
    for name in names:
        values = store.read(entry, name)
        for key, row in zip(manifest.keys, manifest.row_N.tolist(), strict=True):
            found[key, name] = values[row].tobytes()
    return found


def differing(a: Rows, b: Rows) -> set[tuple[str, str]]:
    return {place for place in a if a[place] != b[place]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    store = tmp_path_factory.mktemp("whole") / "s.zarr"
    Run(5, 1).fill(images, store)
    return store


def test_batch_threads_and_the_order_of_files_change_no_byte(tmp_path: Path, whole: Path) -> None:
    turned = write(tmp_path / "images", sorted(IMAGES, key=lambda key: key[::-1], reverse=True))
    Run(1, 2).fill(turned, tmp_path / "s.zarr")
    assert shards_of(tmp_path / "s.zarr") == shards_of(whole) != {}


@pytest.mark.slow
def test_more_images_in_the_folder_change_no_byte(tmp_path: Path, whole: Path) -> None:
    """Before, between and after existing keys, in old and new classes; one is unreadable."""
    more = ["train/0/first.jpg", "train/a/00.jpg", "train/a/2b.jpg", "train/b/zz.jpg", "test/c/9.jpg"]
    folder = write(tmp_path / "images", [*IMAGES, *more])
    (folder / "train/a/1b.jpg").write_bytes(b"not an image")
    Run(5, 2).fill(folder, tmp_path / "s.zarr")
    for backbone in BACKBONES:
        there, now = rows(whole, backbone), rows(tmp_path / "s.zarr", backbone)
        assert len(now) == len(there) + 6 * len(NAMES)
        assert differing(there, now) == set()


@pytest.mark.slow
def test_a_part_of_the_suite_first_and_the_rest_later_changes_no_byte(
    tmp_path: Path, images: Path, whole: Path
) -> None:
    store = tmp_path / "s.zarr"
    Run(5, 1, names=(NAMES[0], *NAMES[3:6])).fill(images, store)
    Run(5, 1).fill(images, store)
    for backbone in BACKBONES:
        assert differing(rows(whole, backbone), rows(store, backbone)) == set()


@pytest.mark.slow
def test_images_that_move_between_splits_change_their_overlays_and_nothing_else(tmp_path: Path) -> None:
    """A folder without splits is split by rank, so adding images may move others into or out of the test set.

    Test images get separate assets from transformations with ``split_assets``.
    """
    few = [f"{i}.jpg" for i in range(9)]
    stores = []
    for extra in ([], [f"more{i}.jpg" for i in range(12)]):
        store = tmp_path / f"{len(extra)}.zarr"
        Run(8, 1).fill(write(tmp_path / f"images{len(extra)}", [*few, *extra]), store)
        stores.append(store)
    tested = []
    for store in stores:
        manifest = EmbeddingStore.open(store).manifest()
        tested.append({key: int(split) == TEST for key, split in zip(manifest.keys, manifest.split_N, strict=True)})
    moved = {key for key in few if tested[0][key] != tested[1][key]}
    assert moved
    there, now = (rows(store, "control:canvas") for store in stores)
    assert differing(there, now) == {(key, name) for key in moved for name in NAMES if base.get(name).split_assets}


@pytest.mark.slow
def test_the_whole_suite_with_networks_changes_no_byte(tmp_path: Path, images: Path) -> None:
    names = suite("substance31")
    first = tmp_path / "first.zarr"
    Run(5, 1, names=names).fill(images, first)
    for batch, threads in ((1, 2), (8, 2), (3, 1)):
        store = tmp_path / f"{batch}.zarr"
        Run(batch, threads, names=names).fill(images, store)
        assert differing(rows(first, "control:canvas", names), rows(store, "control:canvas", names)) == set()

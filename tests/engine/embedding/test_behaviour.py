"""Transformations are recognised by their pixels on fixed pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from substyle.engine.config import EmbedConfig, Settings
from substyle.engine.embedding.behaviour import definitions_of
from substyle.engine.store import catalog
from substyle.engine.store.catalog import Definition, pixels_digest, read_pictures
from substyle.engine.store.layout import DifferentError, StoreSettings
from substyle.engine.store.store import EmbeddingStore
from substyle.errors import ConfigError
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.base import Choice
from substyle.pipelines.transforms.registry import load_all

SETTINGS = StoreSettings(seed=0, canvas=64, shard_rows=4, dtype="float16")
FACTS = {
    **{"name": "x", "dim": 3, "gate": None, "spec": {"weights_hash": "w", "control": False}},
    "runtime": {"name": "openvino", "precision": "fp32"},
}


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("SUBSTYLE_CACHE", str(tmp_path / "cache"))
    load_all()
    before = dict(base.REGISTRY)
    yield
    base.REGISTRY.clear()
    base.REGISTRY.update(before)


def found(*names: str, threads: int = 1, batch: int | None = None, crop_pct: float = 0.875) -> list[Definition]:
    return definitions_of(
        names, Settings(0, 64, names, crop_pct=crop_pct), EmbedConfig(threads=threads, batch=batch).here()
    )


def registered(name: str, function: object, *parameters: base.Parameter) -> None:
    base.REGISTRY.pop(name, None)
    base.register(base.Transformation(name, "tone", "train", "kernel", parameters, function=function))  # type: ignore[arg-type]


def test_a_constant_that_one_value_reaches_is_seen() -> None:
    """Of a function that a plug-in's helper may hold."""

    def darker(canvas_BSSC: torch.Tensor, args: base.Arrays, keys_B: object) -> torch.Tensor:
        step_B = torch.from_numpy(np.where(args["level"] == 7, edge, args["level"])).view(-1, 1, 1, 1)
        return (canvas_BSSC.float() - step_B).clamp(0, 255).to(torch.uint8)

    edge = 7.0
    levels = Choice("level", tuple(float(i) for i in range(12)))
    registered("mine_darker", darker, levels)
    (before,) = found("mine_darker")
    assert found("mine_darker") == [before]
    edge = 9.0
    (after,) = found("mine_darker")
    assert before.declared == after.declared
    assert before.pixels != after.pixels


def test_unseeded_randomness_is_refused() -> None:
    def noise(canvas_BSSC: torch.Tensor, args: base.Arrays, keys_B: object) -> torch.Tensor:
        return torch.randint_like(canvas_BSSC, 256)

    registered("mine_noise", noise)
    with pytest.raises(ConfigError, match=r"transformation mine_noise: .*seed generators"):
        found("identity", "mine_noise")


def store_with(path: Path, made: Definition) -> EmbeddingStore:
    store = EmbeddingStore.create(path, SETTINGS)
    store.add_images(["a"], np.zeros(1, np.int64), ["c"], np.zeros(1, np.int8))
    store.ensure_backbone(FACTS, [made])
    return EmbeddingStore.open(path)


def nudged(made: Definition, values: int, levels: int) -> Definition:
    assert made.pictures is not None
    pictures = made.pictures.copy()
    flat = pictures.reshape(-1)
    flat[:values] = np.where(flat[:values] > 127, flat[:values] - levels, flat[:values] + levels)
    return replace(made, pixels=(pixels_digest(pictures),), pictures=pictures)


def test_what_another_processor_rounds_is_accepted_and_recorded(tmp_path: Path) -> None:
    (made,) = found("grayscale")
    assert made.pictures is not None
    store = store_with(tmp_path / "s.zarr", made)
    few = int(made.pictures.size * catalog.ROUNDED)
    rounded = nudged(made, few, 1)
    entry = store.ensure_backbone(FACTS, [rounded])
    known = EmbeddingStore.open(tmp_path / "s.zarr").catalog.transformations[entry.slug]["grayscale"]
    assert known.pixels == tuple(sorted((*made.pixels, *rounded.pixels)))
    for other in (nudged(made, few + 1, 1), nudged(made, 1, 2)):
        with pytest.raises(DifferentError, match=r"grayscale \(other pixels: .* % of the values, by up to [12]\)"):
            store.require_definitions([other])
    # of the same name, after the pictures were lost
    for path in (tmp_path / "s.zarr" / "catalog").glob("*.pictures"):
        path.write_bytes(b"damaged")
    store.require_definitions([made])
    with pytest.raises(DifferentError, match=r"grayscale \(other pixels\)"):
        store.require_definitions([nudged(made, 1, 1)])


def test_a_store_of_an_earlier_version_gets_digests(tmp_path: Path) -> None:
    (made,) = found("text_overlay")
    older = Definition({**made.definition, "code": "0123456789abcdef"})
    del older.definition["assets"]
    store = store_with(tmp_path / "s.zarr", older)
    assert older.difference(made, store.path) == ""
    entry = store.ensure_backbone(FACTS, [made])
    known = EmbeddingStore.open(tmp_path / "s.zarr").catalog.transformations[entry.slug]["text_overlay"]
    assert (known.hash, known.assets) == (made.hash, made.assets)
    read = read_pictures(store.path, made, made.pixels[0])
    assert read is not None
    np.testing.assert_array_equal(read, made.pictures)
    with pytest.raises(DifferentError, match="another definition"):
        store.require_definitions([Definition({**made.definition, "version": 99})])

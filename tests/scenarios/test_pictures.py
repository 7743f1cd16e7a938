"""Styles of one's own pictures in a store: identified by what was read, and known by their generator without it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conftest import jpeg, photograph
from tests.scenarios.scene import Scene

from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table
from substyle.pipelines.transforms import registry
from substyle.pipelines.transforms.style import by_generator

PIXELS = "control:pixels"
NAME = "monet in 1906.jpg"


def write(folder: Path, content: bytes, name: str = NAME) -> Path:
    """A suite file, and a picture that it names."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    row = f'{{ name = "mine", of = "style_arbitrary", picture = "{name}" }}'
    path = folder / "own.toml"
    path.write_text(f'transformations = [{row}, "style_gravel", "style_wave"]')
    return path


def test_a_store_refuses_another_picture(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_loaded", [])
    one, other = jpeg(photograph(100)), jpeg(photograph(101))
    suite = write(scene.root / "suite", one)
    scene.embed(scene.photos, "--suite", suite)
    scene.new_process()
    write(scene.root / "suite", other)
    scene.add(40)
    refused = scene.embedding(scene.photos, "--suite", suite)
    message = scene.refused(*refused, kind="DifferentError")
    assert "mine (another definition)" in message
    scene.new_process()
    moved = write(scene.root / "elsewhere", one, "copy.jpg")
    scene.embed(scene.photos, "--suite", moved)
    table = load_table(EmbeddingStore.open(scene.root / "s.zarr"), PIXELS)
    assert len(table.keys) == 19
    scene.new_process()  # which lacks the suite
    expected = {"arbitrary": ["mine", "style_gravel"], "multistyle": ["style_wave"]}
    table = load_table(EmbeddingStore.open(scene.root / "s.zarr"), PIXELS)
    found = by_generator(table.transformations, table.generators)
    assert {key: [table.transformations[t] for t in own] for key, own in found.items()} == expected

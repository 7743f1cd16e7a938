"""Inputs that must not be mixed: foreign files, sources, settings, and stores that change during a run."""

from __future__ import annotations

import pytest
from tests.conftest import jpeg, photograph
from tests.scenarios.scene import Scene, write

from substyle.engine.cli import main
from substyle.engine.store.store import EmbeddingStore


@pytest.mark.parametrize("names", [("0", "1"), ("ants", "bees")])
def test_numbered_classes_of_another_source_are_pointed_out(
    scene: Scene, names: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Class 0 of one data set is seldom class 0 of another."""
    for folder, first in (("a", 0), ("b", 100)):
        for i in range(18):
            write(scene.root / folder / names[i % 2] / f"{folder}{i:02d}.jpg", jpeg(photograph(first + i)))
    scene.embed(scene.root / "a")
    command = [*map(str, scene.embedding(scene.root / "b")), "--add"]
    assert main(command) == 0
    said = capsys.readouterr().err
    assert ("classes 0, 1 taken for those of" in said) == (names[0] == "0"), said
    assert EmbeddingStore.open(scene.root / "s.zarr").manifest().class_names == names

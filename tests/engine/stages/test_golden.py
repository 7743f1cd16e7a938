"""Numbers of stages on a small store. If they move, the ``version`` of the stage must rise: earlier ones are outdated.

``GOLDEN=write pytest tests/engine/stages/test_golden.py`` writes the numbers again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from substyle.engine.cli import main
from substyle.engine.embedding.behaviour import Definition
from substyle.engine.extensions.generators.stage import GeneratorsConfig
from substyle.engine.stages import registry
from substyle.engine.store.layout import StoreSettings
from substyle.engine.store.records import ImageNote
from substyle.engine.store.store import EmbeddingStore
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import load_all

FILE = Path(__file__).with_name("golden.json")
NAMES = (
    *("identity", "gaussian_blur", "defocus_blur", "brightness", "saturate", "jpeg", "low_resolution"),
    *("style_starry", "style_wave", "style_leaded_window", "style_ink_pen"),
)
IMAGES, WIDTH, ROWS = 90, 12, 32
SETTINGS = {
    "probes": (
        *("probes.mlp_steps=20", "probes.multitask_steps=20", "probes.expert.doublings=1", "probes.widths=[32]"),
        *("bootstrap=100", "probes.redraws=2", "probes.resamples=1", "threads=1"),
    ),
    "analysis": (),
    "similarity": (),
    "few_shot": ("few_shot.shots=4",),
    "shortcut": ("bootstrap=100",),
    "parameters": ("bootstrap=100",),
    "movement": ("bootstrap=100",),
    "generators": ("generators.styles=1", "bootstrap=100", "generators.draws=2"),
    "mistakes": (),
}
KEPT = 80  # numbers of a stage
TOLERANCE = 2e-3  # of fractions and coefficients, for other processors and libraries
OF_NETWORKS = 0.05  # of probes that take many steps: without AVX-512, one of 30 rows is on the other side


def _tolerance(path: str) -> float:
    return OF_NETWORKS if {"mlp", "multitask"} & set(path.split("/")) else TOLERANCE


def _store(path: Path) -> None:
    """A store of random embeddings: directions of classes and transformations, drawn parameters, and noise."""
    load_all()
    rng = np.random.default_rng(0)
    settings = StoreSettings(seed=0, canvas=64, shard_rows=ROWS, dtype="float32")
    store = EmbeddingStore.create(path, settings)
    label_N = np.arange(IMAGES) % 3
    split_N = np.repeat(np.array([0, 1, 2], np.int8), (45, 15, 30))
    keys = [f"{'abc'[label]}/{i:02d}.jpg" for i, label in enumerate(label_N)]
    store.add_images(keys, label_N.astype(np.int64), ["a", "b", "c"], split_N)
    for backbone, strength in (("mine:strong", 2.0), ("mine:weak", 0.7)):
        facts = {
            **{"name": backbone, "dim": WIDTH, "gate": None, "rate": None},
            "spec": {"weights_hash": backbone, "control": False, "weights": "none"},
            "runtime": {"name": "imported", "precision": "fp32"},
        }
        entry = store.ensure_backbone(facts, [Definition(base.get(name).describe()) for name in NAMES])
        directions_TD, classes_CD = rng.normal(size=(len(NAMES), WIDTH)), rng.normal(size=(3, WIDTH))
        plain_ND = classes_CD[label_N] + 0.6 * rng.normal(size=(IMAGES, WIDTH))
        x_TND = plain_ND + strength * directions_TD[:, None] * rng.uniform(0.5, 1.5, (len(NAMES), IMAGES, 1))
        x_TND += 0.4 * rng.normal(size=x_TND.shape)
        for shard in range(-(-IMAGES // ROWS)):
            rows = range(shard * ROWS, min((shard + 1) * ROWS, IMAGES))
            made = {name: x_TND[t, rows.start : rows.stop].astype(np.float32) for t, name in enumerate(NAMES)}
            thumbnails = np.random.default_rng(shard).integers(0, 256, (len(rows), 72), np.uint8)
            notes = [
                ImageNote(row, 64, 64, "", own.tobytes().hex(), ()) for row, own in zip(rows, thumbnails, strict=True)
            ]
            store.write_shard(entry, shard, made, notes, seconds=1.0, run="r")


def _numbers(found: Any, name: str = "") -> Iterator[tuple[str, float]]:  # noqa: ANN401 - JSON
    """Numbers of a JSON value by their path, without times and what fits took."""
    pairs = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    for key, value in pairs:
        if key not in ("seconds", "map", "certificate", "steps"):
            yield from _numbers(value, f"{name}/{key}")
    if isinstance(found, int | float):
        yield name, float(found)


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """Numbers of each stage by path."""
    folder = tmp_path_factory.mktemp("golden")
    _store(folder / "s.zarr")
    found = {}
    for name, values in SETTINGS.items():
        settings = [word for value in values for word in ("--set", value)]
        answer = folder / f"{name}.json"
        words = ["stage", name, folder / "s.zarr", "--out", folder / "out", "--quiet", *settings]
        with answer.open("w") as file, pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stdout", file)
            patch.setattr("substyle.engine.analysis.projection.POINTS", 0)  # no map
            patch.setattr(GeneratorsConfig, "resamples", 2)
            assert main([*map(str, words), "--json"]) == 0
        result = json.loads(answer.read_text().splitlines()[-1])
        numbers = sorted(_numbers({key: value for key, value in result.items() if key != "out"}))
        found[name] = dict(numbers[:: -(-len(numbers) // KEPT)])
    return found


def test_numbers_that_move_have_another_version(computed: dict[str, dict[str, float]]) -> None:
    versions = {name: registry.stage(name).version for name in SETTINGS}
    if os.environ.get("GOLDEN") == "write":
        rounded = {name: {k: float(f"{v:.5g}") for k, v in own.items()} for name, own in computed.items()}
        rows = {name: {"version": versions[name], "numbers": rounded[name]} for name in SETTINGS}
        FILE.write_text(json.dumps(rows, indent=0, sort_keys=True) + "\n")
    kept = json.loads(FILE.read_text())
    moved = {}
    for name, own in computed.items():
        before = kept[name]["numbers"]
        assert len(before) > 3
        far = {
            path: (before.get(path), own.get(path))
            for path in before.keys() | own.keys()
            if path not in before
            or path not in own
            or abs(before[path] - own[path]) > _tolerance(path) * max(1, abs(before[path]))
        }
        if far:
            moved[name] = far
    outdated = [name for name in SETTINGS if kept[name]["version"] != versions[name]]
    assert not moved, "numbers moved: raise the stage's version, and write golden.json again"
    assert not outdated, "another version: write golden.json again"

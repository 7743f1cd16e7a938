from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from tests.staged import probe, run_of

import substyle
from substyle.engine.probes.checkpoint import Probe
from substyle.engine.probes.config import ExpertConfig, ProbeConfig
from substyle.engine.probes.outcomes import ProbeOutcome
from substyle.engine.stages import mistakes as module
from substyle.engine.stages.execution import computed
from substyle.engine.stages.mistakes import STAGE, MistakesConfig
from substyle.engine.store.layout import TEST

NAMES = ("identity", "gaussian_blur", "icon_overlay", "grayscale", "jpeg")
SHOWN = MistakesConfig().shown
PIXELS = "control:pixels"
PROBES = ProbeConfig(
    tasks=("transformation", "kind", "class"), heads=("linear",), Cs=(1e-2,), resamples=0,
    redraws=0, rotate="none", bootstrap=100, expert=ExpertConfig(passes=50, doublings=1, equal_width=0))  # fmt: skip


def mistakes(store: substyle.EmbeddingStore, out: Path) -> dict[str, Any]:
    return computed(STAGE, run_of(store, out))


@pytest.fixture
def photographs(two_classes: Path, tmp_path: Path) -> Path:
    return shutil.copytree(two_classes, tmp_path / "photographs")


@pytest.fixture
def store(photographs: Path, tmp_path: Path) -> substyle.EmbeddingStore:
    made = substyle.embed(photographs, tmp_path / "s.zarr", [PIXELS], transformations=NAMES, canvas=64)
    probe(made, tmp_path, PROBES)
    return made


def plain(table: substyle.EmbeddingTable, file: Path, labels: list[str], transformations: range) -> list[Any]:
    """The list from the weights and the temperature in the file, in numpy alone."""
    weights, (calibration,) = load_file(file), Probe.load(file).calibration.values()
    assert calibration is not None
    found = []
    for t in transformations:
        for n in table.rows(TEST):
            truth = table.transformations[t] if len(labels) == len(NAMES) else table.class_names[table.label_N[n]]
            x_D = np.asarray(table.x_TND[t, n], np.float64)  # type: ignore[index]
            logits_SC = weights["w1"] @ x_D + weights["b1"]
            p_SC = np.exp(logits_SC - logits_SC.max(axis=1, keepdims=True))
            p_C = (p_SC / p_SC.sum(axis=1, keepdims=True)).mean(axis=0) ** (1 / calibration["temperature"])
            p_C /= p_C.sum()
            predicted = labels[p_C.argmax()]
            if table.distinct_TN[t, n] and predicted != truth:
                found.append((table.keys[n], table.transformations[t], truth, predicted, p_C.max()))
    return sorted(found, key=lambda row: -row[4])


def test_lists_what_numpy_lists_with_the_pixels_that_were_embedded(
    store: substyle.EmbeddingStore, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mistakes(store, tmp_path) == {}  # controls are left out
    monkeypatch.setattr(module, "_CHUNK", 7)
    store.backbone(PIXELS).facts["spec"]["control"] = False
    found = mistakes(store, tmp_path)[PIXELS]
    table = substyle.load_table(store, PIXELS)
    folder = tmp_path / "probes" / store.backbone(PIXELS).slug
    scores = ProbeOutcome.load(folder).scores
    drawn = {
        (name, key): pixels
        for keys, name, batch in substyle.iter_variants(photographs, suite=NAMES, canvas=64)
        for key, pixels in zip(keys, batch, strict=True)
    }
    for task, labels, of in (
        ("transformation", list(table.transformations), range(len(NAMES))),
        ("class", ["even", "odd"], range(1)),
    ):
        expected = plain(table, folder / f"{task}-linear.safetensors", labels, of)
        part = found[task]
        columns = ("key", "transformation", "truth", "predicted")
        assert [tuple(row[c] for c in columns) for row in part["rows"]] == [row[:4] for row in expected[:SHOWN]]
        np.testing.assert_allclose(
            [row["confidence"] for row in part["rows"]], [row[4] for row in expected[:SHOWN]], 1e-4
        )
        score_TN = scores[f"{task}/linear"][: len(of)]
        assert (part["scored"], part["wrong"]) == (np.isfinite(score_TN).sum(), (score_TN == 0).sum())
        for row in part["rows"]:
            pixels = np.asarray(Image.open(tmp_path / "mistakes" / row["picture"]))
            np.testing.assert_array_equal(pixels, drawn[row["transformation"], row["key"]])
    assert len(found["transformation"]["rows"]) == SHOWN

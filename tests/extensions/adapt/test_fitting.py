"""Adapters: what they are fitted to, their files, and backbones with one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import save_file
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from tests.engine.probes.conftest import Make, Quick

from substyle.engine.backbones import registry
from substyle.engine.backbones.lazy import LazyBackbone
from substyle.engine.backbones.registry import LoadContext
from substyle.engine.backbones.spec import BackboneSpec
from substyle.engine.backbones.weights import WeightsError
from substyle.engine.extensions.adapt.family import FORMAT, Adapter
from substyle.engine.extensions.adapt.fitting import AdapterLayer, fit_multitask, fit_pisco
from substyle.engine.store.layout import TEST, TRAIN
from substyle.engine.store.table import EmbeddingTable


def seen(table: EmbeddingTable) -> list[int]:
    return [t for t, role in enumerate(table.roles) if role == "train"]


def test_style_directions_are_those_of_lda(make_table: Make, quick: Quick) -> None:
    table = make_table(images=400, width=12)
    layer = fit_pisco(table, quick())
    chosen, images = seen(table), np.flatnonzero(table.split_N == TRAIN)
    x = np.concatenate([table.take(t, images) for t in chosen]).astype(np.float64)
    y = np.repeat(np.arange(len(chosen)), len(images))
    fitted = LinearDiscriminantAnalysis(solver="lsqr").fit(x, y)
    theirs = fitted.coef_[1:] - fitted.coef_[0]
    mine = layer.weight_ED[: len(chosen) - 1]
    cosine = (mine * theirs).sum(1) / np.linalg.norm(mine, axis=1) / np.linalg.norm(theirs, axis=1)
    np.testing.assert_allclose(cosine, 1.0, atol=1e-3)
    assert layer.facts["transformations"] == [table.transformations[t] for t in chosen]


def test_content_leaves_out_directions_of_style_and_keeps_the_photograph(quick: Quick, make_table: Make) -> None:
    # variants move only along the last two axes, photographs differ only along the others
    table = make_table(images=200, width=10)
    rng = np.random.default_rng(0)
    x = np.zeros(table.x_TND.shape, np.float16)
    x[:, :, :8] = rng.normal(size=(200, 8))
    x[1:, :, 8:] = rng.normal(size=(len(x) - 1, 1, 2)) * 3.0
    layer = fit_pisco(replace(table, x_TND=x), quick(), content=1.3, penalty=50.0)
    content = layer.weight_ED[layer.facts["style_dimensions"] :]
    assert np.linalg.matrix_rank(content, tol=1e-4) == 8
    np.testing.assert_allclose(content[:, 8:], 0.0, atol=1e-6)
    np.testing.assert_allclose(content[:8, :8] / content[0, 0], np.eye(8), atol=1e-4)
    kept = fit_pisco(replace(table, x_TND=x), quick(), content=1.3, penalty=0.0)
    assert np.abs(kept.weight_ED[layer.facts["style_dimensions"] :][:, 8:]).max() > 0.1


@pytest.mark.parametrize("fit", [fit_multitask, fit_pisco])
def test_held_out_transformations_and_test_photographs_are_not_used(
    make_table: Make, quick: Quick, fit: Callable[..., AdapterLayer]
) -> None:
    table = make_table()
    config = quick(multitask_steps=8, doublings=1)
    other = table.x_TND.copy()
    other[[t for t, role in enumerate(table.roles) if role == "held_out"]] += 5.0
    other[:, table.split_N == TEST] -= 7.0
    first, second = fit(table, config), fit(replace(table, x_TND=other), config)
    np.testing.assert_array_equal(first.weight_ED, second.weight_ED)
    np.testing.assert_array_equal(first.bias_E, second.bias_E)
    changed = fit(replace(table, x_TND=table.x_TND * np.float16(0.5) + np.float16(1)), config)
    assert not np.array_equal(first.bias_E, changed.bias_E)


CONTEXT = LoadContext(canvas=64, batch=2, seed=0)
BASE = "control:random:test_vit"


@pytest.fixture(scope="module")
def base() -> LazyBackbone:
    return LazyBackbone.of(registry.load(BASE, CONTEXT), canvas=64, batch=2)


def adapter(spec: BackboneSpec, *, relu: bool = True, width: int = 7, **changes: object) -> Adapter:
    rng = np.random.default_rng(0)
    metadata: dict[str, Any] = {"method": "multitask", "backbone": spec.name, "weights_hash": spec.weights_hash}
    weight, bias = rng.normal(size=(width, spec.dim)), rng.normal(size=width)
    return Adapter(weight.astype(np.float32), bias.astype(np.float32), metadata | {"relu": relu} | changes)


@pytest.mark.parametrize("relu", [True, False])
def test_a_file_and_its_onnx_model_compute_the_same(base: LazyBackbone, tmp_path: Path, relu: bool) -> None:
    made = adapter(base.spec, relu=relu)
    made.save(tmp_path / "a.safetensors")
    read = Adapter.load(tmp_path / "a.safetensors")
    assert (read.metadata, read.digest) == (made.metadata, made.digest)
    x_BD = np.random.default_rng(1).normal(size=(5, base.spec.dim)).astype(np.float32)
    plain = x_BD @ made.weight_ED.T + made.bias_E
    expected = np.maximum(plain, 0.0) if relu else plain
    np.testing.assert_allclose(read(x_BD), expected, rtol=1e-4, atol=1e-5)
    (found,) = onnxruntime.InferenceSession(str(tmp_path / "a.onnx")).run(None, {"embedding": x_BD})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    x_BD[2] = np.nan
    assert np.isnan(read(x_BD)).all(axis=1).tolist() == [False, False, True, False, False]


GOOD = {"method": "pisco", "backbone": "b", "weights_hash": "w", "relu": False, "format": FORMAT}
ARRAYS = {"weight": np.ones((2, 3), np.float32), "bias": np.ones(2, np.float32)}


@pytest.mark.parametrize(
    ("arrays", "header"),
    [
        ({"weight": ARRAYS["weight"]}, GOOD),
        (ARRAYS | {"bias": np.ones(3, np.float32)}, GOOD),
        (ARRAYS | {"weight": np.ones((2, 3), np.float64)}, GOOD),
        (ARRAYS, {**GOOD, "format": "other"}),
        (ARRAYS, {name: value for name, value in GOOD.items() if name != "backbone"}),
        (ARRAYS, []),
    ],
)
def test_other_files_are_refused(tmp_path: Path, arrays: dict[str, Any], header: Any) -> None:  # noqa: ANN401
    path = tmp_path / "a.safetensors"
    save_file(ARRAYS, path, {"substyle": json.dumps(GOOD)})
    Adapter.load(path)
    save_file(arrays, path, {"substyle": json.dumps(header)})
    with pytest.raises(WeightsError):
        Adapter.load(path)

"""Files of adapters, and backbones with an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import save_file

from substyle.engine.backbones import registry
from substyle.engine.backbones.lazy import LazyBackbone
from substyle.engine.backbones.registry import LoadContext
from substyle.engine.backbones.spec import BackboneSpec
from substyle.engine.backbones.weights import WeightsError
from substyle.engine.extensions.adapt.family import FORMAT, Adapter

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

"""Files of adapters, and backbones with an adapter."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.numpy import save_file

from substyle.engine.backbones import registry
from substyle.engine.backbones.export import Preprocessed
from substyle.engine.backbones.lazy import LazyBackbone
from substyle.engine.backbones.registry import LoadContext
from substyle.engine.backbones.spec import BackboneSpec
from substyle.engine.backbones.weights import WeightsError
from substyle.engine.extensions.adapt.family import FORMAT, PREFIX, Adapter, path_of, wrap
from substyle.errors import ConfigError

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


def test_every_fact_changes_the_digest(base: LazyBackbone) -> None:
    made = adapter(base.spec)
    others = [adapter(base.spec, seed=1), adapter(base.spec, relu=False), adapter(base.spec, width=8)]
    others.append(replace(made, bias_E=made.bias_E + np.float32(1e-6)))
    assert len({each.digest for each in (made, *others)}) == 5


def test_the_backbone_is_followed_by_the_adapter(base: LazyBackbone, tmp_path: Path) -> None:
    made = adapter(base.spec)
    path = tmp_path / "a.safetensors"
    made.save(path)
    name = f"{PREFIX}{path}"
    assert path_of(name) == path
    found = registry.load(name, CONTEXT)
    assert isinstance(found.module, Preprocessed)
    canvas = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        assert base.backbone.module is not None
        plain = base.backbone.module(canvas).numpy()
        np.testing.assert_allclose(found.module(canvas).numpy(), made(plain), rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(base.backbone.module(canvas).numpy(), plain)  # the original is unchanged
    assert (found.spec.name, found.spec.dim, found.spec.objective) == (name, 7, "")
    assert found.spec.weights_hash != base.spec.weights_hash
    assert registry.identity(name, CONTEXT) is not None
    made = adapter(base.spec, width=9)
    made.save(path)
    assert registry.load(name, CONTEXT).spec.weights_hash != found.spec.weights_hash
    assert registry.identity(name, CONTEXT) != registry.identity(BASE, CONTEXT)


def test_plain_arithmetic_can_be_adapted() -> None:
    pixels = registry.load("control:pixels", CONTEXT)
    found = wrap("adapt:x", adapter(pixels.spec), pixels, 64)
    canvas = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    assert found.module is not None
    assert found.module(canvas).shape == (2, 7)
    assert not found.compiled


def test_another_backbone_is_refused(base: LazyBackbone) -> None:
    with pytest.raises(WeightsError):
        wrap("adapt:x", adapter(replace(base.spec, weights_hash="other")), base.backbone, 64)
    with pytest.raises(WeightsError):
        wrap("adapt:x", adapter(replace(base.spec, dim=base.spec.dim + 1)), base.backbone, 64)
    with pytest.raises(ConfigError):
        wrap("adapt:x", adapter(base.spec), replace(base.backbone, module=None), 64)


GOOD = {"method": "pisco", "backbone": "b", "weights_hash": "w", "relu": False, "format": FORMAT}
ARRAYS = {"weight": np.ones((2, 3), np.float32), "bias": np.ones(2, np.float32)}


@pytest.mark.parametrize(
    ("arrays", "header"),
    [
        ({"weight": ARRAYS["weight"]}, GOOD),
        (ARRAYS | {"bias": np.ones(3, np.float32)}, GOOD),
        (ARRAYS | {"weight": np.full((2, 3), np.nan, np.float32)}, GOOD),
        (ARRAYS | {"weight": np.ones((2, 3), np.float64)}, GOOD),
        (ARRAYS, {**GOOD, "format": "other"}),
        (ARRAYS, {**GOOD, "relu": "no"}),
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


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    for data in (None, b"", b"no tensors"):
        path = tmp_path / "a.safetensors"
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(WeightsError, match=r"a\.safetensors"):
            Adapter.load(path)

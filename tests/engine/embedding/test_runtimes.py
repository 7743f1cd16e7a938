"""`embed` and `run` with the runtime torch on a CPU, from the command line to the store, gates included."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import setting
from torch import nn

from substyle.engine.cli import main
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table

VIT = "control:random:test_vit"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile gives back what it is given: code is generated in one test, that takes seconds."""

    def compiled(module: nn.Module, **how: object) -> nn.Module:
        return module

    monkeypatch.setattr(torch, "compile", compiled)


def embed(images: Path, store: Path, *more: str) -> int:
    settings = [
        "--suite",
        "identity,grayscale,gaussian_noise",
        *setting("canvas=32", "embed.batch=8", "limit=12"),
    ]
    arguments = ["embed", str(images), "--store", str(store), "--backbone", VIT, "--set", "threads=1", *settings]
    return main([*arguments, "--set", "embed.shard_rows=8", "--quiet", "--json", *more])


def vit(store: Path) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    opened = EmbeddingStore.open(store)
    return opened.backbone(VIT).facts, load_table(opened, VIT).x_TND.astype(np.float32)


def cosine(a_TND: np.ndarray[Any, Any], b_TND: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Of each row with its counterpart, without the mean of the second. Shape: (T, N)."""
    mean = b_TND.mean((0, 1))
    a, b = a_TND - mean, b_TND - mean
    return np.asarray((a * b).sum(2) / np.linalg.norm(a, axis=2) / np.linalg.norm(b, axis=2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["uncompiled", pytest.param("compiled", marks=pytest.mark.slow)])
def test_torch_fills_a_store(
    tmp_path: Path, two_classes: Path, kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "uncompiled":
        request.getfixturevalue("uncompiled")
    elif shutil.which("g++") is None:
        pytest.skip("no compiler")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    assert embed(two_classes, tmp_path / "torch.zarr", "--set", "embed.runtime=torch") == 0
    facts, x_TND = vit(tmp_path / "torch.zarr")
    assert facts["runtime"]["name"] == "torch.compile"
    assert facts["runtime"]["device"] == "cpu"
    assert facts["gate"]["cosine_min"] >= facts["gate"]["threshold"]
    assert (
        embed(two_classes, tmp_path / "openvino.zarr", *setting("embed.precision=fp32", "embed.runtime=openvino")) == 0
    )
    told, reference_TND = vit(tmp_path / "openvino.zarr")
    assert told["runtime"]["name"] == "openvino"
    assert x_TND.shape == (3, 12, 64)
    assert cosine(x_TND, reference_TND).min() > 0.998


def test_a_store_goes_on_with_the_runtime_that_began_it(
    tmp_path: Path, two_classes: Path, uncompiled: None, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "s.zarr"
    how = ("--set", "embed.runtime=torch", "--device", "cpu", "--set", "embed.precision=fp32")
    assert embed(two_classes, store, *how) == 0
    before = vit(store)[1]
    assert embed(two_classes, store, *how, "--set", "limit=20") == 0
    assert load_table(EmbeddingStore.open(store), VIT).x_TND.shape[1] == 20
    keys = list(load_table(EmbeddingStore.open(store), VIT).keys)
    assert len(keys) == 20
    np.testing.assert_array_equal(vit(store)[1][:, :12], before)
    capsys.readouterr()
    assert embed(two_classes, store, *setting("embed.runtime=openvino", "embed.precision=fp32", "limit=30")) == 1
    said = capsys.readouterr().err
    assert re.search(rf"{store}: {VIT} .*: runtime torch\.compile .*, openvino now", said)
    assert 'device = "cpu" and runtime = "torch"' in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--device", "tpu"], "--device: got 'tpu'; allowed: auto, cpu, cuda or cuda:N"),
        (["--set", "embed.runtime=onnx"], "embed.runtime: got 'onnx'; allowed: auto, openvino, tensorrt, torch"),
        (["--device", "cpu", "--set", "embed.runtime=tensorrt"], "embed.runtime: got 'tensorrt'"),
        (
            [*setting("embed.runtime=torch", "embed.precision=int8")],
            "precision: got 'int8'; allowed: auto, fp32, bf16, fp16",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    tmp_path: Path, two_classes: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert embed(two_classes, tmp_path / "s.zarr", *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.slow
def test_run_takes_device_and_runtime_from_the_study_or_the_command_line(
    tmp_path: Path, two_classes: Path, uncompiled: None, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "s.toml"
    study.write_text(
        f'name = "s"\nsuite = "identity,grayscale"\ncanvas = 32\ngallery = 0\nbackbones = ["{VIT}"]\n'
        'bootstrap = 100\ndevice = "cpu"\n[embed]\nbatch = 8\nruntime = "tensorrt"\nprecision = "fp32"\n'
        "[probes]\nmlp_steps = 2\nmultitask_steps = 2\nexpert.doublings = 1\nwidths = [8]\nCs = [1e-2]\nresamples = 2\n"
        "[analysis]\nks = [1]\n"
    )
    command = ["run", str(study), "--images", str(two_classes), "--out", str(tmp_path / "out"), "--quiet"]
    assert main(command) == 2
    assert "s.toml: embed.runtime: got 'tensorrt'; allowed: auto, openvino, torch" in capsys.readouterr().err
    study.write_text(study.read_text().replace('"tensorrt"', '"openvino"'))
    assert main([*command, "--set", "embed.runtime=torch", "--device", "auto", "--set", "limit=24"]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["backbones"][VIT]["runtime"]["name"] == "torch.compile"

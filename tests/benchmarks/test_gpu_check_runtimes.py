"""The check of runtimes, tiny, on the CPU: TensorRT beside torch.compile, and what a machine without timm does."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from benchmarks.gpu_check import __main__ as gpu_check
from benchmarks.gpu_check import eight_bits, networks
from benchmarks.gpu_check.bench import TINY
from benchmarks.gpu_check.plain_vit import SHAPES, PlainViT
from benchmarks.gpu_check.rows import FAILED, MEASURED, PASSED, SKIPPED
from tests.benchmarks.conftest import Run

from substyle.engine.backbones import export
from substyle.engine.backbones.families import timm
from substyle.engine.backbones.runtimes import tensorrt
from substyle.engine.estimate.networks import of_network

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def stand_in(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library in the place of TensorRT, which `run` hides; export and build have tests of their own."""
    made: list[torch.nn.Module] = []

    def graph(module: Any, precision: Any, *, canvas: int, batch: int) -> SimpleNamespace:  # noqa: ANN401
        made.append(export.Typed(module, precision).eval())
        return SimpleNamespace(SerializeToString=lambda: b"graph")

    class Engine:
        stream = None

        def __init__(self, engine: bytes, device: torch.device) -> None:
            assert engine == b"engine of graph"

        def __call__(self, canvas: torch.Tensor) -> np.ndarray:  # type: ignore[type-arg]
            with torch.no_grad():
                return np.asarray(made[-1](canvas).numpy())

        start = __call__

    monkeypatch.setattr(tensorrt, "installed", lambda: "tensorrt")
    monkeypatch.setattr(tensorrt, "build", lambda onnx, *, batch, canvas: b"engine of " + onnx)
    monkeypatch.setattr(export, "typed_graph", graph)
    monkeypatch.setattr(tensorrt, "TensorRTGraph", Engine)
    monkeypatch.setattr(eight_bits, "graph", lambda front, precision, **how: b"graph")


@pytest.mark.slow
@pytest.mark.usefixtures("stand_in")
def test_tensorrt_stands_beside_torch_compile(run: Run) -> None:
    code, data = run("--only", "runtimes")
    assert code == 0
    compiled, engine, int8, fp8, tuned = [row for row in data["rows"] if row["status"] == MEASURED]
    assert [row["status"] for row in data["rows"] if "TensorRT" in row["name"]] == [PASSED, *[MEASURED] * 3]
    assert ("int8" in int8["name"], "fp8" in fp8["name"]) == (True, True)
    assert int8["peers"]["TensorRT"] == engine["per_s"]
    assert list(engine["peers"]) == ["eager torch, bf16, channels_last", "torch.compile"]
    times = engine["times_faster"]["torch.compile"]
    assert times == pytest.approx(engine["per_s"] / compiled["per_s"])
    assert tuned["peers"]["TensorRT"] == engine["per_s"]


@pytest.mark.slow
@pytest.mark.usefixtures("stand_in")
def test_what_torch_could_not_compile_is_no_peer(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from substyle.engine.backbones.runtimes import torch_compile

    monkeypatch.setattr(torch_compile, "compiled", lambda module, example, mode: (module, "no compiler"))
    _, data = run("--only", "runtimes")
    engine = next(row for row in data["rows"] if "TensorRT" in row["name"] and row["status"] == MEASURED)
    assert "torch.compile" not in engine["peers"]


@pytest.mark.slow
def test_a_graph_in_8_bits_has_them() -> None:
    front = networks.backbone("test_vit", 64)
    model = onnx.load_from_string(eight_bits.graph(front, "int8", canvas=64, batch=10))
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) > 10
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 10


def test_a_card_without_fp8_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="A100", major=8, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    said = eight_bits.lacking(torch.device("cuda:0"), "fp8")
    assert "A100" in said
    assert "8.0" in said
    assert not eight_bits.lacking(torch.device("cuda:0"), "int8")


@pytest.mark.slow
@pytest.mark.parametrize("there", [None, "tensorrt_rtx"])
def test_without_tensorrt_the_row_says_so(run: Run, monkeypatch: pytest.MonkeyPatch, there: str | None) -> None:
    monkeypatch.setattr(tensorrt, "installed", lambda: there)
    _, data = run("--only", "runtimes")
    row, *others = [row for row in data["rows"] if "TensorRT" in row["name"]]
    assert [one["status"] for one in (row, *others)] == [SKIPPED] * 3
    assert row["text"].startswith("tensorrt is not installed")
    assert ("tensorrt_rtx" in row["text"]) == bool(there)


@pytest.fixture
def torch_alone(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Neither timm nor what it brings along, nor pictures; nothing of ours that needs them was imported before."""

    def hide() -> None:
        needs = ("engine.backbones.families", "engine.embed", "benchmarks.gpu_check.end_to_end")
        for name in [name for name in sys.modules if any(need in name for need in needs)]:
            monkeypatch.delitem(sys.modules, name)
        for name in ("timm", "timm.data", "safetensors", "PIL", "zarr"):
            monkeypatch.setitem(sys.modules, name, None)

    return hide


def test_without_timm_plain_torch_stands_in_and_reasons_name_what_is_missing(
    torch_alone: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "installed", lambda: None)
    torch_alone()
    sizes = replace(TINY, networks=(("test ViT", "test_vit"), ("ResNet", "test_resnet")))
    out = tmp_path / "gpu.json"
    parts = ("--only", "runtimes", "--only", "end_to_end")
    monkeypatch.setattr(gpu_check, "TINY", sizes)
    assert gpu_check.main([*parts, "--fake-device", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert not [row for row in rows if row["status"] == FAILED]
    measured = [row["name"] for row in rows if row["status"] == MEASURED]
    assert len(measured) == 2
    assert all(name.startswith("test ViT in plain torch, torch.compile") for name in measured)
    reasons = {row["name"]: row["text"] for row in rows if row["status"] == SKIPPED}
    assert "timm" in reasons["ResNet, torch.compile"]
    assert "timm" in reasons["end_to_end"]
    assert not any("safetensors" in text for text in reasons.values())


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vit_base_patch16_224", "vit_large_patch14_clip_224"])
def test_a_plain_network_does_what_timm_s_does(model: str) -> None:
    shape = SHAPES[model]
    with torch.device("meta"):
        plain, theirs = PlainViT(shape).eval(), timm.create(model).eval()
        x = torch.empty(4, 3, shape.side, shape.side)
    assert plain(x).shape == (4, shape.width)
    assert timm.data_config(theirs)["side"] == shape.side
    ours, of_timm = of_network(plain, x), of_network(theirs, x)
    assert ours.flop == pytest.approx(of_timm.flop, rel=0.01)
    moved, of_theirs = (sum(moved for _, moved in work.products) for work in (ours, of_timm))
    assert moved == pytest.approx(of_theirs, rel=0.01)


def test_networks_are_timm_s_where_it_is_there() -> None:
    assert not networks.plain("test_vit")
    assert not isinstance(networks.backbone("test_vit", 32).network, PlainViT)

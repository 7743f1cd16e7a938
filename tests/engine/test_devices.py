"""Devices and runtimes, with and without GPUs and libraries; what a CUDA graph keeps."""

from __future__ import annotations

import importlib.util
import sys
import weakref
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tests.fake_graphs import FakeGPU, FakeGraphs, fake_gpu

from substyle.engine import cuda, hardware
from substyle.engine.config import EmbedConfig
from substyle.engine.devices import Target, missing, resolve
from substyle.errors import ConfigError

Install = Callable[..., None]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Fake the number of GPUs visible to torch."""

    def pretend(count: int) -> None:
        card = SimpleNamespace(name="card", major=9, minor=0, multi_processor_count=132)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "card")
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: card)
        monkeypatch.setattr(torch.version, "cuda", "13.0" if count else None)

    pretend(0)
    return pretend


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Fake the installed runtimes; ``broken`` ones cannot be imported."""
    real = importlib.util.find_spec

    def pretend(*names: str, broken: bool = False) -> None:
        def find(name: str, package: str | None = None) -> object:
            if name in ("openvino", "tensorrt", "tensorrt_rtx"):
                return object() if name in names else None
            return real(name, package)

        monkeypatch.setattr(importlib.util, "find_spec", find)
        for name in names:
            if name != "openvino":
                monkeypatch.setitem(sys.modules, name, None if broken else ModuleType(name))  # type: ignore[arg-type]

    pretend("openvino")
    return pretend


@pytest.mark.parametrize(
    ("count", "installed", "device", "runtime", "found"),
    [
        (0, ["openvino"], "auto", "auto", Target("cpu", "openvino")),
        (0, [], "auto", "auto", Target("cpu", "torch")),
        (0, ["openvino"], "auto", "torch", Target("cpu", "torch")),
        (1, ["openvino", "tensorrt"], "auto", "auto", Target("cuda:0", "tensorrt")),
        (1, ["tensorrt_rtx"], "auto", "auto", Target("cuda:0", "torch")),  # it has no engines for data-centre cards
        (1, ["tensorrt_rtx"], "auto", "tensorrt", Target("cuda:0", "tensorrt")),
        (2, ["tensorrt"], "cuda:1", "auto", Target("cuda:1", "tensorrt")),
        (1, ["openvino", "tensorrt"], "cpu", "auto", Target("cpu", "openvino")),
        (1, ["openvino", "tensorrt"], "auto", "openvino", Target("cpu", "openvino")),
    ],
)
def test_what_is_chosen(
    gpus: Callable[[int], None], install: Install, count: int, installed: list[str], device: str, runtime: str,
    found: Target,
) -> None:  # fmt: skip
    gpus(count)
    install(*installed)
    assert resolve(device, runtime) == found
    assert found.on_gpu == (found.device != "cpu")


@pytest.mark.parametrize(
    ("count", "installed", "device", "runtime", "message"),
    [
        (0, [], "gpu", "auto", r"^device: got 'gpu'; allowed: auto, cpu, cuda or cuda:N$"),
        (0, [], "cuda:-1", "auto", r"^device"),
        (0, [], "auto", "onnx", r"^embed\.runtime: got 'onnx'; allowed: auto, openvino, tensorrt, torch$"),
        (1, ["tensorrt"], "cpu", "tensorrt", r"embed\.runtime.*auto, openvino, torch \(TensorRT .* is cpu\)"),
        (1, ["tensorrt"], "cuda", "openvino", r"embed\.runtime.*auto, tensorrt, torch \(OpenVINO .* is cuda\)"),
        (0, ["openvino"], "cuda", "auto", r"^device: got 'cuda'; allowed: .*cpu .*built without CUDA"),
        (1, ["tensorrt"], "cuda:1", "auto", r"^device: got 'cuda:1'; allowed: .*cuda:0 \(card\)"),
        (1, [], "cuda", "tensorrt", r"auto, torch \(tensorrt is not installed; tensorrt_rtx .* extra gpu\)"),
        (0, [], "cpu", "openvino", r"auto, torch \(openvino is not installed"),
    ],
)
def test_what_cannot_be_is_named_with_its_reason(
    gpus: Callable[[int], None], install: Install, count: int, installed: list[str], device: str, runtime: str,
    message: str,
) -> None:  # fmt: skip
    gpus(count)
    install(*installed)
    with pytest.raises(ConfigError, match=message):
        EmbedConfig(device=device, runtime=runtime).here()


@pytest.mark.parametrize(
    ("cuda", "built_with", "reason"), [((12, 8), "13.0", "CUDA 12.8"), ((13, 0), "13.0", "cannot initialise")]
)
def test_auto_refuses_a_gpu_that_cannot_be_used(
    gpus: Callable[[int], None], install: Install, monkeypatch: pytest.MonkeyPatch, cuda: tuple[int, int],
    built_with: str, reason: str,
) -> None:  # fmt: skip
    gpus(0)
    install("openvino")
    monkeypatch.setattr(hardware, "driver", lambda: hardware.Driver(("card",), "", cuda))
    monkeypatch.setattr(torch.version, "cuda", built_with)
    with pytest.raises(ConfigError, match=reason) as caught:
        resolve()
    assert (caught.value.field, caught.value.given) == ("device", "auto")
    assert resolve("cpu") == resolve(runtime="openvino") == Target("cpu", "openvino")


GPU: Any = FakeGPU()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> FakeGraphs:
    return fake_gpu(monkeypatch)


def test_a_graph_keeps_what_its_function_reads(graphs: FakeGraphs) -> None:
    """Whatever the caller keeps; probes' steps are in probes/test_replay.py."""
    weights = torch.ones(3)
    reference = weakref.ref(weights)

    def captured(weights: torch.Tensor) -> cuda.Captured[torch.Tensor]:
        return cuda.Captured(lambda stream: 2 * weights, GPU)

    replay = captured(weights).replay
    del weights
    assert reference() is not None
    assert replay().tolist() == [2, 2, 2]
    assert graphs.replays == [1]


def test_a_package_without_its_libraries_is_missing(gpus: Callable[[int], None], install: Install) -> None:
    gpus(1)
    install("tensorrt", broken=True)
    assert "tensorrt cannot be imported" in str(missing("tensorrt", chosen=False))
    assert resolve().runtime == "torch"


def test_a_cpu_build_of_torch_beside_a_gpu_is_said(
    gpus: Callable[[int], None], install: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpus(0)
    install("openvino")
    monkeypatch.setattr(hardware, "driver", lambda: hardware.Driver(("card",), "", (13, 0)))
    monkeypatch.setattr(torch.version, "cuda", None)
    assert resolve() == Target("cpu", "openvino")
    assert "card" in capsys.readouterr().err

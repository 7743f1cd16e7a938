"""The style generator in torch compared with OpenVINO, in float32 on the CPU, and the choice between them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.engine.style_transfer.test_networks import SIDE, photographs
from tests.fake_graphs import FakeGPU, fake_gpu

from substyle.engine.style_transfer import networks
from substyle.engine.style_transfer.graphs import StyleModule
from substyle.engine.style_transfer.networks import DeviceStyles, generator_for, networks_for
from substyle.errors import ConfigError

CPU = torch.device("cpu")


def in_torch(names: tuple[str, ...], precision: Any = "fp32", piece: int = 2) -> DeviceStyles:  # noqa: ANN401
    return DeviceStyles(
        generator_for(names), names, side=SIDE, precision=precision, device=CPU, piece=piece, mode="off"
    )


def test_bad_input_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        in_torch(("style_wave",))(photographs(1, 32))
    assert (caught.value.field, caught.value.given) == ("canvas", (1, 32, 32, 3))
    with pytest.raises(ConfigError) as caught:
        DeviceStyles(generator_for(("style_wave",)), ("style_wave",), side=30, precision="fp32", device=CPU)
    assert (caught.value.field, caught.value.given) == ("canvas", 30)
    with pytest.raises(ConfigError) as caught:
        networks_for(("style_wave",), side=SIDE, device="cuda:9")
    assert (caught.value.field, caught.value.given) == ("device", "cuda:9")


def test_a_graph_is_replayed_for_every_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    made, names, device = fake_gpu(monkeypatch), ("style_wave",), FakeGPU()
    net = DeviceStyles(generator_for(names), names, side=SIDE, precision="fp32", device=device, piece=2, mode="off")  # type: ignore[arg-type]
    pictures = net(photographs(3))["style_wave"]
    monkeypatch.undo()
    assert made.replays == [2]
    assert torch.equal(pictures, in_torch(names)(photographs(3))["style_wave"])


@pytest.mark.parametrize(("mode", "apart"), [("default", True), ("off", False)])
def test_triton_kernels_are_not_traced_by_the_compiler(monkeypatch: pytest.MonkeyPatch, mode: Any, apart: bool) -> None:  # noqa: ANN401
    given: list[StyleModule] = []
    monkeypatch.setattr(networks, "compiled", lambda module, example, mode: (given.append(module) or module, None))
    names = ("style_wave",)
    made = DeviceStyles(generator_for(names), names, side=SIDE, precision="fp32", device=CPU, piece=1, mode=mode)
    assert getattr(given[0].contracted, "_torchdynamo_disable", False) is apart
    assert torch.equal(made(photographs(1))["style_wave"], in_torch(names, piece=1)(photographs(1))["style_wave"])

"""The style generator in torch compared with OpenVINO, in float32 on the CPU, and the choice between them."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import pytest
import torch
from tests.conftest import slow_after
from tests.engine.style_transfer.test_networks import SIDE, network, photographs
from tests.fake_graphs import FakeGPU, fake_gpu

from substyle.engine.style_transfer import graphs, networks
from substyle.engine.style_transfer.graphs import StyleModule
from substyle.engine.style_transfer.networks import MULTISTYLE, DeviceStyles, generator_for, networks_for
from substyle.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def in_torch(names: tuple[str, ...], precision: Any = "fp32", piece: int = 2) -> DeviceStyles:  # noqa: ANN401
    return DeviceStyles(
        generator_for(names), names, side=SIDE, precision=precision, device=CPU, piece=piece, mode="off"
    )


@pytest.mark.parametrize("names", slow_after(1, zip([tuple(MULTISTYLE), ("style_arbitrary", "style_tissue")])))
def test_the_pictures_of_the_onnx_graph(names: tuple[str, ...]) -> None:
    pytest.importorskip("openvino")
    x = photographs(3)
    expected, made = network(names)(x), in_torch(names)(x)
    assert list(made) == list(names)
    for name in names:
        difference = (made[name].int() - expected[name].int()).abs().float()
        assert made[name].dtype == torch.uint8
        assert made[name].is_contiguous()
        assert difference.mean() < 0.1, name
        assert difference.max() <= 2, name


@pytest.mark.parametrize("batch", [0, 1, 2, 3])
def test_pieces_and_neighbours(batch: int) -> None:
    """The last piece is shorter; images left over from the previous piece do not affect it."""
    x, names = photographs(3), ("style_wave", "style_glass")
    whole, pieces = in_torch(names, piece=3)(x), in_torch(names, piece=2)
    pieces(x.flip(0))
    for name, pictures in pieces(x[:batch]).items():
        assert pictures.shape == (batch, SIDE, SIDE, 3)
        assert not batch or (pictures.int() - whole[name][:batch].int()).abs().float().mean() < 0.1


def test_results_outlive_the_next_call() -> None:
    net = in_torch(("style_wave",))
    first = net(photographs(2))["style_wave"]
    copy = first.clone()
    net(photographs(2).flip(0))
    assert torch.equal(first, copy)


def test_bf16_is_near() -> None:
    """Normalisation runs in float32, so that it does not magnify rounding errors of bf16."""
    x = photographs(2)
    exact, rough = (in_torch(("style_starry", "style_wave"), precision)(x) for precision in ("fp32", "bf16"))
    for name, pictures in rough.items():
        assert (pictures.float() - exact[name].float()).abs().mean() < 2.0
    module = StyleModule(generator_for(("style_wave",)), torch.bfloat16)
    dtypes = {name.rpartition(".")[2]: value.dtype for name, value in module.state_dict().items()}
    in_16_bits, in_32_bits = ("weight", "kernel_TCO"), ("scale_GC", "shift_GC")
    assert dtypes == dict.fromkeys(in_16_bits, torch.bfloat16) | dict.fromkeys(in_32_bits, torch.float32)


def test_everything_before_the_first_style_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    convolved = 0
    right = torch.nn.functional.conv2d

    def counting(*given: Any) -> torch.Tensor:  # noqa: ANN401
        nonlocal convolved
        convolved += 1
        return right(*given)

    monkeypatch.setattr(torch.nn.functional, "conv2d", counting)
    in_torch(("style_wave", "style_glass", "style_starry"))(photographs(1))
    assert convolved == 1 + 3 * (2 + 12 + 3)


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


def test_a_gpu_is_given_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(networks, "as_device", lambda name: torch.device("cuda", 1))
    monkeypatch.setattr(networks, "DeviceStyles", lambda generator, names, **how: asked.append({**how, "names": names}))
    made = networks_for(("swirl", "style_wave", "style_glass"), side=SIDE, precision="fp16", device="cuda:1")
    assert list(made) == ["multistyle"]
    names = ["style_wave", "style_glass"]
    assert asked == [
        {"side": SIDE, "precision": "fp16", "device": torch.device("cuda", 1), "mode": "default", "names": names}
    ]


def test_a_graph_is_replayed_for_every_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    made, names, device = fake_gpu(monkeypatch), ("style_wave",), FakeGPU()
    net = DeviceStyles(generator_for(names), names, side=SIDE, precision="fp32", device=device, piece=2, mode="off")  # type: ignore[arg-type]
    pictures = net(photographs(3))["style_wave"]
    monkeypatch.undo()
    assert made.replays == [2]
    assert torch.equal(pictures, in_torch(names)(photographs(3))["style_wave"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_as_on_the_cpu() -> None:
    x = photographs(3)
    on_gpu = networks_for(tuple(MULTISTYLE), side=SIDE, precision="fp32", device="cuda")["multistyle"](x.cuda())
    for name, pictures in in_torch(tuple(MULTISTYLE))(x).items():
        assert (on_gpu[name].cpu().float() - pictures.float()).abs().mean() < 1.0


@pytest.mark.parametrize(("mode", "apart"), [("default", True), ("off", False)])
def test_triton_kernels_are_not_traced_by_the_compiler(monkeypatch: pytest.MonkeyPatch, mode: Any, apart: bool) -> None:  # noqa: ANN401
    given: list[StyleModule] = []
    monkeypatch.setattr(networks, "compiled", lambda module, example, mode: (given.append(module) or module, None))
    names = ("style_wave",)
    made = DeviceStyles(generator_for(names), names, side=SIDE, precision="fp32", device=CPU, piece=1, mode=mode)
    assert getattr(given[0].contracted, "_torchdynamo_disable", False) is apart
    assert torch.equal(made(photographs(1))["style_wave"], in_torch(names, piece=1)(photographs(1))["style_wave"])


def test_nothing_here_asks_for_the_host() -> None:
    """No call synchronises with the device."""
    for kind in (networks.DeviceStyles, graphs.StyleModule):
        tree = ast.parse(inspect.getsource(kind))
        named = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not named & {"cpu", "numpy", "item", "tolist", "synchronize"}

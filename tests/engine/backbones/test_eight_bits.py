"""int8 and fp8 in TensorRT without a GPU: graphs, what they compute, engines, and what is refused."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from tests.conftest import photograph
from tests.engine.backbones.typed_on_cpu import OnCPU, widened
from torch import nn

from substyle.engine import target
from substyle.engine.backbones import artefact_tensorrt, cache, gate
from substyle.engine.backbones.artefact import Mixture
from substyle.engine.backbones.artefact_tensorrt import TensorRTArtefact
from substyle.engine.backbones.calibrate import calibrate, in_batches
from substyle.engine.backbones.compile import CompileOptions, artefact_of, compile_source
from substyle.engine.backbones.preprocess import Preprocessed
from substyle.engine.backbones.runtimes import tensorrt_build
from substyle.engine.backbones.runtimes.eight_bits import Range, products, quantise
from substyle.engine.backbones.runtimes.tensorrt_build import build
from substyle.engine.backbones.runtimes.typed_export import typed_graph
from substyle.engine.backbones.samples import GivenSamples
from substyle.engine.backbones.search import Search
from substyle.engine.backbones.source import Source
from substyle.engine.backbones.spec import Backbone, BackboneSpec
from substyle.engine.precision import EIGHT_BITS, EightBits, Precision
from substyle.engine.target import Target
from substyle.engine.workshop import EmbedConfig
from substyle.kernels.errors import ConfigError, SubstyleError

BATCH, CANVAS, SIDE, DIM = 4, 48, 32, 24
HALF = (0.5, 0.5, 0.5)
ON_GPU = Target("cuda:0", "tensorrt")
KINDS = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
BUILDS = pytest.mark.skipif(tensorrt_build.installed() is None, reason="no TensorRT")
EACH = pytest.mark.parametrize("precision", EIGHT_BITS)
NETWORKS = pytest.mark.parametrize("name", ["convolutions", "transformer"])
pytestmark = pytest.mark.usefixtures("one_thread")


def convolutions() -> nn.Module:
    """Three of them, one of single channels, with normalisations that exporters fold."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, DIM, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


class Transformer(nn.Module):
    """A ViT of one block."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, DIM, 8, stride=8)
        self.norm, self.attention = nn.LayerNorm(DIM), nn.MultiheadAttention(DIM, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        normed = self.norm(tokens)
        tokens = tokens + self.attention(normed, normed, normed, need_weights=False)[0]
        return (tokens + self.mlp(tokens)).mean(1)  # type: ignore[no-any-return]


def module(name: str) -> Preprocessed:
    torch.manual_seed(0)
    network = convolutions() if name == "convolutions" else Transformer()
    if name == "convolutions":  # statistics as of a trained network
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
                layer.running_var.uniform_(0.3, 2)  # type: ignore[union-attr]
    network = network.eval().requires_grad_(False)
    return Preprocessed(network, canvas=CANVAS, side=SIDE, mean=HALF, std=HALF).eval()


def backbone(name: str = "convolutions") -> Backbone:
    return Backbone(BackboneSpec("x:tiny", "tiny", DIM, SIDE, HALF, HALF, "flat", "none", name), module(name))


def batch(first: int) -> NDArray[np.uint8]:
    return np.stack([np.array(photograph(first + i, CANVAS, CANVAS)) for i in range(BATCH)])


SAMPLES = GivenSamples([batch(0), 255 - batch(0)], BATCH, [batch(10), 255 - batch(20), batch(30)])


def options(precision: str, on: Target = ON_GPU) -> CompileOptions:
    return CompileOptions(batch=BATCH, canvas=CANVAS, threads=1, precision=precision, target=on)


Typed = Callable[[str, Precision], bytes]


@pytest.fixture(scope="module")
def typed() -> Typed:
    made: dict[tuple[str, Precision], bytes] = {}

    def graph(name: str, precision: Precision) -> bytes:
        if (name, precision) not in made:
            model = typed_graph(module(name), precision, canvas=CANVAS, batch=BATCH)
            made[name, precision] = bytes(model.SerializeToString())
        return made[name, precision]

    return graph


def eight_bits(graph: bytes, precision: EightBits, unquantised: int = 0) -> onnx.ModelProto:
    model = onnx.load_from_string(graph)
    return quantise(
        model, calibrate(model, SAMPLES.further(), precision, threads=1), precision, unquantised=unquantised
    )


def cosine(got: NDArray[np.float32], want: NDArray[np.float32]) -> float:
    """The smallest one, as the gate has it."""
    a, b = got - want.mean(0), want - want.mean(0)
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def reference(name: str, canvas_BSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
    with torch.inference_mode():
        return np.asarray(module(name)(torch.from_numpy(canvas_BSSC)).numpy())


# --- graphs -----------------------------------------------------------------------------------------------------------


@NETWORKS
@EACH
def test_products_have_8_bits_and_preprocessing_has_not(typed: Typed, name: str, precision: EightBits) -> None:
    graph = typed(name, "bf16")
    expected = products(onnx.load_from_string(graph))
    made = eight_bits(graph, precision)
    onnx.checker.check_model(widened(made.SerializeToString()), full_check=True)
    source = {output: node for node in made.graph.node for output in node.output}
    weights = {tensor.name: tensor for tensor in made.graph.initializer}
    inputs = {node.name: [source.get(name) for name in node.input[:2]] for node in made.graph.node}
    count = {"convolutions": 3, "transformer": 5}[name]  # patches, queries with keys and values, output, two of the MLP
    assert len(expected) == count
    for product in expected:
        data, constant = inputs[product.node]
        assert data is not None
        assert constant is not None
        assert (data.op_type, constant.op_type) == ("DequantizeLinear", "DequantizeLinear")
        assert source[data.input[0]].op_type == "QuantizeLinear"
        stored, scale, zero = (weights[name] for name in constant.input)
        assert (stored.data_type, zero.data_type) == (KINDS[precision], KINDS[precision])
        assert tuple(scale.dims) == (stored.dims[product.out_axis],)
        (axis,) = (attribute.i for attribute in constant.attribute)
        assert axis == product.out_axis
        for scales in (scale, weights[data.input[1]]):
            assert scales.data_type == TensorProto.BFLOAT16, "what is between products has the network's type"
    others = [name for name, given in inputs.items() if any(one and one.op_type == "DequantizeLinear" for one in given)]
    quantised = {p.node for p in expected}
    assert set(others) == quantised, "neither preprocessing nor attention's products of two activations"
    assert sum(node.op_type == "MatMul" for node in made.graph.node) > len(
        [p for p in expected if p.in_axis is not None]
    )


@EACH
def test_first_layers_can_be_left_out(typed: Typed, precision: EightBits) -> None:
    graph = typed("convolutions", "bf16")
    first = products(onnx.load_from_string(graph))[0]
    made = eight_bits(graph, precision, unquantised=1)
    (node,) = (node for node in made.graph.node if node.name == first.node)
    assert list(node.input[:2]) == [first.data, first.weight]
    assert sum(node.op_type == "QuantizeLinear" for node in made.graph.node) == 2


@NETWORKS
@pytest.mark.parametrize(("precision", "least"), [("int8", 0.99), ("fp8", 0.97)])
@pytest.mark.parametrize("between", ["bf16", "fp16"])
def test_the_graph_computes_nearly_the_same(
    typed: Typed, name: str, precision: EightBits, least: float, between: Precision
) -> None:
    made = eight_bits(typed(name, between), precision).SerializeToString()
    canvas = batch(40)
    got, want = OnCPU(made)(canvas), reference(name, canvas)
    assert cosine(got, want) >= least
    exact = OnCPU(typed(name, between))(canvas)
    assert np.abs(got - exact).max() > 1e-4 * np.abs(exact).max(), "it is rounded to 8 bits"


@BUILDS
@NETWORKS
@EACH
@pytest.mark.parametrize("between", ["bf16", "fp16"])
def test_engines_are_built(typed: Typed, name: str, precision: EightBits, between: Precision) -> None:
    made = eight_bits(typed(name, between), precision).SerializeToString()
    assert len(build(made, batch=BATCH, canvas=CANVAS)) > 1000


def test_an_activation_without_a_range_is_named(typed: Typed) -> None:
    model = onnx.load_from_string(typed("convolutions", "bf16"))
    lost = products(model)[0].data
    ranges = {product.data: Range(1.0) for product in products(model) if product.data != lost}
    with pytest.raises(SubstyleError, match=f"no calibration for the activations {lost}"):
        quantise(model, ranges, "int8")


@EACH
def test_weights_of_nothing_but_zeros_stay_zeros(precision: EightBits) -> None:
    empty = module("convolutions")
    empty.network[6].weight.zero_()  # type: ignore[index, operator, union-attr]
    graph = typed_graph(empty, "fp16", canvas=CANVAS, batch=BATCH).SerializeToString()
    got = OnCPU(eight_bits(graph, precision).SerializeToString())(batch(0))
    np.testing.assert_allclose(got, np.tile(empty.network[6].bias, (BATCH, 1)), atol=1e-3)  # type: ignore[index]


# --- calibration ------------------------------------------------------------------------------------------------------


def test_channels_with_few_large_numbers_are_smoothed() -> None:
    torch.manual_seed(0)
    uneven = Transformer().eval().requires_grad_(False)
    uneven.mlp[0].weight[:2] *= 200  # type: ignore[index, operator]
    uneven.mlp[1].weight[:, :2] /= 200  # type: ignore[index, operator]
    made = Preprocessed(uneven, canvas=CANVAS, side=SIDE, mean=HALF, std=HALF).eval()
    model = typed_graph(made, "bf16", canvas=CANVAS, batch=BATCH)
    ranges = calibrate(model, SAMPLES.further(), "int8", threads=1)
    shifts = [found.shift for found in ranges.values() if found.shift]
    assert any(max(shift[2:]) - max(shift[:2]) >= 5 for shift in shifts), "they are made smaller than the others"
    plain = {name: Range(found.largest * 2.0 ** max((0, *(-n for n in found.shift)))) for name, found in ranges.items()}
    graph, canvas = model.SerializeToString(), batch(40)
    with torch.inference_mode():
        want = made(torch.from_numpy(canvas)).numpy()
    smooth, rough = (
        cosine(OnCPU(quantise(onnx.load_from_string(graph), found, "int8").SerializeToString())(canvas), want)
        for found in (ranges, plain)
    )
    assert smooth >= 0.99
    assert rough < smooth
    assert not any(found.shift for found in calibrate(model, SAMPLES.further(), "fp8", threads=1).values())


def test_a_lone_large_number_is_clipped(typed: Typed) -> None:
    model = onnx.load_from_string(typed("convolutions", "bf16"))
    first = products(model)[0].data
    noise = np.random.default_rng(0).integers(108, 148, (BATCH, CANVAS, CANVAS, 3), dtype=np.uint8)
    bright = noise.copy()
    bright[0, 20:22, 20:22] = 255
    batches = [bright, *[noise] * 4]
    whole = calibrate(model, batches, "fp8", threads=1)[first].largest
    clipped = calibrate(model, batches, "int8", threads=1)[first].largest
    assert 0.4 < clipped < 0.97 * whole


def test_photographs_are_laid_into_batches_of_another_size() -> None:
    images = np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1)
    found = in_batches([images[:4], images[4:]], 3)
    assert [list(one.ravel()) for one in found] == [[0, 1, 2], [3, 4, 5], [6, 0, 1]]
    assert [list(one.ravel()) for one in in_batches([images[:2]], 5)] == [[0, 1, 0, 1, 0]]


# --- from a backbone to its engine ------------------------------------------------------------------------------------


class Engines:
    """Engines that are their graphs, run by onnxruntime on the CPU; the cards they are built for have fp8."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.built: list[bytes] = []
        self.card = SimpleNamespace(name="card", major=9, minor=0, multi_processor_count=132)
        trt = SimpleNamespace(__name__="tensorrt", __version__="10.9")
        monkeypatch.setattr(tensorrt_build, "library", lambda: trt)
        monkeypatch.setattr(artefact_tensorrt, "library", lambda: trt)
        monkeypatch.setattr(artefact_tensorrt, "build", self.build)
        monkeypatch.setattr(artefact_tensorrt, "TensorRTGraph", lambda engine, device: OnCPU(engine))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: self.card)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "card")
        monkeypatch.setattr(Target, "torch_device", torch.device("cpu"))

    def build(self, graph: bytes, *, batch: int, canvas: int, timing: Path) -> bytes:
        self.built.append(graph)
        return graph


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Engines:
    monkeypatch.setenv("SUBSTYLE_CACHE", str(tmp_path / "cache"))
    return Engines(monkeypatch)


@NETWORKS
def test_int8_passes_the_gate(engines: Engines, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = Source.of(backbone(name))
    compiled = compile_source(source, SAMPLES, options("int8"))
    assert compiled.gate is not None
    assert compiled.gate["threshold"] == 0.99
    assert compiled.gate["cosine_min"] >= 0.99
    runtime = compiled.runtime
    assert (runtime["name"], runtime["precision"], runtime["float32_layers"]) == ("tensorrt", "int8", 0)
    assert runtime["between"] in ("bf16", "fp16")
    used = {node.op_type for node in onnx.load_from_string(engines.built[-1]).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= used
    built = len(engines.built)
    again = compile_source(source, SAMPLES, options("int8"))
    assert len(engines.built) == built, "the second time all is at hand"
    assert (again.runtime, again.gate, again.rate) == (compiled.runtime, compiled.gate, compiled.rate)
    np.testing.assert_array_equal(again.embed(batch(50)[:3]), compiled.embed(batch(50))[:3])
    assert capsys.readouterr().err.count("measuring its activations") == 1


def test_what_stays_between_products_passes_the_gate_alone(
    engines: Engines, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Search._check

    def check(self: Search, mixture: Mixture, every: int) -> gate.GateResult:
        if mixture.precision == "bf16":
            raise gate.GateError("not in bf16")
        return real(self, mixture, every)

    monkeypatch.setattr(Search, "_check", check)
    runtime = compile_source(Source.of(backbone()), SAMPLES, options("int8")).runtime
    assert runtime["between"] == "fp16"
    kinds = {tensor.data_type for tensor in onnx.load_from_string(engines.built[-1]).graph.initializer}
    assert TensorProto.FLOAT16 in kinds
    assert TensorProto.BFLOAT16 not in kinds
    assert "runs in fp16 if that passes the gate; not in bf16" in capsys.readouterr().err


def test_what_fails_keeps_first_layers_and_then_says_so(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = Search._check

    def check(self: Search, mixture: Mixture, every: int) -> gate.GateResult:
        if mixture.precision != "fp8":
            return real(self, mixture, every)
        asked.append(mixture.unquantised_layers)
        raise gate.GateError("fp8 does not agree")

    monkeypatch.setattr(Search, "_check", check)
    with pytest.raises(gate.GateError, match=r"fp8 does not agree. Nor does it with up to half of its first layers in"):
        compile_source(Source.of(backbone()), SAMPLES, options("fp8"))
    assert asked == [0, 1]  # of 3 layers


def test_a_large_batch_is_quantised_by_what_a_small_one_shows(engines: Engines) -> None:
    how = {"batch": 12, "canvas": CANVAS, "threads": 1, "target": ON_GPU}
    artefact = TensorRTArtefact(Source.of(backbone("transformer")), SAMPLES, **how)  # type: ignore[arg-type]
    graph = artefact.graph(Mixture("int8"))
    canvas = np.concatenate([batch(40), batch(50), batch(60)])
    assert cosine(OnCPU(graph)(canvas), reference("transformer", canvas)) >= 0.99


def test_the_calibration_is_in_the_key_of_an_engine(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source.of(backbone())

    def key(mixture: Mixture, samples: GivenSamples = SAMPLES) -> str:
        artefact = artefact_of(source, samples, options("auto"))
        assert isinstance(artefact, TensorRTArtefact)
        return artefact.graph_key(mixture)

    first = key(Mixture("int8"))
    assert first == key(Mixture("int8"))
    others = [
        key(Mixture("bf16")),
        key(Mixture("fp8")),
        key(Mixture("int8", unquantised_layers=1)),
        key(Mixture("int8", between="fp16")),
        key(Mixture("int8"), dataclasses.replace(SAMPLES, further_GSSC=[batch(11)])),
    ]
    assert len({first, *others}) == 6
    monkeypatch.setattr(cache, "code_hash", lambda *patterns: "other")
    assert key(Mixture("int8")) != first


@EACH
def test_no_further_photographs_is_said(engines: Engines, precision: EightBits) -> None:
    with pytest.raises(ConfigError, match="photographs beside those of the gate"):
        compile_source(Source.of(backbone()), GivenSamples([batch(0)], BATCH), options(precision))
    assert not engines.built


def test_missing_openvino_is_said(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    real = target.importlib.util.find_spec  # type: ignore[attr-defined]
    found: Callable[[str], Any] = lambda name: None if name == "openvino" else real(name)  # noqa: E731
    monkeypatch.setattr(target.importlib.util, "find_spec", found)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"x:tiny: precision: got 'int8'; .*openvino is not installed"):
        compile_source(Source.of(backbone()), SAMPLES, options("int8"))
    assert not engines.built


@pytest.mark.parametrize(("major", "minor"), [(8, 0), (8, 6), (7, 5)])
def test_fp8_is_refused_by_cards_without_it(engines: Engines, major: int, minor: int) -> None:
    engines.card.major, engines.card.minor = major, minor
    with pytest.raises(ConfigError, match=rf"'fp8'; allowed: .*int8 \(card has compute capability {major}.{minor}"):
        options("fp8")
    assert options("int8").precision == "int8"


@pytest.mark.parametrize(("major", "minor"), [(8, 9), (9, 0), (12, 0)])
def test_fp8_is_there_from_8_9_on(engines: Engines, major: int, minor: int) -> None:
    engines.card.major, engines.card.minor = major, minor
    assert options("fp8").precision == "fp8"


def test_runtimes_without_8_bits_say_where_they_are() -> None:
    with pytest.raises(ConfigError, match=r"fp16, int8 with the runtime openvino; fp8 is there with runtime = \"tens"):
        options("fp8", Target())
    with pytest.raises(
        ConfigError, match=r"fp16 with the runtime torch; int8 .* \"tensorrt\" on a GPU or \"openvino\""
    ):
        options("int8", Target("cuda:0", "torch"))
    assert EmbedConfig(precision="fp8").precision == "fp8", "as long as the runtime is auto"
    with pytest.raises(ConfigError, match=r"embed.precision: got 'fp8'"):
        EmbedConfig(precision="fp8", runtime="openvino")
    with pytest.raises(ConfigError, match=r"embed.precision: got 'fp8'"):
        EmbedConfig(precision="fp8", device="cpu").here()


def test_backbones_that_come_as_graphs_are_refused() -> None:
    artefact = Source.of(Backbone(backbone().spec, graph=b"a graph"))
    with pytest.raises(ConfigError, match=r"x:tiny: precision: got 'int8'; allowed: auto, fp32 \(it comes as a graph"):
        TensorRTArtefact(artefact, SAMPLES, batch=BATCH, canvas=CANVAS, threads=1).require_precision("int8")


def test_neither_nncf_nor_onnxruntime_is_needed(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nncf", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    artefact = artefact_of(Source.of(backbone()), SAMPLES, options("int8"))
    assert isinstance(artefact, TensorRTArtefact)
    assert artefact.graph(Mixture("int8"))

"""int8 and fp8 graphs for TensorRT: what is quantised, what they compute, engines, calibration."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from tests.conftest import slow_after
from tests.engine.backbones.small_networks import (
    BATCH,
    BUILDS,
    CANVAS,
    EACH,
    HALF,
    KINDS,
    NETWORKS,
    SAMPLES,
    SIDE,
    Transformer,
    batch,
    cosine,
    module,
    reference,
)
from tests.engine.backbones.typed_on_cpu import OnCPU, widened

from substyle.engine.backbones.export import Preprocessed, typed_graph
from substyle.engine.backbones.quantization import Range, calibrate, in_batches, products, quantise
from substyle.engine.backbones.runtimes.tensorrt import build
from substyle.engine.devices import EightBits, Precision
from substyle.errors import SubstyleError

pytestmark = pytest.mark.usefixtures("one_thread")


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
        model, calibrate(model, SAMPLES.extra_samples(), precision, threads=1), precision, unquantised=unquantised
    )


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
    count = {"convolutions": 3, "transformer": 4}[name]  # queries with keys and values, output, two of the MLP
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
@pytest.mark.parametrize(("precision", "least"), slow_after(1, [("int8", 0.99), ("fp8", 0.96)]))
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
    with pytest.raises(SubstyleError, match=f": {lost}$"):
        quantise(model, ranges, "int8")


@pytest.mark.slow
@EACH
def test_weights_of_nothing_but_zeros_stay_zeros(precision: EightBits) -> None:
    empty = module("convolutions")
    empty.network[-3].weight.zero_()  # type: ignore[index, operator, union-attr]
    graph = typed_graph(empty, "fp16", canvas=CANVAS, batch=BATCH).SerializeToString()
    got = OnCPU(eight_bits(graph, precision).SerializeToString())(batch(0))
    np.testing.assert_allclose(got, np.tile(empty.network[-3].bias, (BATCH, 1)), atol=1e-3)  # type: ignore[index]


# --- calibration ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_channels_with_few_large_numbers_are_smoothed() -> None:
    torch.manual_seed(0)
    uneven = Transformer().eval().requires_grad_(False)
    uneven.mlp[0].weight[:2] *= 200  # type: ignore[index, operator]
    uneven.mlp[1].weight[:, :2] /= 200  # type: ignore[index, operator]
    made = Preprocessed(uneven, canvas=CANVAS, side=SIDE, mean=HALF, std=HALF).eval()
    model = typed_graph(made, "bf16", canvas=CANVAS, batch=BATCH)
    ranges = calibrate(model, SAMPLES.extra_samples(), "int8", threads=1)
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
    assert not any(found.shift for found in calibrate(model, SAMPLES.extra_samples(), "fp8", threads=1).values())


def test_narrow_convolutions_are_left_out(typed: Typed) -> None:
    model = onnx.load_from_string(typed("convolutions", "bf16"))
    dims = {tensor.name: list(tensor.dims[:2]) for tensor in model.graph.initializer}
    convolved = [dims[node.input[1]] for node in model.graph.node if node.op_type == "Conv"]
    assert convolved == [[24, 3], [24, 1], [32, 24], [32, 32], [24, 32]]
    assert [dims[product.weight] for product in products(model)] == convolved[2:]


@EACH
def test_a_range_is_the_largest_magnitude_of_all_batches(typed: Typed, precision: EightBits) -> None:
    made, seen = module("convolutions"), []
    made.network[6].register_forward_pre_hook(lambda _, given: seen.append(float(given[0].abs().max())))  # type: ignore[index]
    with torch.inference_mode():
        for canvas in SAMPLES.extra_samples():
            made(torch.from_numpy(canvas))
    model = onnx.load_from_string(typed("convolutions", "fp16"))
    ranges = calibrate(model, SAMPLES.extra_samples(), precision, threads=1)
    assert ranges[products(model)[0].data].largest == pytest.approx(max(seen), rel=5e-3)


def test_photographs_are_laid_into_batches_of_another_size() -> None:
    images = np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1)
    found = in_batches([images[:4], images[4:]], 3)
    assert [list(one.ravel()) for one in found] == [[0, 1, 2], [3, 4, 5], [6, 0, 1]]
    assert [list(one.ravel()) for one in in_batches([images[:2]], 5)] == [[0, 1, 0, 1, 0]]

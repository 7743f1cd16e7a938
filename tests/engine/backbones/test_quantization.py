"""int8 and fp8 graphs for TensorRT: what is quantised, what they compute, engines, calibration."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from tests.conftest import slow_after
from tests.engine.backbones.small_networks import (
    BATCH,
    BUILDS,
    CANVAS,
    EACH,
    NETWORKS,
    SAMPLES,
    batch,
    cosine,
    module,
    reference,
)
from tests.engine.backbones.typed_on_cpu import OnCPU

from substyle.engine.backbones.export import typed_graph
from substyle.engine.backbones.quantization import Range, calibrate, products, quantise
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


# --- calibration ------------------------------------------------------------------------------------------------------


def test_an_activation_without_a_range_is_named(typed: Typed) -> None:
    model = onnx.load_from_string(typed("convolutions", "bf16"))
    lost = products(model)[0].data
    ranges = {product.data: Range(1.0) for product in products(model) if product.data != lost}
    with pytest.raises(SubstyleError, match=f": {lost}$"):
        quantise(model, ranges, "int8")

"""Quantisation of typed ONNX graphs to 8 bits, with explicit pairs of QuantizeLinear and DequantizeLinear.

A strongly typed runtime takes precision from the graph. Both inputs of convolutions and matrix products with constant
weights are quantised symmetrically, as TensorRT fuses them: weights per output channel, activations per tensor.
Preprocessing, narrow convolutions, products of two activations (attention, whose fused kernels need 16 bits),
normalisations, activation functions and sums keep their types.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.backbones.export import FLOAT, FLOAT8, INT8, NARROW, array, drop_unused, rounded, weight
from substyle.engine.backbones.runtimes.openvino import OpenVINOGraph
from substyle.engine.devices import EightBits
from substyle.errors import SubstyleError

if TYPE_CHECKING:
    import onnx


LARGEST = {"int8": 127.0, "fp8": 448.0}  # largest value; int8 is used symmetrically
_KIND = {"int8": INT8, "fp8": FLOAT8}
_NARROW = 16  # channels; as in NVIDIA's Model Optimizer for fp8. Depthwise convolutions have one per group
_SMALLEST = 2.0**-24  # scale of all-zero tensors: the smallest float16


@dataclass(frozen=True)
class Product:
    """A convolution or matrix product with a constant weight.

    Attributes:
        node: name of the node.
        data, weight: names of its inputs.
        out_axis: axis of the weight's output channels.
        in_axis: axis of the weight's input channels; None for a convolution.
    """

    node: str
    data: str
    weight: str
    out_axis: int
    in_axis: int | None


@dataclass(frozen=True)
class Range:
    """Calibrated range of an activation.

    Attributes:
        largest: magnitude represented by the largest 8-bit number, after `shift`.
        shift: exponents of two, one per channel, by which the activation is multiplied and the matching weight rows are
            divided; empty for no scaling.
    """

    largest: float
    shift: tuple[int, ...] = ()


def products(model: onnx.ModelProto) -> list[Product]:
    """List the products of a typed graph with constant 16-bit weights, in graph order.

    This leaves out preprocessing, layers that the network itself computes in float32, and convolutions with few
    channels per group: 8 bits cost them much accuracy and save little arithmetic.
    """
    shapes = {t.name: t.dims for t in model.graph.initializer if t.data_type in NARROW}
    found = []
    for node in model.graph.node:
        attributes = {a.name: a.i for a in node.attribute}
        if len(node.input) < 2 or node.input[1] not in shapes or node.input[0] in shapes:
            continue
        data, constant = node.input[:2]
        if node.op_type == "Conv" and min(shapes[constant][:2]) > _NARROW:
            found.append(Product(node.name, data, constant, 0, None))
        elif node.op_type == "MatMul" and len(shapes[constant]) == 2:
            found.append(Product(node.name, data, constant, 1, 0))
        elif node.op_type == "Gemm" and not attributes.get("transA"):
            turned = bool(attributes.get("transB"))
            found.append(Product(node.name, data, constant, int(not turned), int(turned)))
    return found


def quantise(
    model: onnx.ModelProto, ranges: Mapping[str, Range], precision: EightBits, *, unquantised: int = 0
) -> onnx.ModelProto:
    """Quantise the products of a graph to 8 bits, in place.

    Args:
        model: typed graph of a 16-bit network.
        ranges: range of every activation in `products`.
        unquantised: number of leading products that stay in 16 bits.

    Returns:
        `model`.

    Raises:
        SubstyleError: an activation has no range.
    """
    chosen = {product.node: product for product in products(model)[unquantised:]}
    if lost := sorted({p.data for p in chosen.values()} - ranges.keys()):
        raise SubstyleError(f"no calibrated range for activations: {', '.join(lost)}")
    rewrite = _Rewrite(model, ranges, precision)
    nodes = []
    for node in model.graph.node:
        if product := chosen.get(node.name):
            node.input[0] = rewrite.activation(product)
            node.input[1] = rewrite.weight(product)
        nodes += [*rewrite.taken(), node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.value_info[:]  # outdated shapes; parsers infer them
    drop_unused(model)
    return model


class _Rewrite:
    """Inserts QDQ pairs: one per activation, shared by its consumers, and an 8-bit weight with DQ per product."""

    def __init__(self, model: onnx.ModelProto, ranges: Mapping[str, Range], precision: EightBits) -> None:
        self.graph, self.ranges, self.precision = model.graph, ranges, precision
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self.done: dict[str, str] = {}
        self.pending: list[Any] = []

    def taken(self) -> list[Any]:
        """Return the nodes created since the last call."""
        made, self.pending = self.pending, []
        return made

    def _node(self, kind: str, inputs: list[str], **attributes: int) -> str:
        from onnx import helper

        output = f"{inputs[0]}_{kind}"
        self.pending.append(helper.make_node(kind, inputs, [output], name=f"node_{output}", **attributes))
        return output

    def _constant(self, name: str, values: NDArray[np.float32], kind: int) -> str:
        self.graph.initializer.append(weight(name, values, kind))
        return name

    def _zero(self, name: str, shape: tuple[int, ...]) -> str:
        return self._constant(f"{name}_zero", np.zeros(shape, np.float32), _KIND[self.precision])

    def activation(self, product: Product) -> str:
        """Return the name of the dequantised input of a product."""
        name = product.data
        if name not in self.done:
            kind = self.tensors[product.weight].data_type
            found, data = self.ranges[name], name
            if found.shift:
                factors = self._constant(f"{name}_factors", np.exp2(np.array(found.shift, np.float32)), kind)
                data = self._node("Mul", [name, factors])
            scale = np.array(max(found.largest / LARGEST[self.precision], _SMALLEST), np.float32)
            scales = self._constant(f"{name}_scale", rounded(scale, kind), kind)
            zero = self._zero(name, ())
            self.done[name] = self._node(
                "DequantizeLinear", [self._node("QuantizeLinear", [data, scales, zero]), scales, zero]
            )
        return self.done[name]

    def weight(self, product: Product) -> str:
        """Return the name of the dequantised weight of a product. Products that share a weight get their own."""
        kind, largest = self.tensors[product.weight].data_type, LARGEST[self.precision]
        values = array(self.tensors[product.weight])
        shift = self.ranges[product.data].shift
        if shift and product.in_axis is not None:
            factors = np.exp2(np.array(shift, np.float32))
            values = values / np.expand_dims(factors, 1 - product.in_axis)
        inner = tuple(axis for axis in range(values.ndim) if axis != product.out_axis)
        scale = rounded(np.maximum(np.abs(values).max(axis=inner) / largest, _SMALLEST), kind)  # per output channel
        steps = values / scale.reshape([-1 if axis == product.out_axis else 1 for axis in range(values.ndim)])
        steps = np.clip(np.rint(steps) if self.precision == "int8" else steps, -largest, largest)
        name = f"{product.node}_weight"
        stored = self._constant(name, steps, _KIND[self.precision])
        scales, zero = self._constant(f"{name}_scale", scale, kind), self._zero(name, scale.shape)
        return self._node("DequantizeLinear", [stored, scales, zero], axis=product.out_axis)


# Calibration: the largest magnitudes of activations are measured with OpenVINO in float32 on the CPU. For int8, those
# that enter only matrix products are smoothed (SmoothQuant, arXiv 2211.10438, with lossless powers of two), which moves
# the scale of outlier channels into the weights. Nothing is clipped: transformers depend on their outliers.

Model = Any  # onnx ships no types
_TINY = 1e-9


def calibrate(
    model: Model, batches_GSSC: Sequence[NDArray[np.uint8]], precision: EightBits, *, threads: int
) -> dict[str, Range]:
    """Calibrate the ranges of the activations that enter a typed graph's products.

    Args:
        model: graph with fixed batch b.
        batches_GSSC: batches of photographs, (b, S, S, 3) uint8 each.

    Returns:
        ranges by name of activation.
    """
    by_data: dict[str, list[Product]] = {}
    for product in products(model):
        by_data.setdefault(product.data, []).append(product)
    channels = {name: np.zeros(0, np.float32) for name in by_data}
    for name, x in _activations(model, list(by_data), batches_GSSC, threads):
        convolved = by_data[name][0].in_axis is None
        found = np.abs(x).max(axis=tuple(a for a in range(x.ndim) if a != (1 if convolved else x.ndim - 1)))
        channels[name] = np.maximum(channels[name], found) if channels[name].size else found
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    ranges = {}
    for name, group in by_data.items():
        found = channels[name]
        shift = np.zeros(0, np.int64)
        if precision == "int8":
            shift = _shift(found, [(array(weights[p.weight]), p.in_axis) for p in group])
        ranges[name] = Range(float((found * np.exp2(shift) if shift.size else found).max()), tuple(shift.tolist()))
    return ranges


def in_batches(batches_GSSC: Sequence[NDArray[np.uint8]], size: int) -> list[NDArray[np.uint8]]:
    """Regroup photographs into batches of another size; the last is padded with the first photographs."""
    images = np.concatenate(list(batches_GSSC))
    count = -(-len(images) // size)
    return np.split(images[np.arange(count * size) % len(images)], count)


def _shift(data_C: NDArray[np.float32], group: Sequence[tuple[NDArray[np.float32], int | None]]) -> NDArray[np.int64]:
    """Exponents of two for channel scaling, near sqrt(weight / activation). Empty if a product is a convolution."""
    if any(axis is None for _, axis in group):
        return np.zeros(0, np.int64)
    weight_C = np.max([np.abs(weight).max(axis=1 - (axis or 0)) for weight, axis in group], axis=0)
    idle = (data_C < _TINY) | (weight_C < _TINY)
    ratio = np.where(idle, 1, np.maximum(weight_C, _TINY) / np.maximum(data_C, _TINY))
    exact = 0.5 * np.log2(ratio)
    exact -= np.median(exact)  # a factor common to all channels belongs to the scale
    return np.where(idle, 0, np.rint(exact)).astype(np.int64)


def _activations(
    model: Model, names: Sequence[str], batches_GSSC: Sequence[NDArray[np.uint8]], threads: int
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Names and values of the named activations for each batch, as additional float32 outputs of the graph."""
    import onnx

    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    for i, name in enumerate(names):
        extended.graph.node.append(onnx.helper.make_node("Cast", [name], [f"measured_{i}"], to=FLOAT))
        extended.graph.output.append(onnx.helper.make_tensor_value_info(f"measured_{i}", FLOAT, None))
    graph = OpenVINOGraph(extended.SerializeToString(), precision="fp32", threads=threads)
    # matched by position, because OpenVINO may name a tensor after an equal one
    measured = dict(zip(names, graph.outputs[-len(names) :], strict=True)) if names else {}
    for batch in batches_GSSC:
        outputs = graph(batch)
        yield from ((name, outputs[output]) for name, output in measured.items())

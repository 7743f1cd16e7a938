"""Which numbers the activations of a typed graph take on photographs, and how 8 bits are best laid over them.

Activations are measured on the CPU, by OpenVINO in float32. In int8, an activation whose products are all matrix
products is smoothed first (SmoothQuant, arXiv 2211.10438, with powers of two, which cost no bits): channels with few
large numbers hand some of their size to the weights. Then the magnitude is chosen at which rounding and clipping
together cost least. fp8 has range enough for neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.backbones.runtimes.eight_bits import LARGEST, Product, Range, products
from substyle.engine.backbones.runtimes.onnx_weights import FLOAT, array
from substyle.engine.backbones.runtimes.openvino import OpenVINOGraph
from substyle.engine.precision import EightBits

Model = Any  # onnx ships no types
_BINS = 2048
_LOOKED_AT = 1 << 16  # numbers of an activation in one batch, drawn at random, that enter its histogram
_CLIPS = np.linspace(0.2, 1.0, 81)  # shares of the largest magnitude that are tried
_TINY = 1e-9


def calibrate(
    model: Model, batches_GSSC: Sequence[NDArray[np.uint8]], precision: EightBits, *, threads: int
) -> dict[str, Range]:
    """Ranges of the activations that a typed graph's products take.

    Args:
        model: the graph, of fixed batch b.
        batches_GSSC: photographs, (b, S, S, 3) uint8 each.
        precision: what they are to be quantised to.
        threads: of the CPU.
    """
    by_data: dict[str, list[Product]] = {}
    for product in products(model):
        by_data.setdefault(product.data, []).append(product)
    activations = _Activations(model, list(by_data), threads)
    channels = {name: np.zeros(0, np.float32) for name in by_data}

    def largest(name: str, x: NDArray[np.float32]) -> None:
        convolved = by_data[name][0].in_axis is None
        found = np.abs(x).max(axis=tuple(a for a in range(x.ndim) if a != (1 if convolved else x.ndim - 1)))
        channels[name] = np.maximum(channels[name], found) if channels[name].size else found

    activations.visit(batches_GSSC, largest)
    if precision != "int8":
        return {name: Range(float(found.max())) for name, found in channels.items()}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    shifts = {
        name: _shift(channels[name], [(array(weights[p.weight]), p.in_axis) for p in group])
        for name, group in by_data.items()
    }
    tops = {
        name: float((found * np.exp2(shifts[name])).max() if shifts[name].size else found.max())
        for name, found in channels.items()
    }
    counts = {name: np.zeros(_BINS) for name in by_data}
    draw = np.random.default_rng(0)

    def count(name: str, x: NDArray[np.float32]) -> None:
        if shifts[name].size:
            x = x * np.exp2(shifts[name]).astype(np.float32)
        flat = x.reshape(-1)
        if flat.size > _LOOKED_AT:
            flat = flat[draw.integers(0, flat.size, _LOOKED_AT)]
        counts[name] += np.histogram(np.abs(flat), _BINS, (0, max(tops[name], _TINY)))[0]

    activations.visit(batches_GSSC, count)
    return {name: Range(_clip(counts[name], tops[name]), tuple(int(n) for n in shifts[name])) for name in by_data}


def in_batches(batches_GSSC: Sequence[NDArray[np.uint8]], size: int) -> list[NDArray[np.uint8]]:
    """Photographs in whole batches of another size; the last is filled up with the first of them."""
    images = np.concatenate(list(batches_GSSC))
    count = -(-len(images) // size)
    return np.split(images[np.arange(count * size) % len(images)], count)


def _shift(data_C: NDArray[np.float32], group: Sequence[tuple[NDArray[np.float32], int | None]]) -> NDArray[np.int64]:
    """Powers of two by which channels are multiplied: the root of weight over activation. Empty with convolutions."""
    if any(axis is None for _, axis in group):
        return np.zeros(0, np.int64)
    weight_C = np.max([np.abs(weight).max(axis=1 - (axis or 0)) for weight, axis in group], axis=0)
    idle = (data_C < _TINY) | (weight_C < _TINY)
    ratio = np.where(idle, 1, np.maximum(weight_C, _TINY) / np.maximum(data_C, _TINY))
    exact = 0.5 * np.log2(ratio)
    exact -= np.median(exact)  # what all channels have in common is the scale's to say
    return np.where(idle, 0, np.rint(exact)).astype(np.int64)


def _clip(counts: NDArray[np.float64], top: float) -> float:
    """The magnitude for the largest step at which the mean squared error of int8 is least."""
    values = (np.arange(_BINS) + 0.5) / _BINS * top
    scales = np.maximum(_CLIPS * top, _TINY)[:, None] / LARGEST["int8"]
    errors = ((np.minimum(np.rint(values / scales), LARGEST["int8"]) * scales - values) ** 2 * counts).sum(axis=1)
    return float(_CLIPS[int(errors.argmin())] * top)


class _Activations:
    """A graph that gives the named activations in float32 too."""

    def __init__(self, model: Model, names: Sequence[str], threads: int) -> None:
        import onnx

        told = onnx.ModelProto()
        told.CopyFrom(model)
        for i, name in enumerate(names):
            told.graph.node.append(onnx.helper.make_node("Cast", [name], [f"measured_{i}"], to=FLOAT))
            told.graph.output.append(onnx.helper.make_tensor_value_info(f"measured_{i}", FLOAT, None))
        self.graph = OpenVINOGraph(told.SerializeToString(), precision="fp32", threads=threads)
        # in the order in which they were added: a tensor that is what another was may go by that one's name
        self.names = dict(zip(names, self.graph.outputs[-len(names) :], strict=True)) if names else {}

    def visit(
        self, batches_GSSC: Sequence[NDArray[np.uint8]], look: Callable[[str, NDArray[np.float32]], None]
    ) -> None:
        """Show every activation of every batch, by name."""
        for batch in batches_GSSC:
            outputs = self.graph(batch)
            for name, output in self.names.items():
                look(name, outputs[output])

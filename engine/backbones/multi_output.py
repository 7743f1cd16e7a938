"""Joint execution of backbones that share layers, such as several depths of one network.

Each depth is a separate backbone, compiled and gated on its own. In a run with several of them, their graphs are merged
into one with an output per backbone. The merged graph is used only if its outputs are bitwise equal to those of the
separate graphs, so that stores do not depend on it and each backbone can be resumed alone.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.weak import WeakIdKeyDictionary

from substyle.engine import cache
from substyle.engine.backbones.compile import CompiledBackbone
from substyle.engine.backbones.runtimes.base import GateSamples
from substyle.engine.backbones.runtimes.openvino import FixedBatch, OpenVINOGraph, Running
from substyle.engine.backbones.runtimes.openvino_builder import BLOBS
from substyle.engine.backbones.spec import AsyncResult
from substyle.engine.cuda import Canvas
from substyle.engine.devices import as_precision

if TYPE_CHECKING:
    import onnx


def merge(models: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """Merge ONNX graphs with the same input into one that computes common nodes once.

    Nodes are equal if operator, attributes and inputs are; weights if type, shape and bytes are. Outputs keep the order
    of the graphs and are named ``<output>_<number>``.

    Raises:
        ValueError: the graphs differ in inputs or operator sets, or have functions, subgraphs or sparse weights.
    """
    import onnx

    first = models[0]
    merged = onnx.ModelProto()
    merged.CopyFrom(first)
    for field in ("node", "initializer", "output", "value_info"):
        merged.graph.ClearField(field)
    known: dict[str, str] = {}  # content of a tensor → its name in the merged graph
    for number, model in enumerate(models):
        _require_alike(first, model)
        names = {value.name: value.name for value in model.graph.input}
        for tensor in model.graph.initializer:
            names[tensor.name] = _weight(tensor, known, merged)
        for node in model.graph.node:
            _node(node, number, names, known, merged)
        for output in model.graph.output:
            added = merged.graph.output.add()
            added.CopyFrom(output)
            added.name = f"{output.name}_{number}"
            # keeps outputs separate if two graphs end in the same tensor
            merged.graph.node.add(op_type="Identity", input=[names[output.name]], output=[added.name])
    onnx.checker.check_model(merged)
    return merged


def _require_alike(first: onnx.ModelProto, model: onnx.ModelProto) -> None:
    def interface(one: onnx.ModelProto) -> tuple[list[bytes], list[tuple[str, int]]]:
        inputs = [value.SerializeToString(deterministic=True) for value in one.graph.input]
        return inputs, sorted((known.domain, known.version) for known in one.opset_import)

    if interface(model) != interface(first):
        raise ValueError("graphs have different inputs or operator sets")
    subgraphs = any(attribute.HasField("g") or attribute.graphs for n in model.graph.node for attribute in n.attribute)
    if model.functions or subgraphs or model.graph.sparse_initializer:
        raise ValueError("graph has functions, subgraphs or sparse weights")


def _weight(tensor: onnx.TensorProto, known: dict[str, str], merged: onnx.ModelProto) -> str:
    """Add a weight to the merged graph if it is new; return its name there."""
    bare = type(tensor)()
    bare.CopyFrom(tensor)
    bare.ClearField("name")
    bare.ClearField("doc_string")
    key = f"weight {hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()}"
    if key not in known:
        known[key] = f"weight_{len(merged.graph.initializer)}"
        bare.name = known[key]
        merged.graph.initializer.append(bare)
    return known[key]


def _node(
    node: onnx.NodeProto, number: int, names: dict[str, str], known: dict[str, str], merged: onnx.ModelProto
) -> None:
    """Add a node to the merged graph if it is new; record the names of its outputs in ``names``."""
    inputs = [names[name] if name else "" for name in node.input]
    attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
    used = [bool(name) for name in node.output]
    facts = repr((node.domain, node.op_type, inputs, attributes, used))
    key = f"node {hashlib.sha256(facts.encode()).hexdigest()}"
    if key not in known:
        known[key] = f"node_{len(merged.graph.node)}"
        added = merged.graph.node.add()
        added.CopyFrom(node)
        added.name = known[key]
        del added.input[:], added.output[:]
        added.input.extend(inputs)
        added.output.extend(f"{known[key]}_{i}" if name else "" for i, name in enumerate(node.output))
        added.ClearField("metadata_props")
        added.ClearField("doc_string")
    for i, name in enumerate(node.output):
        if name:
            names[name] = f"{known[key]}_{i}"


_LOOKED_AT = 8  # number of batches of the gate's variants on which outputs are compared


def share(backbones: Sequence[CompiledBackbone], samples: GateSamples) -> list[CompiledBackbone]:
    """Merge the graphs of backbones that can share work.

    Args:
        backbones: compiled and gated backbones.
        samples: inputs on which merged and separate graphs are compared, once per machine.

    Returns:
        the same backbones in the same order.
    """
    shared = list(backbones)
    groups: dict[object, list[int]] = {}
    for place, backbone in enumerate(backbones):
        if backbone.recipe is not None and isinstance(backbone.embed, FixedBatch):
            alike = (backbone.spec.weights_hash, backbone.recipe.mixture, backbone.embed.batch, backbone.recipe.threads)
            groups.setdefault(alike, []).append(place)
    for places in groups.values():
        joint = _joint([backbones[place] for place in places], samples) if len(places) > 1 else None
        if joint is not None:
            for number, place in enumerate(places):
                shared[place] = replace(backbones[place], embed=OutputMember(joint, number))
    return shared


class MultiOutput:
    """A graph with one output per backbone.

    Pending results are kept as long as their canvas, so that a canvas passed to each backbone in turn is computed once.
    """

    def __init__(self, graph: OpenVINOGraph, batch: int) -> None:
        self.network = FixedBatch(graph, batch)
        self._begun: Any = WeakIdKeyDictionary()  # _Begun by canvas; untyped in torch

    def start(self, canvas_BSSC: Canvas, number: int) -> AsyncResult:
        """Start computing one backbone's embeddings. Do not modify the canvas until all backbones have received it."""
        begun: _Begun | None = self._begun.get(canvas_BSSC)
        if begun is None or number in begun.taken:
            begun = self._begun[canvas_BSSC] = self.begin(canvas_BSSC)
        begun.taken.add(number)
        if len(begun.taken) == len(self.network.graph.outputs):
            del self._begun[canvas_BSSC]
        return _Output(begun, number)

    def begin(self, canvas_BSSC: Canvas) -> _Begun:
        """Start computing all outputs, without reusing pending results."""
        return _Begun(self.network.begin(canvas_BSSC), len(canvas_BSSC))


class OutputMember:
    """One backbone of a `MultiOutput`."""

    def __init__(self, joint: MultiOutput, number: int) -> None:
        self.joint, self.number = joint, number

    def __call__(self, canvas_BSSC: Canvas) -> NDArray[np.float32]:
        """Embed a canvas: (B, S, S, 3) uint8 to (B, D) float32. The canvas may be modified afterwards."""
        return self.joint.begin(canvas_BSSC).output(self.number)

    def start(self, canvas_BSSC: Canvas) -> AsyncResult:
        """Start embedding in the background, for this and the other backbones."""
        return self.joint.start(canvas_BSSC, self.number)


class _Begun:
    """A batch in flight through a joint graph."""

    def __init__(self, running: Sequence[Running], count: int) -> None:
        self._running, self._count = running, count
        self._outputs: list[NDArray[np.float32]] | None = None
        self.taken: set[int] = set()

    def output(self, number: int) -> NDArray[np.float32]:
        """Wait for one backbone's embeddings. Shape: (B, D) float32."""
        if self._outputs is None:
            pieces = [list(piece.result().values()) for piece in self._running]
            parts = (np.concatenate(parts)[: self._count] for parts in zip(*pieces, strict=True))
            self._outputs = [part.astype(np.float32, copy=False) for part in parts]
            self._running = ()
        return self._outputs[number]


class _Output:
    def __init__(self, begun: _Begun, number: int) -> None:
        self.begun, self.number = begun, number

    def result(self) -> NDArray[np.float32]:
        return self.begun.output(self.number)


def _joint(backbones: Sequence[CompiledBackbone], samples: GateSamples) -> MultiOutput | None:
    """Build the joint graph of backbones; None if outputs are not bitwise equal or a graph is not in the cache."""
    recipes = [backbone.recipe for backbone in backbones if backbone.recipe is not None]
    names = [recipe.graph for recipe in recipes]
    if not all((cache.root() / name).is_file() for name in names):
        return None  # the cache was partly cleared; compiled backbones do not need their graphs
    first, network = recipes[0], backbones[0].embed
    assert isinstance(network, FixedBatch)
    facts = {
        "graphs": names,
        "mixture": first.mixture.describe(),
        "threads": first.threads,
        "code": cache.code_hash(),
        "versions": cache.versions("openvino", "onnx"),
    }

    @functools.cache
    def make() -> MultiOutput:
        graph = OpenVINOGraph(
            partial(_merged, names),
            precision=as_precision(first.mixture.precision),
            threads=first.threads,
            streams=first.threads,
            float32_layers=first.mixture.float32_layers,
            cache_dir=BLOBS,
            identity=cache.key(facts),
        )
        return MultiOutput(graph, network.batch)

    def check() -> bool:
        joint = make()
        outputs = set(joint.network.graph.outputs)  # two backbones may end in one tensor
        same = len(outputs) == len(backbones) and _same_bits(joint, backbones, samples)
        said = "share one graph" if same else "run separately: a shared graph is not bitwise equal"
        print(f"{', '.join(backbone.spec.name for backbone in backbones)} {said}", file=sys.stderr)
        return same

    return make() if cache.remember("shared", {**facts, "device": cache.device()}, check) else None


def _merged(names: Sequence[str]) -> bytes:
    """Merge graphs from the cache. Called only if no compiled blob of the result is cached."""
    import onnx

    graphs = (cache.read(name) for name in names)
    return bytes(merge([onnx.load_from_string(graph or b"") for graph in graphs]).SerializeToString())


def _same_bits(joint: MultiOutput, backbones: Sequence[CompiledBackbone], samples: GateSamples) -> bool:
    variants = samples.variants()
    for batch_BSSC in variants[:: max(len(variants) // _LOOKED_AT, 1)]:
        begun = joint.begin(batch_BSSC)
        for number, backbone in enumerate(backbones):
            if not np.array_equal(begun.output(number), backbone.embed(batch_BSSC), equal_nan=True):
                return False
    return True

"""Backbones that begin as one network: what their graphs have in common is computed once for all of them.

Several depths of a network are backbones of their own, each compiled and gated by itself. Where a run has several of
them, their graphs are merged into one with an output for each. It takes their place only if it gives each of them the
same bits as its own graph, so that no store can tell which of the two made an embedding, and any of them may be
resumed alone.
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


# Several ONNX graphs of one input as one, in which what they have in common is computed once.
#
# Two nodes are the same where operator, attributes and inputs are, two weights where type, shape and bytes are: graphs
# of one network read at several blocks share all that comes before the first of these.


def merge(models: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """One model with the input of the first and the outputs of all, in their order, named ``<output>_<number>``.

    Raises:
        ValueError: graphs of different inputs or operator sets, or with functions or subgraphs.
    """
    import onnx

    first = models[0]
    merged = onnx.ModelProto()
    merged.CopyFrom(first)
    for field in ("node", "initializer", "output", "value_info"):
        merged.graph.ClearField(field)
    known: dict[str, str] = {}  # what a tensor is → its name in the merged graph
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
            # an output of its own, even where two graphs end in the same tensor
            merged.graph.node.add(op_type="Identity", input=[names[output.name]], output=[added.name])
    onnx.checker.check_model(merged)
    return merged


def _require_alike(first: onnx.ModelProto, model: onnx.ModelProto) -> None:
    def interface(one: onnx.ModelProto) -> tuple[list[bytes], list[tuple[str, int]]]:
        inputs = [value.SerializeToString(deterministic=True) for value in one.graph.input]
        return inputs, sorted((known.domain, known.version) for known in one.opset_import)

    if interface(model) != interface(first):
        raise ValueError("graphs of different inputs or operator sets")
    subgraphs = any(attribute.HasField("g") or attribute.graphs for n in model.graph.node for attribute in n.attribute)
    if model.functions or subgraphs or model.graph.sparse_initializer:
        raise ValueError("a graph with functions, subgraphs or sparse weights")


def _weight(tensor: onnx.TensorProto, known: dict[str, str], merged: onnx.ModelProto) -> str:
    """The name of a weight in the merged graph."""
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
    """Add a node of a graph unless the merged graph has it; ``names`` learns what its outputs are called there."""
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


_LOOKED_AT = 8  # batches of the gate's variants on which bits are compared


def share(backbones: Sequence[CompiledBackbone], samples: GateSamples) -> list[CompiledBackbone]:
    """The same backbones in the same order; those that can share work do.

    Args:
        backbones: compiled and gated.
        samples: on which a joint graph is held against theirs, once on a machine.
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
    """A graph with an output for each of several backbones.

    It remembers what it has begun for as long as the canvas lives, so that a canvas that is given to one of them after
    the other is computed once.
    """

    def __init__(self, graph: OpenVINOGraph, batch: int) -> None:
        self.network = FixedBatch(graph, batch)
        self._begun: Any = WeakIdKeyDictionary()  # of _Begun by canvas; torch types none of it

    def start(self, canvas_BSSC: Canvas, number: int) -> AsyncResult:
        """Embeddings of one of the backbones; nobody may write to the canvas before all of them have been given it."""
        begun: _Begun | None = self._begun.get(canvas_BSSC)
        if begun is None or number in begun.taken:
            begun = self._begun[canvas_BSSC] = self.begin(canvas_BSSC)
        begun.taken.add(number)
        if len(begun.taken) == len(self.network.graph.outputs):
            del self._begun[canvas_BSSC]
        return _Output(begun, number)

    def begin(self, canvas_BSSC: Canvas) -> _Begun:
        """All of them, whatever was begun before."""
        return _Begun(self.network.begin(canvas_BSSC), len(canvas_BSSC))


class OutputMember:
    """One backbone of a joint graph."""

    def __init__(self, joint: MultiOutput, number: int) -> None:
        self.joint, self.number = joint, number

    def __call__(self, canvas_BSSC: Canvas) -> NDArray[np.float32]:
        """(B, S, S, 3) uint8 to (B, D) float32. The canvas may be written to afterwards."""
        return self.joint.begin(canvas_BSSC).output(self.number)

    def start(self, canvas_BSSC: Canvas) -> AsyncResult:
        """The same in the background, and what the others will ask for."""
        return self.joint.start(canvas_BSSC, self.number)


class _Begun:
    """A batch on its way through a joint graph."""

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
    """The joint graph of backbones; None where it gives one of them other bits, or cannot be made."""
    recipes = [backbone.recipe for backbone in backbones if backbone.recipe is not None]
    names = [recipe.graph for recipe in recipes]
    if not all((cache.root() / name).is_file() for name in names):
        return None  # somebody has cleared a part of the cache; each has its own blob
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
        outputs = set(joint.network.graph.outputs)  # two of them may end in one tensor
        same = len(outputs) == len(backbones) and _same_bits(joint, backbones, samples)
        said = "are computed in one go" if same else "are computed one after the other: in one go, bits would differ"
        print(f"{', '.join(backbone.spec.name for backbone in backbones)} {said}", file=sys.stderr)
        return same

    return make() if cache.remember("shared", {**facts, "device": cache.device()}, check) else None


def _merged(names: Sequence[str]) -> bytes:
    """The joint graph of graphs in the cache; they are read only where no blob of it is kept."""
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

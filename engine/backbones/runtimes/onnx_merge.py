"""Several ONNX graphs of one input as one, in which what they have in common is computed once.

Two nodes are the same where operator, attributes and inputs are, two weights where type, shape and bytes are: graphs of
one network read at several blocks share all that comes before the first of these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


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

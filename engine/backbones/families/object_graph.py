"""SimCLR's TensorFlow 2 checkpoints: which variable is which follows from the graph of the objects that held them.

A key there may be ``trainable_weights/17/.ATTRIBUTES/VARIABLE_VALUE``, after whichever path is shortest; the graph
(``TrackableObjectGraph`` in TensorFlow's ``trackable_object_graph.proto``) has all paths. Source of the
attributes' names: ``tf2/resnet.py`` of google-research/simclr.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from substyle.engine.backbones.tensor_bundle import BundleError, TensorBundle, fields

KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
_STEM, _GROUPS = "initial_conv_relu_max_pool", "block_groups"
_VALUE = b"VARIABLE_VALUE"


@dataclass(frozen=True)
class _Node:
    children: dict[str, int]
    key: str | None  # of its value in the checkpoint


def base_names(bundle: TensorBundle) -> dict[str, str]:
    """Names as version 1 of TensorFlow gives them, such as ``base_model/conv2d_3/kernel``, by key of the checkpoint.

    Keys of everything inside the ResNet are there, those of layers it should not have under their own name; what lies
    outside it, heads and optimiser, is not.

    Raises:
        BundleError: a graph without exactly one ResNet in it.
    """
    try:
        nodes = [_node(message) for message in fields(bundle.text(KEY)).get(1, []) if isinstance(message, bytes)]
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise BundleError(f"{bundle.prefix}: {KEY} is no graph of objects ({error})") from error
    if any(not 0 <= child < len(nodes) for node in nodes for child in node.children.values()):
        raise BundleError(f"{bundle.prefix}: {KEY} names objects that it has not got")
    roots = [node for node in nodes if _STEM in node.children and _GROUPS in node.children]
    if len(roots) != 1:
        raise BundleError(f"{bundle.prefix}: {len(roots)} networks with {_STEM} and {_GROUPS}, not one")
    out = {key: key for node in _inside(nodes, roots[0]) if (key := node.key) is not None}
    counts = {"conv2d": 0, "batch_normalization": 0}
    for layer in _layers(nodes, roots[0]):
        for attribute, kind in (("conv2d", "conv2d"), ("bn", "batch_normalization")):
            if attribute not in layer.children:
                continue
            number = counts[kind]
            counts[kind] += 1
            name = f"base_model/{kind}_{number}" if number else f"base_model/{kind}"
            for part, child in nodes[layer.children[attribute]].children.items():
                key = nodes[child].key
                if key is not None:
                    out[key] = f"{name}/{part}"
    return out


def _inside(nodes: list[_Node], root: _Node) -> list[_Node]:
    seen: set[int] = set()
    waiting = list(root.children.values())
    while waiting:
        number = waiting.pop()
        if number not in seen:
            seen.add(number)
            waiting += nodes[number].children.values()
    return [nodes[number] for number in seen]


def _layers(nodes: list[_Node], resnet: _Node) -> Iterator[_Node]:
    """Layers in the order in which version 1 makes their variables."""
    yield from _items(nodes, resnet, _STEM)
    for group in _items(nodes, resnet, _GROUPS):
        for block in _items(nodes, group, "layers"):
            yield from _items(nodes, block, "projection_layers")
            yield from _items(nodes, block, "conv_relu_dropblock_layers")


def _items(nodes: list[_Node], node: _Node, name: str) -> list[_Node]:
    """The members of a list that is an attribute, in order; none where it is not there."""
    if name not in node.children:
        return []
    members = nodes[node.children[name]].children
    return [nodes[members[number]] for number in sorted((key for key in members if key.isdigit()), key=int)]


def _node(message: bytes) -> _Node:
    found = fields(message)
    children: dict[str, int] = {}
    for child in found.get(1, []):
        parts = fields(child if isinstance(child, bytes) else b"")
        number, name = parts.get(1, [0])[-1], parts.get(2, [b""])[-1]
        if isinstance(number, int) and isinstance(name, bytes):
            children[name.decode()] = number
    key = None
    for attribute in found.get(2, []):
        parts = fields(attribute if isinstance(attribute, bytes) else b"")
        if parts.get(1, [b""])[-1] == _VALUE and isinstance(parts.get(3, [b""])[-1], bytes):
            value = parts[3][-1]
            key = value.decode() if isinstance(value, bytes) else None
    return _Node(children, key)

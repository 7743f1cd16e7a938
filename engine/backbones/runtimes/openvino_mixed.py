"""Mixed precision in OpenVINO: a graph in bf16 whose first layers stay in float32.

Rounding in the first layers of a network reaches every feature after them; in networks of depthwise convolutions it is
most of what bf16 costs. OpenVINO keeps a layer's own precision when its IR carries the attribute ``precise``.
"""

from __future__ import annotations

import functools
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

_COUNTED = frozenset({"Convolution", "GroupConvolution", "MatMul"})


@functools.cache
def core() -> Any:  # noqa: ANN401 - OpenVINO's core
    """The one core of the process: a model must not outlive the core that read it."""
    import openvino as ov

    return ov.Core()


def layers(onnx: bytes) -> int:
    """Number of convolutions and matrix products in a graph."""
    return sum(op.get_type_name() in _COUNTED for op in core().read_model(onnx).get_ordered_ops())


def first_layers(model: Any, count: int) -> list[str]:  # noqa: ANN401 - OpenVINO's models
    """Names of a model's first ``count`` convolutions and matrix products."""
    return [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_type_name() in _COUNTED][:count]


def with_float32_layers(model: Any, count: int) -> Any:  # noqa: ANN401 - OpenVINO's models
    """The model with its first ``count`` convolutions and matrix products, and all between them, kept in float32.

    All between them too: a float32 convolution whose fused addition or activation is bf16 does not compile.
    """
    import openvino as ov

    first: set[str] = set()
    seen = 0
    for op in model.get_ordered_ops():
        seen += op.get_type_name() in _COUNTED
        if seen > count:
            break
        first.add(op.get_friendly_name())
    with tempfile.TemporaryDirectory() as folder:
        xml, weights = Path(folder, "graph.xml"), Path(folder, "graph.bin")
        ov.serialize(model, str(xml), str(weights))
        tree = ET.parse(xml)
        for layer in tree.iter("layer"):
            if layer.get("name") in first:
                _mark(layer)
        return core().read_model(ET.tostring(tree.getroot()), weights.read_bytes())


def _mark(layer: ET.Element) -> None:
    info = layer.find("rt_info")
    if info is None:
        info = ET.Element("rt_info")
        # the schema wants it after the layer's data and before its ports
        layer.insert(1 if layer.find("data") is not None else 0, info)
    ET.SubElement(info, "attribute", name="precise", version="0")

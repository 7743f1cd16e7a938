"""Mixed precision in OpenVINO: a graph in bf16 whose first layers stay in float32.

Rounding in the first layers of a network reaches every feature after them; in networks of depthwise convolutions it is
most of what bf16 costs. OpenVINO keeps a layer's own precision when its IR carries the attribute ``precise``.
"""

from __future__ import annotations

import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

_COUNTED = frozenset({"Convolution", "GroupConvolution", "MatMul"})


def layers(onnx: bytes) -> int:
    """Number of convolutions and matrix products in a graph."""
    import openvino as ov

    return sum(op.get_type_name() in _COUNTED for op in ov.Core().read_model(onnx).get_ordered_ops())


def with_float32_layers(model: Any, count: int) -> Any:  # noqa: ANN401 - OpenVINO's models
    """The model with its first ``count`` convolutions and matrix products kept in float32."""
    import openvino as ov

    counted = [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_type_name() in _COUNTED]
    first = set(counted[:count])
    with tempfile.TemporaryDirectory() as folder:
        xml, weights = Path(folder, "graph.xml"), Path(folder, "graph.bin")
        ov.serialize(model, str(xml), str(weights))
        tree = ET.parse(xml)
        for layer in tree.iter("layer"):
            if layer.get("name") in first:
                _mark(layer)
        return ov.Core().read_model(ET.tostring(tree.getroot()), weights.read_bytes())


def _mark(layer: ET.Element) -> None:
    info = layer.find("rt_info")
    if info is None:
        info = ET.Element("rt_info")
        # the schema wants it after the layer's data and before its ports
        layer.insert(1 if layer.find("data") is not None else 0, info)
    ET.SubElement(info, "attribute", name="precise", version="0")

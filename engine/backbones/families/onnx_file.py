"""`onnx:<path>`: an ONNX model with its preprocessing in a JSON file beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from substyle.engine.backbones.family import Family, LoadContext, register_family
from substyle.engine.backbones.spec import Backbone
from substyle.files import file_hash


def _load(name: str, rest: str, context: LoadContext) -> Backbone:
    from substyle.engine.backbones import onnx_graph  # imports onnx

    return onnx_graph.load(name, rest, canvas=context.canvas, batch=context.batch)


def _identify(name: str, rest: str, context: LoadContext) -> dict[str, Any] | None:
    from substyle.engine.backbones import onnx_graph

    files = onnx_graph.files_of(Path(rest).expanduser())
    if not files or not all(each.is_file() for each in files):
        return None
    # in the order of their names, which the model has: files of several folders may have one name
    return {"weights": [file_hash(each) for each in files]}


register_family(
    Family(
        *("onnx", "<path.onnx>", "an ONNX file with its preprocessing in a JSON file beside it"),
        *(_load, _identify),
        position=4,
    )
)

"""`onnx:<path>`: an ONNX model with its preprocessing in a JSON file beside it.

``model.onnx`` needs ``model.json`` with ``mean`` and ``std`` (of RGB in [0, 1]), and ``output`` if there are several
outputs; ``licence``, ``architecture``, ``objective`` and ``data`` are optional. Input: (N, 3, side, side) float32.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import TensorProto, checker, compose, helper
from torch import nn

from substyle.engine import cache
from substyle.engine.backbones.export import Preprocessed, export
from substyle.engine.backbones.spec import RGB, Backbone, BackboneSpec
from substyle.errors import ConfigError

# raised by onnx for invalid files and graphs; RuntimeError: its checks in C++
_INVALID = (
    *(DecodeError, checker.ValidationError, OSError, ValueError, TypeError, LookupError),
    *(RuntimeError, StopIteration, MemoryError),
)


def load(name: str, path_text: str, *, canvas: int, batch: int) -> Backbone:
    """Load a model with the uint8 canvas interface and a fixed batch.

    Raises:
        ConfigError: the file does not exist, its JSON file is missing or invalid, or the model has another interface.
    """
    path = Path(path_text).expanduser()
    if not path.is_file():
        raise ConfigError(f"backbone {name}", str(path), "an existing file")
    facts = _facts(path)
    try:
        data = path.read_bytes()
        model = onnx.load_model_from_string(data)
        digest = hashlib.sha256(data)
        if _external(model):
            onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
            digest = hashlib.sha256(model.SerializeToString(deterministic=True))  # of the tensors that were read
        digest.update(str(facts.get("output", "")).encode())
        return _joined(name, path, facts, model, digest.hexdigest()[:16], canvas=canvas, batch=batch)
    except _INVALID as error:
        reason = " ".join(str(error).split())[:500]
        raise ConfigError(f"backbone {name}", f"{path}: {reason or error!r}", "a valid ONNX file") from error


def _joined(
    name: str, path: Path, facts: dict[str, Any], model: onnx.ModelProto, digest: str, *, canvas: int, batch: int
) -> Backbone:
    """Put the preprocessing in front of a model whose weights have this digest."""
    nodes = (node for each in (*_graphs(model), *model.functions) for node in each.node)
    if any(node.op_type == "DynamicQuantizeLinear" for node in nodes):
        allowed = "a model that is not quantised, or statically: embeddings must not depend on the batch"
        raise ConfigError(f"backbone {name}", f"{path.name}, dynamically quantised", allowed)
    side, source = _image_input(path, model)
    output = _output(path, model, facts.get("output"))
    _fix_batch(model, batch)
    front = _front(canvas=canvas, side=side, batch=batch, mean=facts["mean"], std=facts["std"])
    # both parts need the same opset: the newer one
    joined = compose.merge_models(
        *_same_opset(compose.add_prefix(front, "substyle_"), model),
        io_map=[("substyle_pixels", source)],
        outputs=[output],
    )
    dim = _flatten(joined, output, batch)
    spec = BackboneSpec(
        name=name,
        architecture=str(facts.get("architecture", path.stem)),
        dim=dim,
        input_side=side,
        mean=facts["mean"],
        std=facts["std"],
        pooling=f"output {output}",
        weights=f"file {path.name}",
        weights_hash=digest,
        licence=str(facts.get("licence", "unstated")),
        objective=str(facts.get("objective", "")),
        data=str(facts.get("data", "")),
    )
    return Backbone(spec, graph=joined.SerializeToString())


def files_of(path: Path) -> list[Path]:
    """Return the files that `load` reads: the model, its preprocessing, and those with its tensors; [] if unknown."""
    try:
        data = path.read_bytes()
        names = _external(onnx.load_model_from_string(data)) if b"location" in data else []
    except _INVALID:
        return []
    folder = path.parent.resolve()
    files = [folder / name for name in names]
    inside = all(each.resolve().is_relative_to(folder) for each in files)
    return [path, path.with_suffix(".json"), *files] if inside else []


def _graphs(model: onnx.ModelProto) -> list[onnx.GraphProto]:
    """The graph of a model, and those inside its nodes."""
    graphs = [model.graph]
    for graph in graphs:  # grows
        attributes = [attribute for node in graph.node for attribute in node.attribute]
        graphs += [each for attribute in attributes for each in (attribute.g, *attribute.graphs) if each.node]
    return graphs


def _external(model: onnx.ModelProto) -> list[str]:
    """Names of the files that hold tensors of a model."""
    names = set[str]()
    for graph in _graphs(model):
        attributes = [attribute for node in graph.node for attribute in node.attribute]
        tensors = [each for attribute in attributes for each in (attribute.t, *attribute.tensors)]
        for tensor in (*graph.initializer, *tensors):
            names |= {entry.value for entry in tensor.external_data if entry.key == "location"}
    return sorted(names)


def _facts(path: Path) -> dict[str, Any]:
    sidecar = path.with_suffix(".json")
    allowed = 'JSON such as {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}'
    if not sidecar.is_file():
        raise ConfigError(f"preprocessing of {path.name}", f"no file {sidecar.name} beside it", allowed)
    try:
        facts = json.loads(sidecar.read_text())
        for key in ("mean", "std"):
            red, green, blue = (float(v) for v in facts[key])
            facts[key] = (red, green, blue)
        if not min(facts["std"]) > 0.0:
            raise ValueError(f"std {facts['std']}, not above 0")
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"preprocessing of {path.name}", f"{sidecar.name}: {error}", allowed) from error
    return dict(facts)


def _image_input(path: Path, model: onnx.ModelProto) -> tuple[int, str]:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    shape = [d.dim_value for d in inputs[0].type.tensor_type.shape.dim] if len(inputs) == 1 else []
    floats = len(inputs) == 1 and inputs[0].type.tensor_type.elem_type == TensorProto.FLOAT
    if not floats or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or shape[2] < 1:
        given = ", ".join(f"{v.name} {[d.dim_value or '?' for d in v.type.tensor_type.shape.dim]}" for v in inputs)
        raise ConfigError(f"inputs of {path.name}", given, "one float32 input (N, 3, side, side) with a fixed side")
    return shape[2], inputs[0].name


def _output(path: Path, model: onnx.ModelProto, wanted: object) -> str:
    names = [value.name for value in model.graph.output]
    if wanted is None and len(names) == 1:
        return str(names[0])
    if wanted not in names:
        raise ConfigError(f"output of {path.name}", wanted, f"one of {', '.join(names)}")
    return str(wanted)


def _fix_batch(model: onnx.ModelProto, batch: int) -> None:
    """Set a fixed batch in the model's interface; inner shapes are inferred from it."""
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims:
            dims[0].ClearField("dim_param")
            dims[0].dim_value = batch


class _Pixels(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def _front(*, canvas: int, side: int, batch: int, mean: RGB, std: RGB) -> onnx.ModelProto:
    """The preprocessing as a graph, whose export takes seconds."""

    def make() -> bytes:
        module = Preprocessed(_Pixels(), canvas=canvas, side=side, mean=mean, std=std).eval()
        graph: bytes = export(module, canvas=canvas, batch=batch, output="pixels").SerializeToString()
        return graph

    facts = {
        **{"canvas": canvas, "side": side, "batch": batch, "mean": mean, "std": std},
        **{"code": cache.code_hash(), "libraries": cache.versions("torch", "onnx", "onnxscript")},
    }
    return onnx.load_model_from_string(cache.fetch(f"graphs/{cache.key(facts)}.front.onnx", make))


def _same_opset(front: onnx.ModelProto, model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    from onnx import version_converter

    def version(m: onnx.ModelProto) -> int:
        return int(next(o.version for o in m.opset_import if o.domain in ("", "ai.onnx")))

    target = max(version(front), version(model))
    front, model = (m if version(m) == target else version_converter.convert_version(m, target) for m in (front, model))
    front.ir_version = model.ir_version = max(front.ir_version, model.ir_version)
    return front, model


def _flatten(model: onnx.ModelProto, output: str, batch: int) -> int:
    """Flatten the output to (batch, D), including positions of a map or sequence. Returns D."""
    shape_node = helper.make_node("Flatten", [output], ["substyle_embedding"], axis=1)
    model.graph.node.append(shape_node)
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("substyle_embedding", TensorProto.FLOAT, None))
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    value = inferred.graph.output[0]
    dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
    if len(dims) != 2 or dims[1] < 1:
        raise ConfigError(f"output {output}", dims, "an output whose shape is determined by the input's")
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("substyle_embedding", TensorProto.FLOAT, [batch, dims[1]]))
    return int(dims[1])

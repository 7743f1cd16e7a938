"""`adapt:<file>`: a backbone followed by an adapter trained on its embeddings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import linear

from substyle import files
from substyle.engine.backbones import registry
from substyle.engine.backbones.export import Preprocessed
from substyle.engine.backbones.family import Derivation, Family, LoadContext, register_family
from substyle.engine.backbones.spec import Backbone
from substyle.engine.backbones.weights import WeightsError, read_described, require_canvas, write_described
from substyle.errors import ConfigError

PREFIX = "adapt:"
FORMAT = "substyle-adapter-1"
_REQUIRED = {"method": str, "backbone": str, "weights_hash": str, "relu": bool}


class _Layer(nn.Module):
    """``weight @ x + bias``, optionally followed by a ReLU: (B, D) to (B, E)."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self.relu = bool(adapter.metadata["relu"])
        self.register_buffer("weight", torch.from_numpy(adapter.weight_ED))
        self.register_buffer("bias", torch.from_numpy(adapter.bias_E))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = linear(x, self.weight, self.bias)
        return x.relu() if self.relu else x


@dataclass(frozen=True)
class Adapter:
    """One layer from embeddings of a backbone to new embeddings.

    Attributes:
        weight_ED: (E, D) float32.
        bias_E: (E,) float32.
        metadata: JSON: ``method``, ``backbone`` and ``weights_hash`` of the backbone, ``relu``, and what it was
            trained on.
    """

    weight_ED: NDArray[np.float32]
    bias_E: NDArray[np.float32]
    metadata: Mapping[str, Any]

    @property
    def backbone(self) -> str:
        """Name of the backbone whose embeddings it takes."""
        return str(self.metadata["backbone"])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of weights and metadata; 16 hex digits."""
        sha = hashlib.sha256(json.dumps(self.metadata, sort_keys=True).encode())
        for array in (self.weight_ED, self.bias_E):
            sha.update(repr(array.shape).encode() + array.tobytes())
        return sha.hexdigest()[:16]

    def __call__(self, x_BD: NDArray[np.floating]) -> NDArray[np.float32]:
        """Adapt embeddings (B, D); NaN stays NaN. Shape: (B, E)."""
        with torch.inference_mode():
            return self.layer(torch.from_numpy(np.ascontiguousarray(x_BD, np.float32))).numpy()  # type: ignore[no-any-return]

    @cached_property
    def layer(self) -> nn.Module:
        """The adapter as a module, (B, D) to (B, E)."""
        return _Layer(self).eval()

    def save(self, path: Path) -> None:
        """Write ``path`` (safetensors) and beside it the same layer as an ONNX model with a free batch size."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._onnx(path.with_suffix(".onnx"))
        tensors = {"weight": torch.from_numpy(self.weight_ED), "bias": torch.from_numpy(self.bias_E)}
        write_described(path, tensors, self.metadata, FORMAT)

    def _onnx(self, path: Path) -> None:
        from onnx import TensorProto, helper, numpy_helper

        wide, narrow = self.weight_ED.shape
        nodes = [helper.make_node("Gemm", ["embedding", "weight", "bias"], ["sum"], transB=1)]
        nodes.append(helper.make_node("Relu" if self.metadata["relu"] else "Identity", ["sum"], ["adapted"]))
        graph = helper.make_graph(
            nodes,
            "adapter",
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", narrow])],
            [helper.make_tensor_value_info("adapted", TensorProto.FLOAT, ["batch", wide])],
            [numpy_helper.from_array(self.weight_ED, "weight"), numpy_helper.from_array(self.bias_E, "bias")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        files.write(path, model.SerializeToString())

    @classmethod
    def load(cls, path: Path) -> Adapter:
        """Read an adapter. Raises WeightsError if the file does not exist or is not an adapter."""
        tensors, metadata = read_described(path, FORMAT, _REQUIRED, title="an adapter written by substyle stage adapt")
        if set(tensors) != {"weight", "bias"}:
            raise WeightsError(f"{path}: not an adapter written by substyle stage adapt")
        weight, bias = tensors["weight"], tensors["bias"]
        fit = weight.ndim == 2 and bias.shape == weight.shape[:1] and weight.numel()
        if not fit or any(each.dtype != torch.float32 or not each.isfinite().all() for each in (weight, bias)):
            raise WeightsError(f"{path}: weights must be finite float32 numbers (E, D) and (E,)")
        return cls(weight.numpy(), bias.numpy(), metadata)

    def changed(self, name: str, spec: Mapping[str, Any], dim: int, canvas: int) -> dict[str, Any]:
        """Facts of the adapted backbone that differ from those of its backbone (`BackboneSpec.describe`).

        The objective is unstated: an adapter is trained on transformations, so its embeddings say nothing about the
        objective of the backbone.

        Args:
            spec: facts of the backbone; imported embeddings have few.
            dim: width D of its embeddings.
            canvas: side S of the canvas they are computed from.

        Raises:
            WeightsError: the backbone has other weights, another width or another canvas than the one the adapter was
                trained on.
        """
        require_canvas(name, self.metadata, canvas)
        mine, width = self.metadata["weights_hash"], self.weight_ED.shape[1]
        if spec["weights_hash"] != mine:
            raise WeightsError(f"{name}: trained on {self.backbone} with weights {mine}, got {spec['weights_hash']}")
        if dim != width:
            raise WeightsError(f"{name}: takes embeddings of width {width}, got {dim}")
        parameters = spec.get("parameters")
        return {
            "name": name,
            "dim": len(self.weight_ED),
            "pooling": f"{spec.get('pooling', 'unknown')}, then adapter ({self.metadata['method']})",
            "weights": f"{spec['weights']}; adapter {self.digest}",
            "weights_hash": hashlib.sha256(f"{mine} {self.digest}".encode()).hexdigest()[:16],
            "objective": "",
            "parameters": None if parameters is None else parameters + self.weight_ED.size + self.bias_E.size,
        }


def path_of(name: str) -> Path:
    """Path of the adapter in the name of an adapted backbone."""
    return Path(name.removeprefix(PREFIX))


def wrap(name: str, adapter: Adapter, base: Backbone, canvas: int) -> Backbone:
    """Return a backbone followed by an adapter.

    Raises:
        ConfigError: the backbone is a graph, whose network cannot be extended.
        WeightsError: the adapter was trained on another backbone.
    """
    spec = replace(base.spec, **adapter.changed(name, base.spec.describe(), base.spec.dim, canvas))
    if base.module is None:
        raise ConfigError(f"backbone {name}", f"an adapter of {adapter.backbone}", "an adapter of a torch network")
    if not isinstance(base.module, Preprocessed):
        return replace(base, spec=spec, module=nn.Sequential(base.module, adapter.layer))
    # inside, so that the precision of the network can be set
    module = copy(base.module)
    module._modules = {"network": nn.Sequential(base.module.network, adapter.layer)}
    return replace(base, spec=spec, module=module.eval())


def _load(name: str, rest: str, context: LoadContext) -> Backbone:
    trained = Adapter.load(Path(rest))
    return wrap(name, trained, registry.load(trained.backbone, context.of_a_file), context.canvas)


def _identify(name: str, rest: str, context: LoadContext) -> dict[str, Any] | None:
    trained = Adapter.load(Path(rest))
    base = registry.identity(trained.backbone, context.of_a_file)
    return None if base is None else {"adapter": trained.digest, "base": base}


def derivation(name: str) -> Derivation:
    """How embeddings of ``adapt:<file>`` are computed from those of its backbone."""
    adapter = Adapter.load(path_of(name))

    def changed(spec: Mapping[str, Any], dim: int, canvas: int) -> dict[str, Any]:
        return adapter.changed(name, spec, dim, canvas)

    facts = {"backbone": adapter.backbone, "method": str(adapter.metadata["method"])}
    return Derivation(adapter.backbone, adapter, changed, adapter.metadata.get("transformations", []), facts)


register_family(
    Family(
        *("adapt", "<file.safetensors>", "a backbone with an adapter trained by substyle stage adapt"),
        *(_load, _identify),
        checkpoint=True,
        derive=derivation,
        trained=True,
        position=6,
    )
)

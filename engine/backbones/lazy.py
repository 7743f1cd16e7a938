"""Backbones that are loaded on first use, and what they do.

A network is identified by its exported graph, with weights, and by its float32 embeddings of fixed pictures: these show
whatever decides them, such as a settings file that its code reads.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine import cache
from substyle.engine.backbones.export import export
from substyle.engine.backbones.runtimes.openvino import FixedBatch, OpenVINOGraph
from substyle.engine.backbones.spec import SAME_SKETCH, Backbone, BackboneSpec, columns, distance
from substyle.engine.devices import missing
from substyle.errors import ConfigError, SubstyleError
from substyle.kernels import philox
from substyle.pipelines.packaged_photographs import fixed_canvases

if TYPE_CHECKING:
    import onnx

SKETCH_WIDTH = 64  # random projections of an embedding; they keep relative distances within a fifth


class LazyBackbone:
    """A backbone that is loaded on first use. Its facts are cached by identity.

    Args:
        load: loads the backbone.
        identity: plain facts that determine the result of `load`, such as the hash of a file of weights; None if
            unknown without loading.
        canvas: canvas side S in pixels.
        batch: batch that its graph is exported for.
        packaged: whether code of this package alone decides what is loaded; else it is loaded twice and compared.
    """

    def __init__(
        self,
        load: Callable[[], Backbone],
        identity: dict[str, Any] | None,
        *,
        canvas: int,
        batch: int,
        packaged: bool = True,
    ) -> None:
        self._load, self.identity, self.packaged = load, identity, packaged
        self.canvas, self.batch = canvas, batch

    @staticmethod
    def of(backbone: Backbone, *, canvas: int, batch: int) -> LazyBackbone:
        """Wrap a loaded backbone."""
        return LazyBackbone(lambda: backbone, None, canvas=canvas, batch=batch)

    @cached_property
    def backbone(self) -> Backbone:
        """The backbone, loaded on first access."""
        return self._load()

    def require_loadable(self) -> None:
        """Load the network, unless it was loaded before, and free it again. Raises WeightsError."""

        def load() -> bool:
            _ = self.backbone
            self.unload()
            return True

        if self.identity is None:
            load()
        else:
            cache.remember("loaded", self.identity, load)

    @cached_property
    def graph(self) -> bytes:
        """The serialised ONNX graph of the network in float32, with a fixed batch.

        Raises:
            SubstyleError: the network cannot be exported, or has changed since it was loaded first.
        """
        if self.backbone.graph is not None:
            return self.backbone.graph
        model = self._model
        if model is None:
            raise SubstyleError(f"{self.backbone.spec.name}: cannot export the network to ONNX; use runtime = torch")
        known = self.__dict__.get("_facts")
        if known is not None:  # graphs are not compared: their names depend on earlier exports of the process
            now = sketch(embed_fixed(self.backbone, self.canvas, self.batch))
            if distance(known["spec"]["sketch"], now) > SAME_SKETCH:
                raise SubstyleError(f"{self.spec.name}: the network has changed since the run began")
        return bytes(model.SerializeToString())

    @cached_property
    def _model(self) -> onnx.ModelProto | None:
        """The exported network; None if torch cannot export it."""
        assert self.backbone.module is not None
        # eager runtimes change the memory format, on which the exported graph depends
        module = self.backbone.module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        try:
            return plain(export(module, canvas=self.canvas, batch=self.batch))
        except Exception as error:  # noqa: BLE001 - errors of tracing have no common base
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(f"{self.backbone.spec.name}: cannot be exported to ONNX: {reason}", file=sys.stderr)
            return None

    def unload(self) -> None:
        """Free the network; it is loaded again when needed."""
        for name in ("backbone", "graph", "_model"):
            self.__dict__.pop(name, None)

    @cached_property
    def _facts(self) -> dict[str, Any]:
        if self.identity is None:
            return self._look()
        facts: dict[str, Any] = cache.remember("sources", self.identity, self._look)
        return facts

    def _look(self) -> dict[str, Any]:
        backbone = self.backbone
        compiled = backbone.compiled or backbone.module is None
        if backbone.graph is not None:
            graph = hashlib.sha256(backbone.graph).hexdigest()[:16]
        else:
            graph = digest_of(self._model) if compiled and self._model is not None else ""
        x_BD = embed_fixed(backbone, self.canvas, self.batch)
        if not self.packaged:
            again_BD = embed_fixed(self._load(), self.canvas, self.batch)
            if distance(sketch(x_BD), sketch(again_BD)) > SAME_SKETCH:
                allowed = "the same network each time that it is loaded: seed the generators of its weights"
                raise ConfigError(f"backbone {backbone.spec.name}", "a network with other embeddings", allowed)
        return {
            "spec": replace(backbone.spec, graph=graph, sketch=sketch(x_BD)).describe(),
            "is_graph": backbone.graph is not None,
            "compiled": compiled,
            "members": [
                replace(member, graph=graph, sketch=sketch(x_BD[:, part])).describe()
                for member, part in zip(backbone.members, columns(backbone.members), strict=True)
            ],
        }

    @cached_property
    def spec(self) -> BackboneSpec:
        """Facts of the backbone, from the cache if available."""
        return _spec(self._facts["spec"])

    @cached_property
    def members(self) -> tuple[BackboneSpec, ...]:
        """Facts of the backbones whose embeddings it concatenates; itself if it is a single one."""
        return tuple(map(_spec, self._facts["members"])) or (self.spec,)

    @property
    def is_graph(self) -> bool:
        """Whether it is an ONNX graph, and not a torch module."""
        return bool(self._facts["is_graph"])

    @property
    def compiled(self) -> bool:
        """Whether it is compiled, unlike plain arithmetic, which runs in torch."""
        return bool(self._facts["compiled"])


def plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove texts that depend on where a graph was exported, such as stack traces, in place."""
    graph = model.graph
    tensors = (*graph.value_info, *graph.initializer, *graph.input, *graph.output)
    for part in (model, graph, *graph.node, *tensors, *model.functions):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    return model


def digest_of(model: onnx.ModelProto) -> str:
    """Digest of a graph and its weights; 16 hex digits. Part by part: a message must be below 2 GB."""
    digest, graph = hashlib.sha256(), model.graph
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output, *model.functions, *model.opset_import):
        digest.update(hashlib.sha256(part.SerializeToString(deterministic=True)).digest())
    return digest.hexdigest()[:16]


def sketched(backbone: Backbone, canvas: int, batch: int) -> BackboneSpec:
    """The spec of a loaded backbone with its sketch, without exporting its graph."""
    return replace(backbone.spec, sketch=sketch(embed_fixed(backbone, canvas, batch)))


def embed_fixed(backbone: Backbone, canvas: int, batch: int) -> NDArray[np.float32]:
    """Embeddings of `fixed_canvases` in float32. Shape: (4, D); (0, D) of a graph without OpenVINO."""
    canvas_BSSC = fixed_canvases(canvas)
    if backbone.module is not None:
        with torch.inference_mode():
            return np.asarray(backbone.module.eval()(torch.from_numpy(canvas_BSSC)).float().numpy())
    if missing("openvino", chosen=True):
        return np.zeros((0, backbone.spec.dim), np.float32)
    return FixedBatch(OpenVINOGraph(backbone.graph or b"", precision="fp32"), batch)(canvas_BSSC)


def sketch(x_BD: NDArray[np.float32]) -> tuple[tuple[float, ...], ...]:
    """Random projections of embeddings. Shape: (B, 64)."""
    sketch_BW = x_BD.astype(np.float64) @ _signs(x_BD.shape[1])
    return tuple(tuple(float(f"{value:.9g}") for value in row_W) for row_W in sketch_BW)


@lru_cache(maxsize=8)
def _signs(width: int) -> NDArray[np.float64]:
    """Random signs of each dimension. Shape: (D, 64)."""
    words_D2 = philox.words(np.arange(width, dtype=np.uint64), "sketch", SKETCH_WIDTH // 32)
    bits_DW = np.unpackbits(np.ascontiguousarray(words_D2, "<u4").view(np.uint8), axis=1)
    return np.where(bits_DW, 1.0, -1.0)


def _spec(described: dict[str, Any]) -> BackboneSpec:
    """The inverse of `BackboneSpec.describe`, through JSON."""
    levels = {name: tuple(described[name]) for name in ("mean", "std")}
    rows = tuple(tuple(row) for row in described.get("sketch", ()))
    return BackboneSpec(**{**described, **levels, "sketch": rows})

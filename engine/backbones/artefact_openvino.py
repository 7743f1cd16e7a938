"""The compiled forms of a backbone: its ONNX graph and runtimes of it, each under the key of all it depends on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

from substyle.engine.backbones import cache
from substyle.engine.backbones.export import export
from substyle.engine.backbones.fixed_batch import FixedBatch
from substyle.engine.backbones.quantise import quantised, unpacked
from substyle.engine.backbones.runtimes.openvino import Model, OpenVINOGraph
from substyle.engine.backbones.samples import GateSamples
from substyle.engine.backbones.source import Source
from substyle.engine.precision import INT8, Precision, as_precision
from substyle.kernels.errors import ConfigError, SubstyleError

BLOBS = "openvino"  # folder in the cache
_GRAPH_CODE = ("engine/backbones/preprocess", "engine/backbones/export", "engine/backbones/families/*")


@dataclass(frozen=True)
class Mixture:
    """Which arithmetic a compiled graph uses where.

    Attributes:
        precision: of the graph.
        float32_layers: how many of its first layers stay in float32.
        unquantised_layers: with int8, how many of its first layers stay in bf16.
    """

    precision: Precision | Literal["int8"]
    float32_layers: int = 0
    unquantised_layers: int = 0

    def describe(self) -> dict[str, Any]:
        """This mixture in plain JSON."""
        described = {"precision": self.precision, "float32_layers": self.float32_layers}
        return {**described, "unquantised_layers": self.unquantised_layers} if self.precision == INT8 else described

    @staticmethod
    def of(found: dict[str, Any]) -> Mixture:
        """From plain JSON, whatever else stands in it."""
        count, unquantised = int(found["float32_layers"]), int(found.get("unquantised_layers", 0))
        if found["precision"] == INT8:
            return Mixture(INT8, count, unquantised)
        return Mixture(as_precision(found["precision"]), count)


class Artefact:
    """The graph of a backbone and its runtimes.

    Args:
        source: the backbone.
        samples: whose further photographs an int8 graph is quantised on.
        batch: batch of the graph; canvas: canvas side S in pixels; threads: CPU threads of a runtime.
    """

    def __init__(self, source: Source, samples: GateSamples, *, batch: int, canvas: int, threads: int) -> None:
        self.source, self.samples = source, samples
        self.batch, self.canvas, self.threads = batch, canvas, threads
        facts = {
            "spec": source.spec.describe(),
            "graph": source.graph_hash,
            "canvas": canvas,
            "batch": batch,
            "code": cache.code_hash(*_GRAPH_CODE),
            "versions": cache.versions("torch", "timm", "open_clip_torch", "onnx", "openvino"),
        }
        self.key = cache.key(facts)

    @cached_property
    def onnx(self) -> bytes:
        """The serialised ONNX graph."""
        if self.source.graph_hash is not None:
            return self.source.backbone.graph or b""
        return cache.fetch(f"graphs/{self.key}.onnx", self._export)

    def _export(self) -> bytes:
        backbone = self.source.backbone
        if backbone.module is None:
            raise SubstyleError(f"{backbone.spec.name}: neither a module nor a graph")
        return bytes(export(backbone.module, canvas=self.canvas, batch=self.batch).SerializeToString())

    def int8_key(self, unquantised: int) -> str:
        """The key of a quantised graph: the graph's own, what it was quantised on, and by what."""
        facts = {
            "graph": self.key,
            "unquantised": unquantised,
            "samples": self.samples.further_fingerprint(),
            "code": cache.code_hash("engine/backbones/quantise", "engine/backbones/runtimes/*"),
            "versions": cache.versions("nncf", "openvino"),
        }
        return cache.key(facts)

    def _int8(self, key: str, unquantised: int) -> Model:
        def make() -> bytes:
            batches = self.samples.further()
            pieces = [batch[i : i + self.batch] for batch in batches for i in range(0, len(batch), self.batch)]
            whole = [piece for piece in pieces if len(piece) == self.batch]
            if not whole:
                raise ConfigError("precision", INT8, f"at least {self.batch} photographs beside those of the gate")
            return quantised(self.onnx, whole, unquantised=unquantised)

        return unpacked(cache.fetch(f"graphs/{key}.int8", make))

    def runtime(self, mixture: Mixture, *, keep: bool = False) -> FixedBatch:
        """The graph compiled; with ``keep``, from the blob that is kept of it."""
        int8 = mixture.precision == INT8
        arithmetic: Precision = "bf16" if mixture.precision == "int8" else mixture.precision
        key = self.int8_key(mixture.unquantised_layers) if int8 else self.key
        graph = OpenVINOGraph(
            partial(self._int8, key, mixture.unquantised_layers) if int8 else lambda: self.onnx,
            precision=arithmetic,
            threads=self.threads,
            streams=self.threads,
            float32_layers=mixture.float32_layers,
            cache_dir=BLOBS if keep else None,
            identity=key,
        )
        return FixedBatch(graph, self.batch)

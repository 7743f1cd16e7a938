"""From a loaded backbone to a gated runtime."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from substyle.engine.backbones import cache, gate
from substyle.engine.backbones.export import export
from substyle.engine.backbones.runtimes.openvino import OpenVINOGraph, Running
from substyle.engine.backbones.runtimes.openvino_mixed import layers
from substyle.engine.backbones.runtimes.torch import TorchModule, TorchThreads
from substyle.engine.backbones.spec import Backbone, BackboneSpec, Embed
from substyle.engine.precision import PRECISIONS, Precision, as_precision
from substyle.kernels.errors import ConfigError, SubstyleError

AUTO = "auto"
_SEARCH_EVERY = 3  # the search for float32 layers looks at every third variant, the final gate at all


class Started(Protocol):
    """Embeddings on their way."""

    def result(self) -> NDArray[np.float32]:
        """Wait for them. Shape: (B, D) float32. To be asked once."""
        ...


@dataclass(frozen=True)
class CompiledBackbone:
    """A backbone that may fill a store.

    Attributes:
        spec: its facts.
        runtime: ``{"name", "precision", "float32_layers", "version"}``.
        gate: what the gate measured; None for plain arithmetic, which is its own reference.
        rate: images per second of the network alone, at its compiled batch.
    """

    spec: BackboneSpec
    embed: Embed
    runtime: dict[str, Any]
    gate: dict[str, Any] | None
    rate: float

    def start(self, canvas_BSSC: NDArray[np.uint8]) -> Started:
        """`embed` in the background where the runtime can do that, else at once. Nobody may write to the canvas."""
        if isinstance(self.embed, FixedBatch | TorchThreads):
            return self.embed.start(canvas_BSSC)
        return _Ended(self.embed(canvas_BSSC))


@dataclass(frozen=True)
class _Ended:
    embedded_BD: NDArray[np.float32]

    def result(self) -> NDArray[np.float32]:
        return self.embedded_BD


@dataclass(frozen=True)
class CompileOptions:
    """How to compile.

    Attributes:
        batch: compiled batch B; canvas: canvas side S in pixels; threads: CPU threads of one inference.
        precision: ``fp32``, ``bf16``, ``fp16``, or ``auto``: bf16, with as many of the first layers in float32 as the
            gate asks for.
        dtype: type of the store's embeddings; the gate compares after its cast.
    """

    batch: int
    canvas: int
    threads: int
    precision: str = AUTO
    dtype: str = "float16"

    def __post_init__(self) -> None:
        check_precision("precision", self.precision)


def check_precision(field: str, name: str) -> None:
    """Raise ConfigError unless it is a precision that a backbone can be asked for."""
    if name not in (AUTO, *PRECISIONS):
        raise ConfigError(field, name, ", ".join((AUTO, *PRECISIONS)))


def graph_batch(batch: int) -> int:
    """Batch of a compiled graph: runs of B images go through it in pieces of 8, side by side.

    On two cores, pieces of 8 on two streams of one thread are 5 to 14 % faster than 32 at once on both.
    """
    return min(batch, 8)


class FixedBatch:
    """Runs a graph of fixed batch b on any number of images: in pieces, the last of them padded.

    With a graph whose streams have one thread each, as `compile_backbone` makes it, an image's embedding is the same
    bits whatever its neighbours, its place in the batch, the padding and the number of threads. A graph of another b
    is another artefact: its embeddings lie within 1e-5 (float32) or 1e-2 (bf16) of an embedding's distance from the
    mean of all. Processors tried so far gave the same bits there too.
    """

    def __init__(self, graph: OpenVINOGraph, batch: int) -> None:
        self.graph, self.batch = graph, batch

    def __call__(self, canvas_BSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, S, S, 3) uint8 to (B, D) float32."""
        return self.start(canvas_BSSC).result()

    def start(self, canvas_BSSC: NDArray[np.uint8]) -> Started:
        """The same in the background. Nobody may write to the canvas until it has ended."""
        pieces = [canvas_BSSC[start : start + self.batch] for start in range(0, len(canvas_BSSC), self.batch)]
        short = self.batch - len(pieces[-1])
        if short:
            padding = np.zeros((short, *canvas_BSSC.shape[1:]), np.uint8)
            pieces[-1] = np.concatenate([pieces[-1], padding])
        return _Pieces([self.graph.start([piece]) for piece in pieces], len(canvas_BSSC))


@dataclass(frozen=True)
class _Pieces:
    running: list[Running]
    count: int

    def result(self) -> NDArray[np.float32]:
        outputs = [next(iter(piece.result().values())) for piece in self.running]
        return np.concatenate(outputs)[: self.count].astype(np.float32, copy=False)


def compile_backbone(
    backbone: Backbone, samples_GSSC: Sequence[NDArray[np.uint8]], options: CompileOptions, *, images: int
) -> CompiledBackbone:
    """Compile and gate a backbone.

    Args:
        backbone: loaded weights.
        samples_GSSC: the gate's input: batches of real photographs in every variant, each (b, S, S, 3) uint8, b ≤ B.
        images: how many photographs these are variants of.

    Raises:
        GateError: the compiled backbone does not agree with its float32 reference.
    """
    spec = backbone.spec
    if not backbone.compiled and backbone.module is not None:
        plain = TorchThreads(backbone.module, options.threads)
        runtime = {"name": "torch", "precision": "fp32", "float32_layers": 0, "version": version("torch")}
        return CompiledBackbone(spec, plain, runtime, None, _rate(plain, samples_GSSC[0]))
    return _Compiler(backbone, samples_GSSC, options, images).compile()


class _Compiler:
    def __init__(
        self, backbone: Backbone, samples_GSSC: Sequence[NDArray[np.uint8]], options: CompileOptions, images: int
    ) -> None:
        self.backbone, self.samples_GSSC, self.options, self.images = backbone, samples_GSSC, options, images
        facts = {
            "spec": backbone.spec.describe(),
            "canvas": options.canvas,
            "batch": graph_batch(options.batch),
            "versions": {name: version(name) for name in ("torch", "timm", "open_clip_torch", "onnx", "openvino")},
        }
        self.stem = f"graphs/{cache.key(facts)}"
        self.onnx = backbone.graph or cache.fetch(f"{self.stem}.onnx", self._export)
        self._reference: list[NDArray[np.float32]] = []
        self.reference_name = "float32 torch" if backbone.module is not None else "the same graph in float32"

    def compile(self) -> CompiledBackbone:
        options = self.options
        gated = {
            "precision": options.precision,
            "dtype": options.dtype,
            "device": cache.device(),
            "samples": _fingerprint(self.samples_GSSC),
        }
        kept = cache.fetch(f"{self.stem}-{cache.key(gated)}.gate.json", lambda: json.dumps(self._gate()).encode())
        found = json.loads(kept)
        precision = as_precision(found["precision"])
        embed = self._runtime(precision, found["float32_layers"])
        runtime = {
            "name": "openvino",
            "precision": precision,
            "float32_layers": found["float32_layers"],
            "version": version("openvino"),
        }
        return CompiledBackbone(self.backbone.spec, embed, runtime, found["gate"], _rate(embed, self.samples_GSSC[0]))

    def _export(self) -> bytes:
        if self.backbone.module is None:
            raise SubstyleError(f"{self.backbone.spec.name}: neither a module nor a graph")
        return bytes(
            export(
                self.backbone.module, canvas=self.options.canvas, batch=graph_batch(self.options.batch)
            ).SerializeToString()
        )

    def _runtime(self, precision: Precision, float32_layers: int) -> FixedBatch:
        # a folder for each mixture: the library's own key does not tell them apart
        blobs = cache.root() / "openvino" / f"{self.stem.rpartition('/')[2]}-{precision}-{float32_layers}"
        graph = OpenVINOGraph(
            self.onnx,
            precision=precision,
            threads=self.options.threads,
            streams=self.options.threads,
            float32_layers=float32_layers,
            cache_dir=str(blobs),
        )
        return FixedBatch(graph, graph_batch(self.options.batch))

    def _gate(self) -> dict[str, Any]:
        """The gate's result with the precision that passed it; with ``auto``, searched for."""
        if self.options.precision != AUTO:
            precision, count = as_precision(self.options.precision), 0
            return self._passed(precision, count, self._check(precision, count, 1))
        total = layers(self.onnx)
        count, trouble = self._fewest_float32_layers(total)
        while count < total:
            try:
                result = self._check("bf16", count, 1)
            except gate.GateError as error:
                trouble = error
                count += max(total // 16, 1)
                continue
            if count:
                print(
                    f"{self.backbone.spec.name}: bf16 with the first {count} of {total} layers in float32 passes the "
                    f"gate (cosine min {result.cosine_min:.5f}); with fewer: {trouble}",
                    file=sys.stderr,
                )
            return self._passed("bf16", count, result)
        print(f"{self.backbone.spec.name}: runs in float32; in bf16: {trouble}", file=sys.stderr)
        return self._passed("fp32", 0, self._check("fp32", 0, 1))

    def _fewest_float32_layers(self, total: int) -> tuple[int, gate.GateError | None]:
        """By bisection on some of the variants: how many layers pass there, and what fewer of them failed with."""
        low, high = -1, total  # low fails, high is taken to pass
        trouble = None
        middle = 0
        while high - low > max(total // 24, 1):
            try:
                self._check("bf16", middle, _SEARCH_EVERY)
                high = middle
            except gate.GateError as error:
                low, trouble = middle, error
            middle = (low + high) // 2
        return high, trouble

    def _check(self, precision: Precision, float32_layers: int, every: int) -> gate.GateResult:
        embed = self._runtime(precision, float32_layers)
        samples_GSSC = self.samples_GSSC[::every]
        return gate.check(
            self.backbone.spec.name,
            np.concatenate([embed(batch) for batch in samples_GSSC]).astype(self.options.dtype),
            np.concatenate(self._references()[::every]),
            precision=precision,
            images=self.images,
            reference=self.reference_name,
        )

    def _references(self) -> list[NDArray[np.float32]]:
        if not self._reference:
            reference: Embed
            if self.backbone.module is not None:
                reference = TorchModule(self.backbone.module)
            else:
                reference = self._runtime("fp32", 0)
            self._reference = [reference(batch) for batch in self.samples_GSSC]
        return self._reference

    @staticmethod
    def _passed(precision: Precision, float32_layers: int, result: gate.GateResult) -> dict[str, Any]:
        return {"precision": precision, "float32_layers": float32_layers, "gate": result.describe()}


def _fingerprint(samples_GSSC: Sequence[NDArray[np.uint8]]) -> str:
    digest = hashlib.sha256()
    for batch in samples_GSSC:
        digest.update(np.ascontiguousarray(batch).data)
    return digest.hexdigest()


def _rate(embed: Embed, canvas_BSSC: NDArray[np.uint8], repeats: int = 3) -> float:
    """Images per second of the backbone alone: the fastest of a few full batches."""
    embed(canvas_BSSC)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        embed(canvas_BSSC)
        seconds.append(time.perf_counter() - start)
    return len(canvas_BSSC) / min(seconds)

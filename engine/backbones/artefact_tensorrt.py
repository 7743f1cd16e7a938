"""Backbones in TensorRT: strongly typed graphs, and one engine of each, built once and loaded by every worker."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from substyle.engine.backbones import cache
from substyle.engine.backbones.artefact import Artefact, Mixture
from substyle.engine.backbones.artefact_openvino import OpenVINOArtefact
from substyle.engine.backbones.calibrate import calibrate, in_batches
from substyle.engine.backbones.fixed_batch import FixedBatch, InPieces
from substyle.engine.backbones.runtimes.eight_bits import Range, products, quantise
from substyle.engine.backbones.runtimes.tensorrt import TensorRTGraph
from substyle.engine.backbones.runtimes.tensorrt_build import EngineError, build, engine_key, library
from substyle.engine.backbones.runtimes.typed_export import as_typed, cast_first, typed_graph
from substyle.engine.backbones.spec import Embed
from substyle.engine.precision import EightBits, Precision, as_eight_bits, as_precision
from substyle.engine.target import graph_batch, missing
from substyle.kernels.errors import ConfigError

if TYPE_CHECKING:
    import onnx

ENGINES, TIMINGS = "engines", "timings"  # folders in the cache
_CALIBRATION_CODE = ("engine/backbones/calibrate", "engine/backbones/runtimes/*")


class TensorRTArtefact(Artefact):
    """A backbone in TensorRT."""

    libraries = ("torch", "timm", "open_clip_torch", "onnx", "onnxscript", "transformers")
    code = (
        *("engine/backbones/preprocess", "engine/backbones/export", "engine/backbones/families/*"),
        *("engine/backbones/runtimes/typed_export", "engine/backbones/runtimes/tensorrt_build"),
        "engine/backbones/runtimes/onnx_weights",
    )

    def require_precision(self, precision: str) -> None:
        """Raise ConfigError where this backbone cannot be compiled in a precision, or not be quantised here."""
        if as_eight_bits(precision) is None or self.source.graph_hash is not None:
            super().require_precision(precision)
        elif why := missing("openvino", chosen=True):
            allowed = f"{', '.join(('auto', *self.ladder))} (OpenVINO measures what is quantised, and {why})"
            raise ConfigError(f"{self.source.spec.name}: precision", precision, allowed)

    def facts(self, precision: str) -> dict[str, Any]:
        """The library that builds its engines; in 8 bits, what is quantised."""
        engine = {"engine": engine_key(self.key, gpu=self.target.identity)}
        kind = as_eight_bits(precision)
        return {**engine, "quantised": self.graph_key(Mixture(kind))} if kind else engine

    def layers(self) -> int:
        """Convolutions and matrix products of the graph that can be in 8 bits."""
        return len(products(self._model(Mixture("bf16"))))

    def graph_key(self, mixture: Mixture) -> str:
        """The key of a typed graph: the backbone's, its types; in 8 bits also what it was quantised on, and by what."""
        typed: dict[str, Any] = {"graph": self.key, "typed": mixture.precision}
        if precision := as_eight_bits(mixture.precision):
            calibration = self._calibration(precision, mixture.between)
            typed |= {"calibration": calibration, "unquantised": mixture.unquantised_layers}
        return cache.key(typed)

    def _calibration(self, precision: EightBits, between: Precision) -> dict[str, Any]:
        return {
            "graph": self.graph_key(Mixture(between)),
            "precision": precision,
            "samples": self.samples.further_fingerprint(),
            "code": cache.code_hash(*_CALIBRATION_CODE),
            "versions": cache.versions("openvino"),
        }

    def graph(self, mixture: Mixture) -> bytes:
        """The serialised ONNX graph in which every tensor has the type it is computed in."""
        if self.source.graph_hash is not None:
            return cast_first(self.source.backbone.graph or b"")
        if precision := as_eight_bits(mixture.precision):
            make = partial(self._quantised, precision, mixture)
        else:
            make = partial(self._typed, mixture, self.batch)
        return cache.fetch(f"graphs/{self.graph_key(mixture)}.onnx", make)

    def _typed(self, mixture: Mixture, batch: int) -> bytes:
        module = as_typed(self.source.backbone.module)
        precision = as_precision(mixture.precision)
        return bytes(typed_graph(module, precision, canvas=self.canvas, batch=batch).SerializeToString())

    def _model(self, mixture: Mixture) -> onnx.ModelProto:
        import onnx

        return onnx.load_from_string(self.graph(mixture))

    def _quantised(self, precision: EightBits, mixture: Mixture) -> bytes:
        """The graph with products in 8 bits. What they are given is measured once, however many of them there are."""
        between = mixture.between
        make = partial(self._ranges, precision, between)
        found = cache.remember("ranges", self._calibration(precision, between), make)
        ranges = {name: Range.of(told) for name, told in found.items()}
        model = quantise(self._model(Mixture(between)), ranges, precision, unquantised=mixture.unquantised_layers)
        return bytes(model.SerializeToString())

    def _ranges(self, precision: EightBits, between: Precision) -> dict[str, Any]:
        import onnx

        print(f"{self.source.spec.name}: measuring its activations for {precision}, once", file=sys.stderr)
        batch, model = graph_batch(self.batch), self._model(Mixture(between))
        if batch < self.batch:  # a CPU has no room for all activations of a GPU's batch
            small = onnx.load_from_string(self._typed(Mixture(between), batch))
            if products(small) == products(model):
                model = small
            else:  # what the exporter does to a graph may depend on the batch, and ranges go by name
                batch = self.batch
        batches = in_batches(self.samples.further(), batch)
        found = calibrate(model, batches, precision, threads=self.threads)
        return {name: told.describe() for name, told in found.items()}

    def _build(self, mixture: Mixture) -> bytes:
        name = self.source.spec.name
        print(f"{name}: building its TensorRT engine in {mixture.precision}, once", file=sys.stderr)
        timing = cache.root() / TIMINGS / f"{engine_key('timings', gpu=self.target.identity)}.cache"
        return build(self.graph(mixture), batch=self.batch, canvas=self.canvas, timing=timing)

    def runtime(self, mixture: Mixture, *, keep: bool = False) -> InPieces:
        """The engine that is kept, built where there is none; another worker that builds it is waited for."""
        name = f"{ENGINES}/{engine_key(self.graph_key(mixture), gpu=self.target.identity)}.engine"
        device = self.target.torch_device
        built: list[bytes] = []

        def make() -> bytes:
            built.append(self._build(mixture))
            return built[0]

        engine = cache.fetch_once(name, make)
        try:
            graph = TensorRTGraph(engine, device)
        except EngineError as error:
            if built:
                raise
            print(f"{cache.root() / name}: cannot be used ({error}); built anew", file=sys.stderr)
            engine = make()
            cache.write(name, engine)
            graph = TensorRTGraph(engine, device)
        return InPieces(graph, self.batch)

    def describe(self, runtime: FixedBatch | InPieces) -> dict[str, str]:
        """TensorRT and its version."""
        trt = library()
        return {"name": trt.__name__, "version": trt.__version__}

    def graph_reference(self) -> Embed:
        """The same graph in float32 on the CPU, by OpenVINO. Raises ConfigError where that is not installed."""
        if why := missing("openvino", chosen=True):
            raise ConfigError(f"{self.source.spec.name}: runtime", "tensorrt", f"one whose reference is there: {why}")
        there = OpenVINOArtefact(self.source, self.samples, batch=self.batch, canvas=self.canvas, threads=self.threads)
        return there.graph_reference()

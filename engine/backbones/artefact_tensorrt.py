"""Backbones in TensorRT: strongly typed graphs, and one engine of each, built once and loaded by every worker."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from substyle.engine.backbones import cache
from substyle.engine.backbones.artefact import Artefact, Mixture
from substyle.engine.backbones.artefact_openvino import OpenVINOArtefact
from substyle.engine.backbones.fixed_batch import FixedBatch, InPieces
from substyle.engine.backbones.runtimes.tensorrt import TensorRTGraph
from substyle.engine.backbones.runtimes.tensorrt_build import EngineError, build, engine_key, library
from substyle.engine.backbones.runtimes.typed_export import as_typed, cast_first, typed_graph
from substyle.engine.backbones.spec import Embed
from substyle.engine.precision import as_precision
from substyle.engine.target import missing
from substyle.kernels.errors import ConfigError

ENGINES, TIMINGS = "engines", "timings"  # folders in the cache


class TensorRTArtefact(Artefact):
    """A backbone in TensorRT."""

    libraries = ("torch", "timm", "open_clip_torch", "onnx", "onnxscript", "transformers")
    code = (
        *("engine/backbones/preprocess", "engine/backbones/export", "engine/backbones/families/*"),
        *("engine/backbones/runtimes/typed_export", "engine/backbones/runtimes/tensorrt_build"),
    )

    def facts(self, precision: str) -> dict[str, Any]:
        """The library that builds its engines."""
        return {"engine": engine_key(self.key, gpu=self.target.identity)}

    def _graph_key(self, mixture: Mixture) -> str:
        return cache.key({"graph": self.key, "typed": mixture.precision})

    def graph(self, mixture: Mixture) -> bytes:
        """The serialised ONNX graph in which every tensor has the type it is computed in."""
        if self.source.graph_hash is not None:
            return cast_first(self.source.backbone.graph or b"")
        return cache.fetch(f"graphs/{self._graph_key(mixture)}.onnx", partial(self._typed, mixture))

    def _typed(self, mixture: Mixture) -> bytes:
        module = as_typed(self.source.backbone.module)
        precision = as_precision(mixture.precision)
        return bytes(typed_graph(module, precision, canvas=self.canvas, batch=self.batch).SerializeToString())

    def _build(self, mixture: Mixture) -> bytes:
        name = self.source.spec.name
        print(f"{name}: building its TensorRT engine in {mixture.precision}, once", file=sys.stderr)
        timing = cache.root() / TIMINGS / f"{engine_key('timings', gpu=self.target.identity)}.cache"
        return build(self.graph(mixture), batch=self.batch, canvas=self.canvas, timing=timing)

    def runtime(self, mixture: Mixture, *, keep: bool = False) -> InPieces:
        """The engine that is kept, built where there is none; another worker that builds it is waited for."""
        name = f"{ENGINES}/{engine_key(self._graph_key(mixture), gpu=self.target.identity)}.engine"
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

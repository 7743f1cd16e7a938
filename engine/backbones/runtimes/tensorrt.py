"""TensorRT: the compiled runtime on an NVIDIA GPU."""

from __future__ import annotations

import functools
import importlib.util
import sys
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from substyle.engine import cache
from substyle.engine.backbones.export import as_typed, cast_first, typed_graph
from substyle.engine.backbones.quantization import Range, calibrate, in_batches, products, quantise
from substyle.engine.backbones.runtimes.base import PrecisionPolicy, RuntimeBuilder
from substyle.engine.backbones.runtimes.openvino import ChunkedBatch
from substyle.engine.backbones.runtimes.openvino_builder import OpenVINOBuilder
from substyle.engine.backbones.spec import Embed, Pending, Runtime
from substyle.engine.cuda import Canvas, CapturedGraph
from substyle.engine.devices import EightBits, Precision, as_eight_bits, as_precision, graph_batch, missing
from substyle.errors import ConfigError, SubstyleError
from substyle.files import cache_folder, read_private

if TYPE_CHECKING:
    import onnx


# ``tensorrt`` builds engines for data-centre cards, on the installed card; ``tensorrt_rtx``, for RTX cards, builds
# ahead of time without a GPU. Networks are strongly typed: precisions are fixed at export, so the builder cannot change
# them behind the gate.

LIBRARIES = ("tensorrt", "tensorrt_rtx")
WORKSPACE = 4 << 30  # maximum bytes per layer while an engine is built or runs


class EngineError(SubstyleError):
    """An engine cannot be built or run."""


def installed() -> str | None:
    """Return the installed library, preferring that for data-centre cards."""
    return next((name for name in LIBRARIES if importlib.util.find_spec(name) is not None), None)


def library() -> ModuleType:
    """Import the installed library. Raises ConfigError if there is none."""
    name = installed()
    if name is None:
        raise ConfigError("runtime", "tensorrt", "an installation with the extra gpu (tensorrt, or tensorrt-rtx-cu13)")
    return importlib.import_module(name)


@functools.cache
def _logger(name: str) -> Any:  # noqa: ANN401 - TensorRT ships no types
    """Logger of a library, which collects error messages in ``lines``. One per process: TensorRT keeps the first."""
    trt: Any = importlib.import_module(name)

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []

        def log(self, severity: Any, text: str) -> None:  # noqa: ANN401
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.lines.append(text.strip())

    return Logger()


def build(onnx: bytes, *, batch: int, canvas: int, timing: Path | None = None) -> bytes:
    """Build an engine from a graph ``canvas`` (B, S, S, 3) uint8 to ``embedding`` (B, D) float32.

    Args:
        onnx: the serialised typed graph with fixed shapes.
        batch: B, checked against the graph.
        canvas: S in pixels, checked against the graph.
        timing: cache file for kernel timings, to speed up later builds; used by ``tensorrt`` only.

    Raises:
        ConfigError: TensorRT is not installed.
        EngineError: the graph has another interface, or the library cannot parse or build it.
    """
    trt = library()
    logger = _logger(trt.__name__)
    logger.lines.clear()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx):
        errors = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise EngineError(f"{trt.__name__} cannot parse the graph: {errors or 'no reason given'}")
    _require_interface(trt, network, batch, canvas)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
    config.clear_flag(trt.BuilderFlag.TF32)  # exact float32
    # shapes are fixed, but a profile is required
    profile = builder.create_optimization_profile()
    shape = (batch, canvas, canvas, 3)
    profile.set_shape("canvas", shape, shape, shape)
    config.add_optimization_profile(profile)
    timing = timing if trt.__name__ == "tensorrt" else None  # tensorrt_rtx does not time kernels
    if timing is not None:
        kept = config.create_timing_cache(read_private(timing) if timing.is_file() else b"")
        config.set_timing_cache(kept, ignore_mismatch=True)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise EngineError(f"{trt.__name__} cannot build the engine: {'; '.join(logger.lines) or 'no reason given'}")
    if timing is not None:
        cache.replace(timing, bytes(config.get_timing_cache().serialize()))
    return bytes(engine)


def engine_key(graph: str, *, gpu: str) -> str:
    """Return the cache key of an engine: key of its graph, library and version, GPU."""
    trt = library()
    return cache.key({"graph": graph, "library": trt.__name__, "version": trt.__version__, "gpu": gpu})


def _require_interface(trt: ModuleType, network: Any, batch: int, canvas: int) -> None:  # noqa: ANN401
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    given = [(t.name, tuple(t.shape), t.dtype) for t in (*inputs, *outputs)]
    shape = (batch, canvas, canvas, 3)
    one_of_each = len(inputs) == len(outputs) == 1
    if not one_of_each or given[0] != ("canvas", shape, trt.DataType.UINT8):
        raise EngineError(f"graph has {_words(given)}; expected canvas {shape} uint8 and one output")
    name, size, kind = given[1]
    if len(size) != 2 or size[0] != batch or kind != trt.DataType.FLOAT:
        raise EngineError(f"output {name} is {size} {kind}; expected ({batch}, D) float32")


def _words(tensors: list[tuple[str, tuple[int, ...], Any]]) -> str:
    return ", ".join(f"{name} {shape} {kind}" for name, shape, kind in tensors) or "no tensors"


class TensorRTGraph(Runtime):
    """An engine with fixed batch B on a GPU.

    Args:
        engine: the serialised engine.
        device: a CUDA device.

    Raises:
        EngineError: no CUDA device, or the library or card cannot run the engine.
    """

    def __init__(self, engine: bytes, device: torch.device) -> None:
        if device.type != "cuda" or not torch.cuda.is_available():
            raise EngineError(f"an engine needs a CUDA device, not {device}")
        trt = library()
        with torch.cuda.device(device):
            logger = _logger(trt.__name__)
            logger.lines.clear()
            self._runtime = trt.Runtime(logger)
            self._engine = self._runtime.deserialize_cuda_engine(engine)
            if self._engine is None:
                why = "; ".join(logger.lines) or "no reason given"
                words = f"{trt.__name__} {trt.__version__} cannot run this engine on {device}"
                raise EngineError(f"{words}; rebuild it: {why}")
            context = self._engine.create_execution_context()
            names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
            (output,) = [name for name in names if name != "canvas"]
            shapes = {name: tuple(self._engine.get_tensor_shape(name)) for name in names}
            canvas_BSSC = torch.zeros(shapes["canvas"], dtype=torch.uint8, device=device)
            embedding_BD = torch.zeros(shapes[output], device=device)
            context.set_tensor_address("canvas", canvas_BSSC.data_ptr())
            context.set_tensor_address(output, embedding_BD.data_ptr())

            def launch(stream: torch.cuda.Stream) -> torch.Tensor:
                if not context.execute_async_v3(stream.cuda_stream):
                    raise EngineError("TensorRT failed to run the engine")
                return embedding_BD

            self._captured = CapturedGraph(launch, canvas_BSSC)
        self.batch, self.stream = len(canvas_BSSC), self._captured.stream

    def start(self, canvas_BSSC: Canvas) -> Pending:
        """Start a batch (b, S, S, 3) uint8, b ≤ B, on the GPU or the host."""
        return self._captured.start(canvas_BSSC)


ENGINES, TIMINGS = "engines", "timings"  # folders in the cache


class TensorRTBuilder(RuntimeBuilder):
    """Builds TensorRT engines of a backbone, each once for all workers."""

    libraries = ("torch", "timm", "open_clip_torch", "onnx", "onnxscript", "transformers")

    def require_precision(self, precision: str) -> None:
        """Raise ConfigError if the backbone cannot be compiled or quantised with a precision."""
        if as_eight_bits(precision) is None or self.source.is_graph:
            super().require_precision(precision)
        elif why := missing("openvino", chosen=True):
            allowed = f"{', '.join(('auto', *self.ladder))} (quantisation is calibrated in OpenVINO: {why})"
            raise ConfigError(f"{self.source.spec.name}: precision", precision, allowed)

    def facts(self, precision: str) -> dict[str, Any]:
        """Return the key of the library and GPU, and for 8 bits that of the quantised graph."""
        engine = {"engine": engine_key(self.key, gpu=self.target.identity)}
        kind = as_eight_bits(precision)
        return {**engine, "quantised": self.graph_key(PrecisionPolicy(kind))} if kind else engine

    @cached_property
    def layers(self) -> int:
        """Number of convolutions and matrix products that can be quantised."""
        return int(
            cache.remember("layers", {"graph": self.key}, lambda: len(products(self._model(PrecisionPolicy("bf16")))))
        )

    def graph_key(self, policy: PrecisionPolicy) -> str:
        """Return the cache key of a typed graph, for 8 bits with its calibration."""
        typed: dict[str, Any] = {"graph": self.key, "typed": policy.precision}
        if precision := as_eight_bits(policy.precision):
            calibration = self._calibration(precision, policy.between)
            typed |= {"calibration": calibration, "unquantised": policy.unquantised_layers}
        return cache.key(typed)

    def _calibration(self, precision: EightBits, between: Precision) -> dict[str, Any]:
        return {
            "graph": self.graph_key(PrecisionPolicy(between)),
            "precision": precision,
            "samples": self.samples.extra_fingerprint(),
            "versions": cache.versions("openvino"),
        }

    def graph(self, policy: PrecisionPolicy) -> bytes:
        """Return the serialised ONNX graph with explicit types."""
        if self.source.is_graph:
            return cast_first(self.source.backbone.graph or b"")
        if precision := as_eight_bits(policy.precision):
            make = partial(self._quantised, precision, policy)
        else:
            make = partial(self._typed, policy, self.batch)
        return cache.fetch(f"graphs/{self.graph_key(policy)}.onnx", make)

    def _typed(self, policy: PrecisionPolicy, batch: int) -> bytes:
        module = as_typed(self.source.backbone.module)
        precision = as_precision(policy.precision)
        return bytes(typed_graph(module, precision, canvas=self.canvas, batch=batch).SerializeToString())

    def _model(self, policy: PrecisionPolicy) -> onnx.ModelProto:
        import onnx

        return onnx.load_from_string(self.graph(policy))

    def _quantised(self, precision: EightBits, policy: PrecisionPolicy) -> bytes:
        """The graph with 8-bit products. Activation ranges are cached for all numbers of unquantised layers."""
        between = policy.between
        make = partial(self._ranges, precision, between)
        found = cache.remember("ranges", self._calibration(precision, between), make)
        ranges = {name: Range(one["largest"], tuple(one["shift"])) for name, one in found.items()}
        model = quantise(
            self._model(PrecisionPolicy(between)), ranges, precision, unquantised=policy.unquantised_layers
        )
        return bytes(model.SerializeToString())

    def _ranges(self, precision: EightBits, between: Precision) -> dict[str, Any]:
        import onnx

        print(f"{self.source.spec.name}: calibrating activations for {precision} (cached)", file=sys.stderr)
        batch, model = graph_batch(self.batch), self._model(PrecisionPolicy(between))
        if batch < self.batch:  # activations of a GPU's batch may not fit into CPU memory
            small = onnx.load_from_string(self._typed(PrecisionPolicy(between), batch))
            if products(small) == products(model):
                model = small
            else:  # exported names may depend on the batch, and ranges are stored by name
                batch = self.batch
        batches = in_batches(self.samples.extra_samples(), batch)
        found = calibrate(model, batches, precision, threads=self.threads)
        return {name: asdict(one) for name, one in found.items()}

    def _build(self, policy: PrecisionPolicy) -> bytes:
        name = self.source.spec.name
        print(f"{name}: building a TensorRT engine in {policy.precision} (cached)", file=sys.stderr)
        timing = cache_folder(TIMINGS) / f"{engine_key('timings', gpu=self.target.identity)}.cache"
        return build(self.graph(policy), batch=self.batch, canvas=self.canvas, timing=timing)

    def runtime(self, policy: PrecisionPolicy) -> ChunkedBatch:
        """Load the cached engine, or build it; waits for another worker that is building it."""
        name = f"{ENGINES}/{engine_key(self.graph_key(policy), gpu=self.target.identity)}.engine"
        device = self.target.torch_device
        built: list[bytes] = []

        def make() -> bytes:
            built.append(self._build(policy))
            return built[0]

        engine = cache.fetch_once(name, make)
        try:
            graph = TensorRTGraph(engine, device)
        except EngineError as error:
            if built:
                raise
            print(f"{cache.root() / name}: unusable ({error}); rebuilding", file=sys.stderr)
            engine = make()
            cache.write(name, engine)
            graph = TensorRTGraph(engine, device)
        return ChunkedBatch(graph, self.batch)

    def describe(self, runtime: Runtime) -> dict[str, str]:
        """Return name and version of the library."""
        trt = library()
        return {"name": trt.__name__, "version": trt.__version__}

    def graph_reference(self) -> Embed:
        """Return the graph in float32 on the CPU in OpenVINO. Raises ConfigError if that is not installed."""
        if why := missing("openvino", chosen=True):
            raise ConfigError(
                f"{self.source.spec.name}: runtime", "tensorrt", f"another runtime; the reference needs OpenVINO: {why}"
            )
        openvino = OpenVINOBuilder(
            self.source, self.samples, batch=self.batch, canvas=self.canvas, threads=self.threads
        )
        return openvino.graph_reference()

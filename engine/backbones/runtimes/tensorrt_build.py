"""TensorRT engines from typed ONNX graphs: parse, check the interface, build. Needs no GPU with ``tensorrt_rtx``.

``tensorrt`` makes engines for data-centre cards, on the card that is there; ``tensorrt_rtx``, its sibling for RTX
cards, builds ahead of time. Both take networks strongly typed: a tensor has the type that the graph says, and what
runs in bf16 or fp16 was decided at export, so that no layer changes its precision behind the gate's back.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from substyle.engine.backbones import cache
from substyle.engine.store.files import write_durably
from substyle.kernels.errors import ConfigError, SubstyleError

LIBRARIES = ("tensorrt", "tensorrt_rtx")
WORKSPACE = 4 << 30  # bytes that one layer may take while an engine is built or runs


class EngineError(SubstyleError):
    """An engine that cannot be built or run."""


def installed() -> str | None:
    """The library that is there, the data-centre one first."""
    return next((name for name in LIBRARIES if importlib.util.find_spec(name) is not None), None)


def library() -> ModuleType:
    """The library that is there. Raises ConfigError where there is none."""
    name = installed()
    if name is None:
        raise ConfigError("runtime", "tensorrt", "an installation with the extra gpu (tensorrt, or tensorrt-rtx-cu13)")
    return importlib.import_module(name)


class _Messages:
    """What the library says at warning level or above, for the error that may follow."""

    def __init__(self, trt: ModuleType) -> None:
        self.lines: list[str] = []
        lines = self.lines

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def log(self, severity: Any, text: str) -> None:  # noqa: ANN401
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    lines.append(text.strip())

        self.logger = Logger()


def build(onnx: bytes, *, batch: int, canvas: int, timing: Path | None = None) -> bytes:
    """An engine of a graph ``canvas`` (B, S, S, 3) uint8 to ``embedding`` (B, D) float32.

    Args:
        onnx: the serialised typed graph, of fixed shapes.
        batch: B; canvas: S, in pixels. Both are checked against the graph.
        timing: a file that keeps how fast kernels were, so that the next build need not measure them again; of use to
            ``tensorrt`` alone.

    Raises:
        ConfigError: no TensorRT.
        EngineError: a graph with another interface, or one the library cannot parse or build; with its words.
    """
    trt = library()
    messages = _Messages(trt)
    builder = trt.Builder(messages.logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, messages.logger)
    if not parser.parse(onnx):
        errors = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise EngineError(f"{trt.__name__} cannot parse the graph: {errors or 'no reason given'}")
    _require_interface(trt, network, batch, canvas)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 is float32
    # one profile: all shapes are fixed, and it says so to what asks for one
    profile = builder.create_optimization_profile()
    shape = (batch, canvas, canvas, 3)
    profile.set_shape("canvas", shape, shape, shape)
    config.add_optimization_profile(profile)
    timing = timing if trt.__name__ == "tensorrt" else None  # the other times no kernels while it builds
    if timing is not None:
        kept = config.create_timing_cache(timing.read_bytes() if timing.is_file() else b"")
        config.set_timing_cache(kept, ignore_mismatch=True)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise EngineError(f"{trt.__name__} cannot build the engine: {'; '.join(messages.lines) or 'no reason given'}")
    if timing is not None:
        timing.parent.mkdir(parents=True, exist_ok=True)
        write_durably(timing, bytes(config.get_timing_cache().serialize()))
    return bytes(engine)


def engine_key(graph: str, *, gpu: str) -> str:
    """What an engine depends on: the key of its graph, the library and its version, the GPU."""
    trt = library()
    return cache.key({"graph": graph, "library": trt.__name__, "version": trt.__version__, "gpu": gpu})


def _require_interface(trt: ModuleType, network: Any, batch: int, canvas: int) -> None:  # noqa: ANN401
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    given = [(t.name, tuple(t.shape), t.dtype) for t in (*inputs, *outputs)]
    shape = (batch, canvas, canvas, 3)
    one_of_each = len(inputs) == len(outputs) == 1
    if not one_of_each or given[0] != ("canvas", shape, trt.DataType.UINT8):
        raise EngineError(f"a graph of {_words(given)}; needed: canvas {shape} uint8 and one output")
    name, size, kind = given[1]
    if len(size) != 2 or size[0] != batch or kind != trt.DataType.FLOAT:
        raise EngineError(f"output {name} is {size} {kind}; needed: ({batch}, D) float32")


def _words(tensors: list[tuple[str, tuple[int, ...], Any]]) -> str:
    return ", ".join(f"{name} {shape} {kind}" for name, shape, kind in tensors) or "no tensors"

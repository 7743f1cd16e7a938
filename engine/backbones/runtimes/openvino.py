"""OpenVINO: the compiled runtime on a CPU."""

from __future__ import annotations

import functools
import hashlib
import io
import sys
import xml.etree.ElementTree as ET
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine import cache
from substyle.engine.backbones.spec import Pending, Runtime
from substyle.engine.cuda import Canvas
from substyle.engine.devices import Precision
from substyle.files import scratch
from substyle.kernels import cpu

# Rounding in the first layers affects all later features and is most of the error of bf16 in networks of depthwise
# convolutions. OpenVINO keeps layers in float32 if their IR has the attribute ``precise``.

_COUNTED = frozenset({"Convolution", "GroupConvolution", "MatMul"})


@functools.cache
def core() -> Any:  # noqa: ANN401 - OpenVINO's core
    """Return the core of the process. A model must not outlive the core that read it."""
    import openvino as ov

    return ov.Core()


def layers(onnx: bytes) -> int:
    """Return the number of convolutions and matrix products in a graph."""
    return sum(op.get_type_name() in _COUNTED for op in core().read_model(onnx).get_ordered_ops())


def first_layers(model: Any, count: int) -> list[str]:  # noqa: ANN401 - OpenVINO's models
    """Return the names of a model's first ``count`` convolutions and matrix products."""
    return [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_type_name() in _COUNTED][:count]


def with_float32_layers(model: Any, count: int) -> Any:  # noqa: ANN401 - OpenVINO's models
    """Keep the first ``count`` convolutions and matrix products of a model, and all layers between them, in float32.

    A float32 convolution with a fused bf16 addition or activation does not compile.
    """
    import openvino as ov

    first: set[str] = set()
    seen = 0
    for op in model.get_ordered_ops():
        seen += op.get_type_name() in _COUNTED
        if seen > count:
            break
        first.add(op.get_friendly_name())
    with scratch() as folder:
        xml, weights = folder / "graph.xml", folder / "graph.bin"
        ov.serialize(model, str(xml), str(weights))
        tree = ET.parse(xml)
        for layer in tree.iter("layer"):
            if layer.get("name") in first:
                _mark(layer)
        return core().read_model(ET.tostring(tree.getroot()), weights.read_bytes())


def _mark(layer: ET.Element) -> None:
    info = layer.find("rt_info")
    if info is None:
        info = ET.Element("rt_info")
        # the schema requires it between the layer's data and ports
        layer.insert(1 if layer.find("data") is not None else 0, info)
    ET.SubElement(info, "attribute", name="precise", version="0")


_WAITING = 4  # batches in flight per stream; each has its own outputs
_PRODUCTS = {"Convolution", "FullyConnected", "MatMul"}  # types of layers of a compiled graph
_EXECUTED = {"u8": "int8", "i8": "int8", "bf16": "bf16", "f16": "fp16"}
_HINT = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
Model = Any  # OpenVINO ships no types


class OpenVINOGraph:
    """A compiled graph with fixed shapes.

    Args:
        graph: the serialised ONNX model, or a function that returns it or an OpenVINO model, called only if no compiled
            blob is cached.
        precision: arithmetic precision inside the graph; weights and interface keep their types.
        streams: number of batches that run concurrently, each on a share of the threads.
        float32_layers: with bf16 or fp16, number of first convolutions and matrix products in float32.
        cache_dir: folder in the cache for the compiled blob; None disables caching.
        identity: identifies the graph in the name of its blob; defaults to the hash of the model.
    """

    def __init__(
        self,
        graph: bytes | Callable[[], bytes | Model],
        *,
        precision: Precision = "bf16",
        threads: int = 2,
        streams: int = 1,
        float32_layers: int = 0,
        cache_dir: str | None = None,
        identity: str = "",
    ) -> None:
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINT[precision],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams,
        }

        def compiled() -> Model:
            found = graph() if callable(graph) else graph
            model = core().read_model(found) if isinstance(found, bytes) else found
            if float32_layers:
                model = with_float32_layers(model, float32_layers)
            return core().compile_model(model, "CPU", options)

        if cache_dir is None:
            self.compiled = compiled()
        else:
            if not identity:
                graph = graph() if callable(graph) else graph
                identity = hashlib.sha256(graph).hexdigest()
            facts = {"graph": identity, "float32_layers": float32_layers, "options": options}
            self.compiled = _kept(cache_dir, facts, compiled, options)
        self.waiting = _WAITING * streams
        self.idle: list[Any] = []  # reusable requests
        self.inputs = {port.any_name: tuple(port.shape) for port in self.compiled.inputs}
        self.outputs = [port.any_name for port in self.compiled.outputs]

    @property
    def executed(self) -> str:
        """The narrowest type that convolutions and matrix products run in.

        OpenVINO replaces a precision that the CPU lacks by another, without a word.
        """
        ops = [op.get_rt_info() for op in self.compiled.get_runtime_model().get_ops()]
        found = {
            str(info["runtimePrecision"].astype(str))
            for info in ops
            if "runtimePrecision" in info and str(info["layerType"].astype(str)) in _PRODUCTS
        }
        return next((name for kind, name in _EXECUTED.items() if kind in found), "fp32")

    def __call__(self, *inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run once. Inputs must have the graph's order and shapes; outputs are copies."""
        return {name: output.copy() for name, output in self.start(inputs)().items()}

    def start(self, inputs: Sequence[NDArray[Any]]) -> Callable[[], dict[str, NDArray[Any]]]:
        """Queue a batch. Returns a function that waits for it and returns the outputs by name; call it once.

        Do not modify the inputs before. The outputs are valid until the next start. Not thread-safe.
        """
        from openvino import Tensor

        request = self.idle.pop() if self.idle else self.compiled.create_infer_request()
        shared = [np.require(array, requirements=("C", "W")) for array in inputs]
        for i, array in enumerate(shared):  # start_async takes several times as long for it
            request.set_input_tensor(i, Tensor(array, shared_memory=True))
        request.start_async()
        return functools.partial(self._outputs, request, shared)

    def _outputs(self, request: Any, inputs: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:  # noqa: ANN401
        del inputs  # they are not copied, so they had to stay referenced
        request.wait()
        outputs = {name: request.get_output_tensor(i).data for i, name in enumerate(self.outputs)}
        self.idle.append(request)
        return outputs

    def run(self, batches: Iterable[Sequence[NDArray[Any]]]) -> Iterator[dict[str, NDArray[Any]]]:
        """Run several batches concurrently; outputs keep their order, and are valid until the next are asked for."""
        running: deque[Callable[[], dict[str, NDArray[Any]]]] = deque()
        for inputs in batches:
            if len(running) == self.waiting:
                yield running.popleft()()
            running.append(self.start(inputs))
        while running:
            yield running.popleft()()


def _kept(folder: str, facts: dict[str, Any], make: Callable[[], Model], options: dict[str, Any]) -> Model:
    """The compiled graph with these facts, from the cache if possible."""
    tied = {"device": cpu.identity(), "versions": cache.versions("openvino"), "format": 1}
    name = f"{folder}/{cache.key({**facts, **tied})}.blob"
    blob = cache.read(name)
    if blob is not None:
        try:
            return core().import_model(io.BytesIO(blob), "CPU", options)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            print(f"{cache.root() / name}: unusable ({reason}); recompiling", file=sys.stderr)
    compiled = make()
    exported = io.BytesIO()
    compiled.export_model(exported)
    cache.write(name, exported.getvalue())
    return compiled


class FixedBatch(Runtime):
    """Runs a graph with fixed batch b on any number of images, in pieces with padding.

    If each stream has one thread, as in `OpenVINOBuilder`, an image's embedding is bitwise independent of its
    neighbours, position, padding and the number of threads. Graphs with another b agree within 1e-5 (float32) or 1e-2
    (bf16) of an embedding's distance from the mean of all; on processors tested so far they were bitwise equal.
    """

    def __init__(self, graph: OpenVINOGraph, batch: int) -> None:
        self.graph, self.batch = graph, batch

    def start(self, canvas_BSSC: Canvas) -> Pending:
        """Start a batch in pieces."""
        canvas = canvas_BSSC.numpy(force=True) if isinstance(canvas_BSSC, torch.Tensor) else canvas_BSSC
        pieces = [canvas[start : start + self.batch] for start in range(0, len(canvas), self.batch)]
        short = self.batch - len(pieces[-1])
        if short:
            padding = np.zeros((short, *canvas.shape[1:]), np.uint8)
            pieces[-1] = np.concatenate([pieces[-1], padding])
        count, started = len(canvas), [self.graph.start([piece]) for piece in pieces]

        def embeddings() -> NDArray[np.float32]:
            outputs = [next(iter(piece().values())) for piece in started]
            return np.concatenate(outputs)[:count].astype(np.float32, copy=False)

        return embeddings


class ChunkedBatch(Runtime):
    """Runs a network that accepts at most ``batch`` images on any number of images."""

    def __init__(self, network: Runtime, batch: int) -> None:
        self.network, self.batch = network, batch

    def start(self, canvas_BSSC: Canvas) -> Pending:
        """Start a batch in pieces."""
        firsts = range(0, max(len(canvas_BSSC), 1), self.batch)
        started = [self.network.start(canvas_BSSC[first : first + self.batch]) for first in firsts]
        return lambda: np.concatenate([part() for part in started])

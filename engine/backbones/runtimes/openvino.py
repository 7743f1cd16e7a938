"""OpenVINO: the compiled runtime on a CPU. An ONNX graph in, outputs by name out."""

from __future__ import annotations

import functools
import hashlib
import io
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine import cache
from substyle.engine.backbones.spec import AsyncResult, Concatenated, Starts
from substyle.engine.cuda import Canvas
from substyle.engine.devices import Precision

# Mixed precision in OpenVINO: a graph in bf16 whose first layers stay in float32.
#
# Rounding in the first layers of a network reaches every feature after them; in networks of depthwise convolutions it
# is most of what bf16 costs. OpenVINO keeps a layer's own precision when its IR carries the attribute ``precise``.

_COUNTED = frozenset({"Convolution", "GroupConvolution", "MatMul"})


@functools.cache
def core() -> Any:  # noqa: ANN401 - OpenVINO's core
    """The one core of the process: a model must not outlive the core that read it."""
    import openvino as ov

    return ov.Core()


def layers(onnx: bytes) -> int:
    """Number of convolutions and matrix products in a graph."""
    return sum(op.get_type_name() in _COUNTED for op in core().read_model(onnx).get_ordered_ops())


def first_layers(model: Any, count: int) -> list[str]:  # noqa: ANN401 - OpenVINO's models
    """Names of a model's first ``count`` convolutions and matrix products."""
    return [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_type_name() in _COUNTED][:count]


def with_float32_layers(model: Any, count: int) -> Any:  # noqa: ANN401 - OpenVINO's models
    """The model with its first ``count`` convolutions and matrix products, and all between them, kept in float32.

    All between them too: a float32 convolution whose fused addition or activation is bf16 does not compile.
    """
    import openvino as ov

    first: set[str] = set()
    seen = 0
    for op in model.get_ordered_ops():
        seen += op.get_type_name() in _COUNTED
        if seen > count:
            break
        first.add(op.get_friendly_name())
    with tempfile.TemporaryDirectory() as folder:
        xml, weights = Path(folder, "graph.xml"), Path(folder, "graph.bin")
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
        # the schema wants it after the layer's data and before its ports
        layer.insert(1 if layer.find("data") is not None else 0, info)
    ET.SubElement(info, "attribute", name="precise", version="0")


_WAITING = 4  # batches asked for at once, for each stream: each holds outputs of its own
_HINT = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
Model = Any  # OpenVINO ships no types


class Running:
    """One batch on its way through a graph."""

    def __init__(self, graph: OpenVINOGraph, request: Any, inputs: Sequence[NDArray[Any]]) -> None:  # noqa: ANN401
        # the graph reads the inputs where they lie, so they are held until it has ended
        self.graph, self.request, self.inputs = graph, request, inputs

    def result(self) -> dict[str, NDArray[Any]]:
        """Wait for its end; fresh copies of the outputs by name. To be asked once."""
        self.request.wait()
        outputs = {name: np.array(self.request.get_tensor(name).data) for name in self.graph.outputs}
        self.graph.idle.append(self.request)
        return outputs


class OpenVINOGraph:
    """A compiled graph of fixed shapes.

    Args:
        graph: the serialised ONNX model, or a function that gives one or a model of OpenVINO's; it is called only where
            no compiled blob is kept.
        precision: arithmetic precision inside the graph; weights and interface keep their types.
        threads: CPU threads of one inference.
        streams: how many batches run side by side, each on its share of the threads.
        float32_layers: with bf16 or fp16, how many of the first convolutions and matrix products stay in float32.
        cache_dir: folder in the cache where the compiled blob is kept, or None.
        identity: what stands for the graph in the name of its blob; the hash of the model when left out.
    """

    name = "openvino"

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
        self.idle: list[Any] = []  # requests; one holds its outputs, and no more than a batch under way needs
        self.inputs = {port.any_name: tuple(port.shape) for port in self.compiled.inputs}
        self.outputs = [port.any_name for port in self.compiled.outputs]

    def __call__(self, *inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run once. Inputs stand in the graph's order and have exactly its shapes; the outputs are fresh copies."""
        return self.start(inputs).result()

    def start(self, inputs: Sequence[NDArray[Any]]) -> Running:
        """Let a batch run when a stream is free, and return at once. Nobody may write to the inputs until it has ended.

        Not to be called by several threads at once.
        """
        request = self.idle.pop() if self.idle else self.compiled.create_infer_request()
        request.start_async(list(inputs), share_inputs=True)
        return Running(self, request, inputs)

    def run(self, batches: Sequence[Sequence[NDArray[Any]]]) -> list[dict[str, NDArray[Any]]]:
        """Run several batches, as many of them at once as there are streams; outputs come in their order."""
        running: deque[Running] = deque()
        outputs: list[dict[str, NDArray[Any]]] = []
        for inputs in batches:
            if len(running) == self.waiting:
                outputs.append(running.popleft().result())
            running.append(self.start(inputs))
        return outputs + [batch.result() for batch in running]


def _kept(folder: str, facts: dict[str, Any], make: Callable[[], Model], options: dict[str, Any]) -> Model:
    """The compiled graph that these facts describe, from its blob where one is kept and can be read."""
    tied = {"device": cache.device(), "versions": cache.versions("openvino"), "format": 1}
    name = f"{folder}/{cache.key({**facts, **tied})}.blob"
    blob = cache.read(name)
    if blob is not None:
        try:
            return core().import_model(io.BytesIO(blob), "CPU", options)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            print(f"{cache.root() / name}: cannot be used ({reason}); compiled anew", file=sys.stderr)
    compiled = make()
    exported = io.BytesIO()
    compiled.export_model(exported)
    cache.write(name, exported.getvalue())
    return compiled


# A graph of fixed batch on any number of images.


class FixedBatch:
    """Runs a graph of fixed batch b on any number of images: in pieces, the last of them padded.

    With a graph whose streams have one thread each, as `compile_backbone` makes it, an image's embedding is the same
    bits whatever its neighbours, its place in the batch, the padding and the number of threads. A graph of another b
    is another artefact: its embeddings lie within 1e-5 (float32) or 1e-2 (bf16) of an embedding's distance from the
    mean of all. Processors tried so far gave the same bits there too.
    """

    def __init__(self, graph: OpenVINOGraph, batch: int) -> None:
        self.graph, self.batch = graph, batch

    def __call__(self, canvas_BSSC: Canvas) -> NDArray[np.float32]:
        """(B, S, S, 3) uint8 to (B, D) float32."""
        return self.start(canvas_BSSC).result()

    def start(self, canvas_BSSC: Canvas) -> AsyncResult:
        """The same in the background. Nobody may write to the canvas until it has ended."""
        return _Pieces(self.begin(canvas_BSSC), len(canvas_BSSC))

    def begin(self, canvas_BSSC: Canvas) -> list[Running]:
        """The pieces of a batch on their way, with all outputs of the graph; the last may end in padding."""
        canvas = canvas_BSSC.numpy(force=True) if isinstance(canvas_BSSC, torch.Tensor) else canvas_BSSC
        pieces = [canvas[start : start + self.batch] for start in range(0, len(canvas), self.batch)]
        short = self.batch - len(pieces[-1])
        if short:
            padding = np.zeros((short, *canvas.shape[1:]), np.uint8)
            pieces[-1] = np.concatenate([pieces[-1], padding])
        return [self.graph.start([piece]) for piece in pieces]


@dataclass(frozen=True)
class _Pieces:
    running: list[Running]
    count: int

    def result(self) -> NDArray[np.float32]:
        outputs = [next(iter(piece.result().values())) for piece in self.running]
        return np.concatenate(outputs)[: self.count].astype(np.float32, copy=False)


class ChunkedBatch:
    """Runs a network that takes b images or fewer, and pads them itself, on any number of them.

    Args:
        network: begins with at most b images.
        batch: b.
    """

    def __init__(self, network: Starts, batch: int) -> None:
        self.network, self.batch = network, batch

    def __call__(self, canvas_BSSC: Canvas) -> NDArray[np.float32]:
        """(B, S, S, 3) uint8 to (B, D) float32."""
        return self.start(canvas_BSSC).result()

    def start(self, canvas_BSSC: Canvas) -> AsyncResult:
        """The same in the background. Nobody may write to the canvas until it has ended."""
        firsts = range(0, max(len(canvas_BSSC), 1), self.batch)
        return Concatenated([self.network.start(canvas_BSSC[first : first + self.batch]) for first in firsts])

"""OpenVINO: the compiled runtime on a CPU. An ONNX graph in, outputs by name out."""

from __future__ import annotations

import hashlib
import io
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.backbones import cache
from substyle.engine.backbones.runtimes.openvino_mixed import core, with_float32_layers
from substyle.engine.precision import Precision

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

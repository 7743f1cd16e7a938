"""OpenVINO: the compiled runtime on a CPU. An ONNX graph in, outputs by name out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from substyle.engine.backbones.runtimes.openvino_mixed import core, with_float32_layers
from substyle.kernels.errors import ConfigError

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
_HINT = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def as_precision(name: str) -> Precision:
    """A precision by name. Raises ConfigError naming those there are."""
    for known in PRECISIONS:
        if name == known:
            return known
    raise ConfigError("precision", name, ", ".join(PRECISIONS))


class OpenVINOGraph:
    """A compiled ONNX graph of fixed shapes.

    Args:
        onnx: the serialised ONNX model.
        precision: arithmetic precision inside the graph; weights and interface keep their types.
        threads: CPU threads of one inference.
        streams: how many batches run side by side, each on its share of the threads.
        float32_layers: with bf16 or fp16, how many of the first convolutions and matrix products stay in float32.
        cache_dir: folder where OpenVINO keeps compiled blobs, or None.
    """

    name = "openvino"

    def __init__(
        self,
        onnx: bytes,
        *,
        precision: Precision = "bf16",
        threads: int = 2,
        streams: int = 1,
        float32_layers: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINT[precision],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams,
        }
        if cache_dir:
            options["CACHE_DIR"] = cache_dir
        model = core().read_model(onnx)
        if float32_layers:
            model = with_float32_layers(model, float32_layers)
        self.compiled = core().compile_model(model, "CPU", options)
        self.requests = [self.compiled.create_infer_request()]
        self.inputs = {port.any_name: tuple(port.shape) for port in self.compiled.inputs}
        self.outputs = [port.any_name for port in self.compiled.outputs]

    def __call__(self, *inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run once. Inputs stand in the graph's order and have exactly its shapes; the outputs are fresh copies."""
        return self.run([inputs])[0]

    def run(self, batches: Sequence[Sequence[NDArray[Any]]]) -> list[dict[str, NDArray[Any]]]:
        """Run several batches, as many of them at once as there are streams; outputs come in their order."""
        while len(self.requests) < len(batches):
            self.requests.append(self.compiled.create_infer_request())
        used = self.requests[: len(batches)]
        for request, inputs in zip(used, batches, strict=True):
            request.start_async(list(inputs), share_inputs=True)
        for request in used:
            request.wait()
        return [{name: np.array(request.get_tensor(name).data) for name in self.outputs} for request in used]

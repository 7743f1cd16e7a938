"""TensorRT: the compiled runtime on an NVIDIA GPU.

An engine has one input and one output buffer that live as long as it does; its launches are captured once in a CUDA
graph. Copies in, the graph and the copy out are queued on one stream, so a batch may be started while the one before it
still runs; each has pinned memory of its own for its embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.backbones.runtimes.tensorrt_build import EngineError, library

_WARM = 3  # runs before the capture: the library may allocate in the first ones


class TensorRTGraph:
    """An engine of fixed batch B on a GPU.

    Args:
        engine: the serialised engine.
        device: a CUDA device.

    Raises:
        EngineError: no CUDA device, or an engine that this library or card does not run.
    """

    name = "tensorrt"

    def __init__(self, engine: bytes, device: torch.device) -> None:
        if device.type != "cuda" or not torch.cuda.is_available():
            raise EngineError(f"an engine needs a CUDA device, not {device}")
        trt = library()
        with torch.cuda.device(device):
            self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
            self._engine = self._runtime.deserialize_cuda_engine(engine)
            if self._engine is None:
                raise EngineError(
                    f"{trt.__name__} {trt.__version__} does not run this engine on {device}: build it anew"
                )
            self._context = self._engine.create_execution_context()
            self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self.canvas_BSSC = torch.zeros(
                tuple(self._engine.get_tensor_shape("canvas")), dtype=torch.uint8, device=device
            )
            outputs = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
            (output,) = [name for name in outputs if name != "canvas"]
            self.embedding_BD = torch.zeros(tuple(self._engine.get_tensor_shape(output)), device=device)
            self._context.set_tensor_address("canvas", self.canvas_BSSC.data_ptr())
            self._context.set_tensor_address(output, self.embedding_BD.data_ptr())
            self._graph = self._captured()
        self.batch = len(self.canvas_BSSC)

    def _captured(self) -> torch.cuda.CUDAGraph:
        with torch.cuda.stream(self.stream):
            for _ in range(_WARM):
                self._launch()
        self.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            self._launch()
        return graph

    def _launch(self) -> None:
        if not self._context.execute_async_v3(self.stream.cuda_stream):
            raise EngineError("TensorRT refused to run the engine")

    def __call__(self, canvas_BSSC: NDArray[np.uint8] | torch.Tensor) -> NDArray[np.float32]:
        """(b, S, S, 3) uint8, b ≤ B, on the GPU or the host, to (b, D) float32."""
        return self.start(canvas_BSSC).result()

    def start(self, canvas_BSSC: NDArray[np.uint8] | torch.Tensor) -> Launched:
        """The same in the background. Nobody may write to the canvas until it has ended."""
        canvas = torch.from_numpy(canvas_BSSC) if isinstance(canvas_BSSC, np.ndarray) else canvas_BSSC
        count = len(canvas)
        if count > self.batch:
            raise EngineError(f"{count} images; the engine was built for {self.batch}")
        producer = torch.cuda.current_stream(self.canvas_BSSC.device)
        self.stream.wait_stream(producer)  # whoever makes the canvas on the GPU has queued it there
        host_BD = torch.empty((count, self.embedding_BD.shape[1]), pin_memory=True)
        with torch.cuda.stream(self.stream):
            self.canvas_BSSC[:count].copy_(canvas, non_blocking=True)
            if canvas.is_cuda:
                canvas.record_stream(self.stream)  # its memory is not given to others before the copy has ended
            self._graph.replay()
            host_BD.copy_(self.embedding_BD[:count], non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self.stream)
        return Launched(host_BD, done, canvas)


@dataclass(frozen=True)
class Launched:
    """A batch on its way: its pinned memory, the event after its last copy, and its canvas, held until then."""

    host_BD: torch.Tensor
    done: torch.cuda.Event
    canvas_BSSC: torch.Tensor

    def result(self) -> NDArray[np.float32]:
        """Wait for it. Shape: (b, D) float32."""
        self.done.synchronize()
        return np.asarray(self.host_BD.numpy())

"""TensorRT: the compiled runtime on an NVIDIA GPU."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.arriving import Arriving, Canvas
from substyle.engine.backbones.runtimes.captured import Captured
from substyle.engine.backbones.runtimes.tensorrt_build import EngineError, library


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
            names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
            (output,) = [name for name in names if name != "canvas"]
            shapes = {name: tuple(self._engine.get_tensor_shape(name)) for name in names}
            canvas_BSSC = torch.zeros(shapes["canvas"], dtype=torch.uint8, device=device)
            self._embedding_BD = torch.zeros(shapes[output], device=device)
            self._context.set_tensor_address("canvas", canvas_BSSC.data_ptr())
            self._context.set_tensor_address(output, self._embedding_BD.data_ptr())
            self._captured = Captured(self._launch, canvas_BSSC)
        self.batch, self.stream = len(canvas_BSSC), self._captured.stream

    def _launch(self, stream: torch.cuda.Stream) -> torch.Tensor:
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise EngineError("TensorRT refused to run the engine")
        return self._embedding_BD

    def __call__(self, canvas_BSSC: Canvas) -> NDArray[np.float32]:
        """(b, S, S, 3) uint8, b ≤ B, on the GPU or the host, to (b, D) float32."""
        return self.start(canvas_BSSC).result()

    def start(self, canvas_BSSC: Canvas) -> Arriving:
        """The same in the background. Nobody may write to the canvas until it has ended."""
        return self._captured.start(canvas_BSSC)

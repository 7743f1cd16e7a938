"""torch.compile: a compiled runtime for a GPU that needs torch alone; on a CPU it runs without graphs.

As with TensorRT, the module has one input buffer and one output that live as long as it does, and its launches are
captured once in a CUDA graph. Weights are cast and not computed under autocast, so that what runs in bf16 was decided
before compilation. Where compilation fails, the module runs as it is, in a CUDA graph all the same, and says so.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.backbones.preprocess import Preprocessed
from substyle.engine.backbones.runtimes.tensorrt import Launched
from substyle.engine.backbones.runtimes.typed_export import Typed
from substyle.engine.precision import Precision
from substyle.kernels.errors import ConfigError

Mode = Literal["default", "max-autotune-no-cudagraphs", "off"]
_WARM = 3  # runs before the capture: libraries pick algorithms and allocate in the first ones
Run = Callable[[torch.Tensor], torch.Tensor]


class TorchCompiled:
    """A backbone of fixed batch B, compiled by torch.

    Args:
        module: the backbone, preprocessing included; it is copied.
        precision: of the network; preprocessing and the embedding stay float32.
        batch: B.
        device: a CUDA device, or the CPU, where a batch has ended when it has been started.
        canvas: S, in pixels.
        mode: of torch.compile; "off" compiles nothing, "max-autotune-no-cudagraphs" tries kernels for minutes.

    Attributes:
        fallback: why compilation failed, where it did; the module runs uncompiled then.
    """

    name = "torch.compile"

    def __init__(
        self,
        module: Preprocessed,
        precision: Precision,
        batch: int,
        device: torch.device,
        *,
        canvas: int,
        mode: Mode = "default",
    ) -> None:
        if batch < 1:
            raise ConfigError("batch", batch, "at least 1 image")
        self.batch, self.precision, self.device = batch, precision, device
        self.fallback: str | None = None
        # a copy of all of it: `Typed` shares the buffers of preprocessing, and whoever moves the module would move them
        # away from under the captured graph
        typed = Typed(copy.deepcopy(module), precision).eval().requires_grad_(False)
        # convolutions take the canvas's own layout; tensors of other ranks keep theirs
        typed.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.canvas_BSSC = torch.zeros(batch, canvas, canvas, 3, dtype=torch.uint8, device=device)
        self._run: Run = typed
        if mode != "off":
            self._compile(typed, mode)
        self.stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            with torch.cuda.device(device):
                self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
                self._graph, self.embedding_BD = self._captured(self.stream)

    def _compile(self, typed: Typed, mode: Mode) -> None:
        # compiled code of earlier modules counts against torch's limit of recompilations for one function
        torch._dynamo.reset()
        compiled: Run = torch.compile(typed, mode=mode, dynamic=False)
        try:
            with torch.no_grad():
                compiled(self.canvas_BSSC)
        except Exception as error:  # noqa: BLE001 - what tracing, code generation and compilers raise has no common base
            self.fallback = f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"
            print(f"torch.compile failed, so the network runs uncompiled: {self.fallback}", file=sys.stderr)
        else:
            self._run = compiled

    def _captured(self, stream: torch.cuda.Stream) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        with torch.no_grad():
            stream.wait_stream(torch.cuda.current_stream(self.device))  # the weights were copied there
            with torch.cuda.stream(stream):
                for _ in range(_WARM):
                    self._run(self.canvas_BSSC)
            stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                embedding_BD = self._run(self.canvas_BSSC)
        return graph, embedding_BD

    def __call__(self, canvas_BSSC: NDArray[np.uint8] | torch.Tensor) -> NDArray[np.float32]:
        """(b, S, S, 3) uint8, b ≤ B, on the device or the host, to (b, D) float32."""
        return self.start(canvas_BSSC).result()

    def start(self, canvas_BSSC: NDArray[np.uint8] | torch.Tensor) -> Launched | Finished:
        """The same in the background on a GPU. Nobody may write to the canvas until it has ended."""
        canvas = torch.from_numpy(canvas_BSSC) if isinstance(canvas_BSSC, np.ndarray) else canvas_BSSC
        count = len(canvas)
        shape = tuple(self.canvas_BSSC.shape[1:])
        if count > self.batch or canvas.dtype != torch.uint8 or tuple(canvas.shape[1:]) != shape:
            allowed = f"at most {self.batch} images of {shape} uint8"
            raise ConfigError("canvas", f"{tuple(canvas.shape)} {canvas.dtype}", allowed)
        if self.stream is None:
            with torch.no_grad():
                self.canvas_BSSC[:count].copy_(canvas)
                return Finished(np.asarray(self._run(self.canvas_BSSC)[:count].clone().numpy()))
        self.stream.wait_stream(torch.cuda.current_stream(self.device))  # whoever makes the canvas queued it there
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
class Finished:
    """A batch on a CPU, which has ended."""

    embedding_BD: NDArray[np.float32]

    def result(self) -> NDArray[np.float32]:
        """Shape: (b, D) float32."""
        return self.embedding_BD

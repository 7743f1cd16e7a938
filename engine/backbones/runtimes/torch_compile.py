"""torch.compile: a compiled runtime that needs torch only, with CUDA graphs on a GPU.

Weights are cast instead of using autocast, which fixes precisions before compilation. If compilation fails, the module
runs uncompiled, on a GPU still in a CUDA graph.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, Literal

import torch

from substyle.engine.backbones.export import Preprocessed, Typed, as_typed
from substyle.engine.backbones.runtimes.base import PrecisionPolicy, RuntimeBuilder
from substyle.engine.backbones.runtimes.openvino import ChunkedBatch
from substyle.engine.backbones.spec import Pending, Runtime
from substyle.engine.cuda import Canvas, CapturedGraph, as_batch, copy_to_host
from substyle.engine.devices import Precision, as_precision
from substyle.errors import ConfigError
from substyle.files import require_compiler_caches

Mode = Literal["default", "off"]
Run = Callable[[torch.Tensor], torch.Tensor]


def compiled(module: Callable[..., Any], example: torch.Tensor, mode: Mode) -> tuple[Callable[..., Any], str | None]:
    """Compile a module for the shape of an example. Returns the module itself and the reason if that fails."""
    if mode == "off":
        return module, None
    require_compiler_caches()  # generated code is kept there, for later runs and other workers
    # earlier modules count against torch's limit of recompilations
    torch._dynamo.reset()
    run = torch.compile(module, mode=mode, dynamic=False)
    try:
        with torch.no_grad():
            run(example)
    except Exception as error:  # noqa: BLE001 - errors of tracing, code generation and compilers have no common base
        reason = f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"
        print(f"torch.compile failed; running the network uncompiled: {reason}", file=sys.stderr)
        return module, reason
    return run, None


class TorchCompiled(Runtime):
    """A backbone with fixed batch B, compiled by torch.

    Args:
        module: the backbone with preprocessing; it is copied.
        precision: precision of the network; preprocessing and embedding stay float32.
        batch: B.
        device: a CUDA device, or the CPU, where `start` is synchronous.
        canvas: S in pixels.
        mode: mode of torch.compile; "off" disables it.

    Attributes:
        fallback: reason if compilation failed and the module runs uncompiled, else None.
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
        typed = Typed(module, precision).eval().requires_grad_(False)
        # convolutions use the layout of the canvas
        typed.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        canvas_BSSC = torch.zeros(batch, canvas, canvas, 3, dtype=torch.uint8, device=device)
        run: Run
        run, self.fallback = compiled(typed, canvas_BSSC, mode)
        self._run, self.canvas_BSSC = run, canvas_BSSC
        self._captured: CapturedGraph | None = None
        if device.type == "cuda":
            self._captured = CapturedGraph(lambda stream: run(canvas_BSSC), canvas_BSSC)
        self.stream = self._captured.stream if self._captured else None

    def start(self, canvas_BSSC: Canvas) -> Pending:
        """Start a batch (b, S, S, 3) uint8, b ≤ B, on the device or the host."""
        if self._captured is not None:
            return self._captured.start(canvas_BSSC)
        canvas = as_batch(canvas_BSSC, self.canvas_BSSC)
        with torch.no_grad():
            self.canvas_BSSC[: len(canvas)].copy_(canvas)
            return copy_to_host(self._run(self.canvas_BSSC)[: len(canvas)].clone())


class TorchBuilder(RuntimeBuilder):
    """Compiles a backbone with torch.compile."""

    libraries = ("torch", "timm", "open_clip_torch", "transformers")
    _last: tuple[PrecisionPolicy, ChunkedBatch] | None = None

    def require_precision(self, precision: str) -> None:
        """Raise ConfigError if torch cannot run the backbone."""
        if self.source.is_graph:
            name = self.source.spec.name
            raise ConfigError(f"{name}: runtime", "torch", "openvino or tensorrt (torch does not run ONNX graphs)")
        super().require_precision(precision)

    def runtime(self, policy: PrecisionPolicy) -> ChunkedBatch:
        """Compile the module, or return the last one if it has the same policy."""
        if self._last is None or self._last[0] != policy:
            self._last = None  # free its memory first
            module = as_typed(self.source.backbone.module)
            precision = as_precision(policy.precision)
            device = self.target.torch_device
            compiled = TorchCompiled(module, precision, self.batch, device, canvas=self.canvas)
            self._last = policy, ChunkedBatch(compiled, self.batch)
        return self._last[1]

    def describe(self, runtime: Runtime) -> dict[str, str]:
        """Return name and version: torch.compile, or torch if compilation failed, which a store distinguishes."""
        network = runtime.network if isinstance(runtime, ChunkedBatch) else None
        plain = isinstance(network, TorchCompiled) and network.fallback is not None
        return {"name": "torch" if plain else TorchCompiled.name, "version": version("torch")}

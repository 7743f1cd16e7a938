"""torch.compile: a compiled runtime for a GPU that needs torch alone; on a CPU it runs without graphs.

Weights are cast and not computed under autocast, so that what runs in bf16 was decided before compilation. Where that
fails, the module runs as it is, in a CUDA graph all the same, and says so.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine import cache
from substyle.engine.backbones.export import Preprocessed, Typed, as_typed
from substyle.engine.backbones.runtimes.base import PrecisionPolicy, RuntimeBuilder
from substyle.engine.backbones.runtimes.openvino import ChunkedBatch, FixedBatch
from substyle.engine.backbones.spec import Embed
from substyle.engine.cuda import AsyncCopy, Canvas, CapturedGraph, as_batch, exact
from substyle.engine.devices import Precision, as_precision
from substyle.kernels.errors import ConfigError

Mode = Literal["default", "max-autotune-no-cudagraphs", "off"]
CODE = "inductor"  # folder in the cache
Run = Callable[[torch.Tensor], torch.Tensor]


def compiled(module: Callable[..., Any], example: torch.Tensor, mode: Mode) -> tuple[Callable[..., Any], str | None]:
    """A module compiled for input such as the example; where that fails the module itself, and why."""
    if mode == "off":
        return module, None
    # what torch generates is kept beside what other runtimes compile, for the next start and for other workers
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache.root() / CODE))
    # compiled code of earlier modules counts against torch's limit of recompilations for one function
    torch._dynamo.reset()
    run = torch.compile(module, mode=mode, dynamic=False)
    try:
        with torch.no_grad():
            run(example)
    except Exception as error:  # noqa: BLE001 - what tracing, code generation and compilers raise has no common base
        reason = f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"
        print(f"torch.compile failed, so the network runs uncompiled: {reason}", file=sys.stderr)
        return module, reason
    return run, None


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
        typed = Typed(module, precision).eval().requires_grad_(False)
        # convolutions take the canvas's own layout; tensors of other ranks keep theirs
        typed.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.canvas_BSSC = torch.zeros(batch, canvas, canvas, 3, dtype=torch.uint8, device=device)
        exact()
        self._run: Run
        self._run, self.fallback = compiled(typed, self.canvas_BSSC, mode)
        self._captured: CapturedGraph | None = None
        if device.type == "cuda":
            self._captured = CapturedGraph(lambda stream: self._run(self.canvas_BSSC), self.canvas_BSSC)
        self.stream = self._captured.stream if self._captured else None

    def __call__(self, canvas_BSSC: Canvas) -> NDArray[np.float32]:
        """(b, S, S, 3) uint8, b ≤ B, on the device or the host, to (b, D) float32."""
        return self.start(canvas_BSSC).result()

    def start(self, canvas_BSSC: Canvas) -> AsyncCopy:
        """The same in the background on a GPU. Nobody may write to the canvas until it has ended."""
        if self._captured is not None:
            return self._captured.start(canvas_BSSC)
        canvas = as_batch(canvas_BSSC, self.canvas_BSSC)
        with torch.no_grad():
            self.canvas_BSSC[: len(canvas)].copy_(canvas)
            return AsyncCopy.of(self._run(self.canvas_BSSC)[: len(canvas)].clone())


# Backbones by torch.compile, on a GPU or a CPU; what torch generates lies in its own cache, inside ours.


class TorchBuilder(RuntimeBuilder):
    """A backbone in torch.compile."""

    libraries = ("torch", "timm", "open_clip_torch", "transformers")
    _last: tuple[PrecisionPolicy, ChunkedBatch] | None = None

    def require_precision(self, precision: str) -> None:
        """Raise ConfigError for a backbone that torch cannot run."""
        if self.source.graph_hash is not None:
            name = self.source.spec.name
            raise ConfigError(f"{name}: runtime", "torch", "openvino or tensorrt: this backbone comes as a graph")
        super().require_precision(precision)

    def runtime(self, mixture: PrecisionPolicy, *, keep: bool = False) -> ChunkedBatch:
        """The module compiled; the one that was compiled last is at hand."""
        if self._last is None or self._last[0] != mixture:
            self._last = None  # its memory first
            module = as_typed(self.source.backbone.module)
            precision = as_precision(mixture.precision)
            device = self.target.torch_device
            compiled = TorchCompiled(module, precision, self.batch, device, canvas=self.canvas)
            self._last = mixture, ChunkedBatch(compiled, self.batch)
        return self._last[1]

    def describe(self, runtime: FixedBatch | ChunkedBatch) -> dict[str, str]:
        """torch.compile, or torch where it could not compile: what such a run makes is told apart in a store."""
        network = runtime.network if isinstance(runtime, ChunkedBatch) else None
        plain = isinstance(network, TorchCompiled) and network.fallback is not None
        return {"name": "torch" if plain else TorchCompiled.name, "version": version("torch")}

    def graph_reference(self) -> Embed:
        """There is none: `require_precision` has refused graphs."""
        raise ConfigError(f"{self.source.spec.name}: runtime", "torch", "openvino or tensorrt")

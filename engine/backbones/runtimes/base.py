"""Runtime builders: compiled forms of a backbone, cached by everything they depend on."""

from __future__ import annotations

import copy
import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from substyle.engine import cache
from substyle.engine.backbones.registry import LazyBackbone
from substyle.engine.backbones.runtimes.openvino import ChunkedBatch, FixedBatch
from substyle.engine.backbones.spec import Concatenated, Embed
from substyle.engine.cuda import AsyncCopy, Canvas, exact
from substyle.engine.devices import OPENVINO_ON_CPU, EightBits, Precision, Target, as_eight_bits, as_precision
from substyle.kernels.errors import ConfigError

# Eager float32 torch: the reference of the gate, and the runtime of controls that are plain arithmetic.


class TorchModule:
    """A module with the canvas interface, run eagerly in float32.

    Args:
        module: takes uint8 (B, S, S, 3), returns (B, D) float32.
    """

    name = "torch"
    precision = "fp32"

    def __init__(self, module: nn.Module) -> None:
        # channels_last is the layout the canvas has; convolutions on a CPU are about twice as fast in it
        self.module = module.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, canvas_BSSC: Canvas) -> NDArray[np.float32]:
        """(B, S, S, 3) uint8 of any B to (B, D) float32."""
        with torch.inference_mode():
            return np.asarray(self.module(torch.as_tensor(canvas_BSSC)).float().numpy())


class TorchOnDevice:
    """A module run eagerly in float32 on a device; it works in the background where that is a GPU.

    Args:
        module: as of `TorchModule`; it is copied.
        device: where it runs.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        exact()
        self.module, self.device = copy.deepcopy(module).eval().to(device), device

    def __call__(self, canvas_BSSC: Canvas) -> NDArray[np.float32]:
        """(B, S, S, 3) uint8 of any B, on the device or the host, to (B, D) float32."""
        return self.start(canvas_BSSC).result()

    def start(self, canvas_BSSC: Canvas) -> AsyncCopy:
        """The same, queued on the current stream. Nobody may write to the canvas until it has ended."""
        canvas = torch.as_tensor(canvas_BSSC)
        # constants that a forward pass makes for itself are to lie where its canvas does
        with torch.inference_mode(), self.device:
            return AsyncCopy.of(self.module(canvas.to(self.device)).float(), held=canvas)


class TorchThreads:
    """A module in the background: a batch is cut among threads of which each computes alone.

    Threads of torch's own meet after every operation, which takes long while others use the cores; these never meet.

    Args:
        module: as of `TorchModule`; an image's embedding does not depend on its neighbours.
        threads: how many work side by side.
    """

    def __init__(self, module: nn.Module, threads: int) -> None:
        self.module, self.threads = TorchModule(module), threads
        self._pool = _single_threads(threads)

    def __call__(self, canvas_BSSC: Canvas) -> NDArray[np.float32]:
        """(B, S, S, 3) uint8 of any B to (B, D) float32."""
        return self.start(canvas_BSSC).result()

    def start(self, canvas_BSSC: Canvas) -> Concatenated:
        """The same in the background. Nobody may write to the canvas until it has ended."""
        size = -(-len(canvas_BSSC) // self.threads)
        parts = [canvas_BSSC[start : start + size] for start in range(0, len(canvas_BSSC), size)]
        return Concatenated([self._pool.submit(self.module, part) for part in parts])


def _single_threads(count: int) -> ThreadPoolExecutor:
    """Threads on which torch uses no others."""
    before = torch.get_num_threads()
    all_there = threading.Barrier(count)

    def alone() -> None:
        torch.set_num_threads(1)  # holds for the thread that says it, and for threads that torch has not seen yet
        all_there.wait()

    pool = ThreadPoolExecutor(count, thread_name_prefix="substyle-torch")
    for started in [pool.submit(alone) for _ in range(count)]:
        started.result()
    torch.set_num_threads(before)
    return pool


# What a gate looks at: real photographs in every variant, made only where a gate runs.


class GateSamples(Protocol):
    """Photographs of a source in all variants."""

    def fingerprint(self) -> str:
        """Changes with any pixel of the variants."""
        ...

    def images(self) -> int:
        """How many photographs these are variants of."""
        ...

    def first(self) -> NDArray[np.uint8]:
        """A batch of photographs as they are. Shape: (b, S, S, 3) uint8."""
        ...

    def variants(self) -> Sequence[NDArray[np.uint8]]:
        """All variants in batches of at most B, identity first: (b, S, S, 3) uint8 each."""
        ...

    def further(self) -> Sequence[NDArray[np.uint8]]:
        """Variants of other photographs, all transformations among them, in full batches: what quantisation sees.

        Raises ConfigError where there are no others.
        """
        ...

    def further_fingerprint(self) -> str:
        """Changes with any pixel of `further`."""
        ...


def fingerprint(batches_GSSC: Sequence[NDArray[np.uint8]]) -> str:
    """SHA-256 over the shapes and pixels of batches."""
    digest = hashlib.sha256()
    for batch in batches_GSSC:
        digest.update(f"{batch.shape};".encode())
        digest.update(np.ascontiguousarray(batch).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class GivenSamples:
    """Samples that are made already.

    Attributes:
        batches_GSSC: batches of photographs in every variant, identity first.
        count: how many photographs these are variants of.
        further_GSSC: full batches of others, for quantisation.
    """

    batches_GSSC: Sequence[NDArray[np.uint8]]
    count: int
    further_GSSC: Sequence[NDArray[np.uint8]] = ()

    def fingerprint(self) -> str:
        """Changes with any pixel of the variants."""
        return fingerprint(self.batches_GSSC)

    def images(self) -> int:
        """How many photographs these are variants of."""
        return self.count

    def first(self) -> NDArray[np.uint8]:
        """A batch of photographs as they are. Shape: (b, S, S, 3) uint8."""
        return self.batches_GSSC[0]

    def variants(self) -> Sequence[NDArray[np.uint8]]:
        """The batches."""
        return self.batches_GSSC

    def further(self) -> Sequence[NDArray[np.uint8]]:
        """The others. Raises ConfigError where there are none."""
        if not self.further_GSSC:
            raise ConfigError("precision", "8 bits", "photographs beside those of the gate, for quantisation")
        return self.further_GSSC

    def further_fingerprint(self) -> str:
        """Changes with any pixel of `further`."""
        return fingerprint(self.further())


@dataclass(frozen=True)
class PrecisionPolicy:
    """Which arithmetic a compiled graph uses where.

    Attributes:
        precision: of the graph.
        float32_layers: how many of its first layers stay in float32.
        unquantised_layers: with int8 or fp8, how many of its first layers are not.
        between: with int8 or fp8, what those and all between products are computed in.
    """

    precision: Precision | EightBits
    float32_layers: int = 0
    unquantised_layers: int = 0
    between: Precision = "bf16"

    def describe(self) -> dict[str, Any]:
        """This mixture in plain JSON."""
        described = {"precision": self.precision, "float32_layers": self.float32_layers}
        if as_eight_bits(self.precision) is None:
            return described
        return {**described, "unquantised_layers": self.unquantised_layers, "between": self.between}

    @staticmethod
    def of(found: dict[str, Any]) -> PrecisionPolicy:
        """From plain JSON, whatever else stands in it."""
        count, unquantised = int(found["float32_layers"]), int(found.get("unquantised_layers", 0))
        if kind := as_eight_bits(found["precision"]):
            return PrecisionPolicy(kind, count, unquantised, as_precision(found.get("between", "bf16")))
        return PrecisionPolicy(as_precision(found["precision"]), count)


class RuntimeBuilder(ABC):
    """A backbone in one runtime: what it is compiled to, and what can be asked for.

    Args:
        source: the backbone.
        samples: what it is gated on, and whose further photographs a graph in 8 bits is quantised on.
        batch: batch of the graph; canvas: canvas side S in pixels; threads: CPU threads of a runtime.
        target: the device.
    """

    libraries: ClassVar[tuple[str, ...]]  # whose versions decide what is compiled

    def __init__(
        self,
        source: LazyBackbone,
        samples: GateSamples,
        *,
        batch: int,
        canvas: int,
        threads: int,
        target: Target = OPENVINO_ON_CPU,
    ) -> None:
        self.source, self.samples, self.target = source, samples, target
        self.batch, self.canvas, self.threads = batch, canvas, threads
        facts = {
            "spec": source.spec.describe(),
            "graph": source.graph_hash,
            "canvas": canvas,
            "batch": batch,
            "code": cache.code_hash(),
            "versions": cache.versions(*self.libraries),
        }
        self.key = cache.key(facts)

    @property
    def ladder(self) -> tuple[Precision, ...]:
        """What ``auto`` tries in turn, fastest first; empty where it keeps first layers of bf16 in float32 instead."""
        return ("bf16", "fp16", "fp32") if self.source.graph_hash is None else ("fp32",)

    def require_precision(self, precision: str) -> None:
        """Raise ConfigError where this backbone cannot be compiled in a precision that its runtime has."""
        if self.ladder and precision not in ("auto", *self.ladder):
            why = "it comes as a graph, which is computed in the types it has"
            raise ConfigError(
                f"{self.source.spec.name}: precision", precision, f"auto, {', '.join(self.ladder)} ({why})"
            )

    def facts(self, precision: str) -> dict[str, Any]:
        """What else decides how the gate goes in a precision, beside `key` and device."""
        return {}

    def layers(self) -> int:
        """How many layers a mixture counts; 0 where there are no mixtures."""
        return 0

    @abstractmethod
    def runtime(self, mixture: PrecisionPolicy, *, keep: bool = False) -> FixedBatch | ChunkedBatch:
        """The backbone compiled; with ``keep``, from what is kept of it, and kept for the next time."""

    def graph_name(self, mixture: PrecisionPolicy) -> str | None:
        """Where the cache has the ONNX graph that others may share work with; None where they may not."""
        return None

    @abstractmethod
    def describe(self, runtime: FixedBatch | ChunkedBatch) -> dict[str, str]:
        """``name`` and ``version`` of what computes, for the store."""

    def reference(self) -> Embed:
        """The backbone in float32 as its library has it."""
        module = self.source.backbone.module
        if module is None:
            return self.graph_reference()
        return TorchOnDevice(module, self.target.torch_device) if self.target.on_gpu else TorchModule(module)

    @abstractmethod
    def graph_reference(self) -> Embed:
        """The same of a backbone that comes as a graph."""

"""Runtime builders, and eager torch runtimes: the reference of the gate, and the runtime of plain arithmetic."""

from __future__ import annotations

import copy
import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from substyle.engine import cache
from substyle.engine.backbones.lazy import LazyBackbone
from substyle.engine.backbones.spec import Embed, Pending, Runtime
from substyle.engine.cuda import Canvas, copy_to_host
from substyle.engine.devices import OPENVINO_ON_CPU, EightBits, Precision, Target, as_eight_bits, as_precision
from substyle.errors import ConfigError


class TorchModule:
    """A module with the canvas interface, run eagerly in float32.

    Args:
        module: maps uint8 (B, S, S, 3) to (B, D) float32.
    """

    def __init__(self, module: nn.Module) -> None:
        # the canvas is channels_last, which makes convolutions on a CPU about twice as fast
        self.module = module.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, canvas_BSSC: Canvas) -> NDArray[np.float32]:
        """Embed (B, S, S, 3) uint8 of any B to (B, D) float32."""
        with torch.inference_mode():
            return np.asarray(self.module(torch.as_tensor(canvas_BSSC)).float().numpy())


class TorchOnDevice(Runtime):
    """A module run eagerly in float32 on a device, on batches of any size, in the background on a GPU.

    Args:
        module: as in `TorchModule`; it is copied.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.module, self.device = copy.deepcopy(module).eval().to(device), device

    def start(self, canvas_BSSC: Canvas) -> Pending:
        """Start a batch on the current stream."""
        canvas = torch.as_tensor(canvas_BSSC)
        # constants created in the forward pass must be on the same device
        with torch.inference_mode(), self.device:
            return copy_to_host(self.module(canvas.to(self.device)).float(), held=canvas)


class TorchThreads(Runtime):
    """A module run in the background on threads that each embed a part of the batch.

    Torch's own threads synchronise after every operation, which is slow while other work uses the cores.

    Args:
        module: as in `TorchModule`; embeddings must not depend on other images of the batch.
    """

    def __init__(self, module: nn.Module, threads: int) -> None:
        self.module, self.threads = TorchModule(module), threads
        self._pool = _single_threads(threads)

    def start(self, canvas_BSSC: Canvas) -> Pending:
        """Start a batch, in as many parts as there are threads."""
        size = -(-len(canvas_BSSC) // self.threads)
        parts = [canvas_BSSC[start : start + size] for start in range(0, len(canvas_BSSC), size)]
        started = [self._pool.submit(self.module, part) for part in parts]
        return lambda: np.concatenate([part.result() for part in started])


def eager(module: nn.Module, target: Target, threads: int) -> Runtime:
    """Run a module eagerly in float32: on a GPU, or on threads of the CPU."""
    return TorchOnDevice(module, target.torch_device) if target.on_gpu else TorchThreads(module, threads)


def _single_threads(count: int) -> ThreadPoolExecutor:
    """A pool of threads on which torch is single-threaded."""
    before = torch.get_num_threads()
    all_there = threading.Barrier(count)

    def alone() -> None:
        torch.set_num_threads(1)  # applies to the calling thread, and to threads new to torch
        all_there.wait()

    pool = ThreadPoolExecutor(count, thread_name_prefix="substyle-torch")
    for started in [pool.submit(alone) for _ in range(count)]:
        started.result()
    torch.set_num_threads(before)
    return pool


class GateSamples(Protocol):
    """Photographs in all variants, for the gate."""

    def images(self) -> int:
        """Return the number of photographs."""

    def names(self) -> Sequence[str]:
        """Return the transformations of the suite."""

    def anchors(self) -> Sequence[str]:
        """Return the transformations that are compared with every suite, which may lack some."""

    def family(self, name: str) -> str:
        """Return the name shared by transformations that one network computes; they get the same photographs."""

    def fingerprint(self, name: str) -> str:
        """Return a digest that changes with any pixel of a transformation's pictures."""

    def first(self) -> NDArray[np.uint8]:
        """Return a batch of untransformed photographs. Shape: (b, S, S, 3) uint8."""

    def pictures(self, wanted: Mapping[str, Sequence[int]]) -> dict[str, NDArray[np.uint8]]:
        """Return transformations of photographs, given by position, (R, S, S, 3) uint8 each."""


class CalibrationSamples(GateSamples, Protocol):
    """Photographs for the gate, and others to calibrate quantisation."""

    def extra_samples(self) -> Sequence[NDArray[np.uint8]]:
        """Return full batches of variants of other photographs, with all transformations.

        Raises ConfigError if there are no others.
        """

    def extra_fingerprint(self) -> str:
        """Return a digest that changes with any pixel of `extra_samples`."""


def fingerprint(batches_GSSC: Sequence[NDArray[np.uint8]]) -> str:
    """Return the SHA-256 over the shapes and pixels of batches."""
    digest = hashlib.sha256()
    for batch in batches_GSSC:
        digest.update(f"{batch.shape};".encode())
        digest.update(np.ascontiguousarray(batch).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class PrecisionPolicy:
    """Arithmetic of a compiled graph.

    Attributes:
        float32_layers: number of first layers in float32.
        unquantised_layers: with int8 or fp8, number of first layers that are not quantised.
        between: with int8 or fp8, precision of unquantised layers and of everything between products.
    """

    precision: Precision | EightBits
    float32_layers: int = 0
    unquantised_layers: int = 0
    between: Precision = "bf16"

    def describe(self) -> dict[str, Any]:
        """Return the policy as plain JSON."""
        described = {"precision": self.precision, "float32_layers": self.float32_layers}
        if as_eight_bits(self.precision) is None:
            return described
        return {**described, "unquantised_layers": self.unquantised_layers, "between": self.between}

    @staticmethod
    def of(found: dict[str, Any]) -> PrecisionPolicy:
        """Create a policy from plain JSON, ignoring other keys."""
        count, unquantised = int(found["float32_layers"]), int(found.get("unquantised_layers", 0))
        if kind := as_eight_bits(found["precision"]):
            return PrecisionPolicy(kind, count, unquantised, as_precision(found.get("between", "bf16")))
        return PrecisionPolicy(as_precision(found["precision"]), count)


FLOAT32 = PrecisionPolicy("fp32")


class RuntimeBuilder(ABC):
    """Compiles a backbone for one runtime, cached by everything it depends on.

    Args:
        samples: photographs to calibrate quantisation.
        canvas: canvas side S in pixels.
        threads: CPU threads of a runtime.
    """

    libraries: ClassVar[tuple[str, ...]]  # libraries whose versions affect the compiled graph
    float32_reference: ClassVar[bool] = False  # whether compiled float32, once it agrees with torch, is the reference

    def __init__(
        self,
        source: LazyBackbone,
        samples: CalibrationSamples,
        *,
        batch: int,
        canvas: int,
        threads: int,
        target: Target = OPENVINO_ON_CPU,
    ) -> None:
        self.source, self.samples, self.target = source, samples, target
        self.batch, self.canvas, self.threads = batch, canvas, threads
        facts = {
            "graph": source.spec.graph or [source.spec.weights_hash, source.spec.sketch],
            "canvas": canvas,
            "batch": batch,
            "members": [member.dim for member in source.members],
            "code": cache.code_hash(),  # which compiles and compares it
            "versions": cache.versions(*self.libraries),
        }
        self.key = cache.key(facts)

    @property
    def ladder(self) -> tuple[Precision, ...]:
        """Precisions tried by ``auto``, fastest first; empty if it keeps first layers of bf16 in float32 instead."""
        return ("fp32",) if self.source.is_graph else ("bf16", "fp16", "fp32")

    def require_precision(self, precision: str) -> None:
        """Raise ConfigError if this backbone does not support a precision of its runtime."""
        if self.ladder and precision not in ("auto", *self.ladder):
            why = "the types of an ONNX graph are fixed"
            raise ConfigError(
                f"{self.source.spec.name}: precision", precision, f"auto, {', '.join(self.ladder)} ({why})"
            )

    def facts(self, precision: str) -> dict[str, Any]:
        """Return facts besides `key` and device that affect the gate for a precision."""
        return {}

    @cached_property
    def layers(self) -> int:
        """Number of layers that a policy can select from; 0 if layers cannot be selected."""
        return 0

    def label(self, policy: PrecisionPolicy) -> str:
        """Return the name of a policy in messages."""
        count = policy.float32_layers or policy.unquantised_layers
        kind = "float32" if policy.float32_layers else policy.between
        return policy.precision + (f" with the first {count} of {self.layers} layers in {kind}" if count else "")

    @abstractmethod
    def runtime(self, policy: PrecisionPolicy) -> Runtime:
        """Compile the backbone, or load it from the cache."""

    @abstractmethod
    def describe(self, runtime: Runtime) -> dict[str, str]:
        """Return ``name`` and ``version`` of the runtime, and `EXECUTED` if it is known, for the store."""

    def reference(self) -> Embed:
        """Return the float32 reference of the gate."""
        module = self.source.backbone.module
        return self.graph_reference() if module is None else eager(module, self.target, self.threads)

    def graph_reference(self) -> Embed:
        """Return the float32 reference of a graph backbone."""
        raise NotImplementedError

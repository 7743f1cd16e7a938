"""The compiled forms of a backbone in one runtime, each under the key of all it depends on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from substyle.engine.backbones import cache
from substyle.engine.backbones.fixed_batch import FixedBatch, InPieces
from substyle.engine.backbones.runtimes.torch import TorchModule, TorchOnDevice
from substyle.engine.backbones.samples import GateSamples
from substyle.engine.backbones.source import Source
from substyle.engine.backbones.spec import Embed
from substyle.engine.precision import EightBits, Precision, as_eight_bits, as_precision
from substyle.engine.target import OPENVINO_ON_CPU, Target
from substyle.kernels.errors import ConfigError


@dataclass(frozen=True)
class Mixture:
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
    def of(found: dict[str, Any]) -> Mixture:
        """From plain JSON, whatever else stands in it."""
        count, unquantised = int(found["float32_layers"]), int(found.get("unquantised_layers", 0))
        if kind := as_eight_bits(found["precision"]):
            return Mixture(kind, count, unquantised, as_precision(found.get("between", "bf16")))
        return Mixture(as_precision(found["precision"]), count)


class Artefact(ABC):
    """A backbone in one runtime: what it is compiled to, and what can be asked for.

    Args:
        source: the backbone.
        samples: what it is gated on, and whose further photographs a graph in 8 bits is quantised on.
        batch: batch of the graph; canvas: canvas side S in pixels; threads: CPU threads of a runtime.
        target: the device.
    """

    libraries: ClassVar[tuple[str, ...]]  # whose versions decide what is compiled
    code: ClassVar[tuple[str, ...]]  # source files that do, as of `cache.code_hash`

    def __init__(
        self,
        source: Source,
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
            "code": cache.code_hash(*self.code),
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
    def runtime(self, mixture: Mixture, *, keep: bool = False) -> FixedBatch | InPieces:
        """The backbone compiled; with ``keep``, from what is kept of it, and kept for the next time."""

    def graph_name(self, mixture: Mixture) -> str | None:
        """Where the cache has the ONNX graph that others may share work with; None where they may not."""
        return None

    @abstractmethod
    def describe(self, runtime: FixedBatch | InPieces) -> dict[str, str]:
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

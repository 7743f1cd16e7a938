"""Compile and gate backbones. Results are cached."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from substyle.engine import cache
from substyle.engine.backbones.gate import PrecisionGate, RejectedError
from substyle.engine.backbones.lazy import LazyBackbone
from substyle.engine.backbones.precision import choose, policies
from substyle.engine.backbones.runtimes.base import (
    CalibrationSamples,
    GateSamples,
    PrecisionPolicy,
    RuntimeBuilder,
    eager,
)
from substyle.engine.backbones.spec import BackboneSpec, Embed, Runtime, columns
from substyle.engine.cuda import Canvas
from substyle.engine.devices import AUTO, OPENVINO_ON_CPU, Target, check_precision, graph_batch
from substyle.engine.observability import fastest


@dataclass(frozen=True)
class CompiledBackbone:
    """A compiled and gated backbone, or several layers of a network that are computed in one pass.

    Layers are embedded as one backbone whose embedding concatenates theirs, and stored as separate backbones.

    Attributes:
        spec: its facts.
        embed: embeds canvases.
        runtime: ``{"name", "precision", "float32_layers", "version", "device"}`` and, if it is known, ``executed``: the
            precision that the runtime runs in on this processor.
        gates: result of the gate for each backbone in a store; None for plain arithmetic, which is its own reference.
        rate: images per second of the network alone at its compiled batch, measured once per device.
        members: facts of the backbones whose embeddings it concatenates; empty for a single one.
    """

    spec: BackboneSpec
    embed: Runtime
    runtime: dict[str, Any]
    gates: tuple[dict[str, Any], ...] | None
    rate: float
    members: tuple[BackboneSpec, ...] = ()

    @property
    def _stored(self) -> tuple[BackboneSpec, ...]:
        """Facts of its backbones in a store."""
        return self.members or (self.spec,)

    @property
    def names(self) -> list[str]:
        """Names of its backbones in a store."""
        return [spec.name for spec in self._stored]

    @property
    def columns(self) -> list[slice]:
        """Columns of each of its backbones in an embedding."""
        return columns(self._stored)

    def describe(self) -> list[dict[str, Any]]:
        """Return the facts of each of its backbones that are kept in a store."""
        runtime = {**self.runtime, "computed_with": self.spec.name} if self.members else self.runtime
        gates = self.gates or [None] * len(self._stored)
        return [
            {
                "name": spec.name,
                "dim": spec.dim,
                "spec": spec.describe(),
                "runtime": runtime,
                "gate": gate,
                "rate": round(self.rate, 2),
            }
            for spec, gate in zip(self._stored, gates, strict=True)
        ]


@dataclass(frozen=True)
class CompileOptions:
    """Options for compiling.

    Attributes:
        batch: compiled batch B.
        canvas: canvas side S in pixels.
        precision: ``fp32``, ``bf16``, ``fp16``; ``auto``: in OpenVINO bf16 with 0, 2, 8 or half of the first layers in
            float32, or float32; elsewhere bf16, fp16 or fp32: the first that passes; ``int8`` (OpenVINO, TensorRT) and
            ``fp8`` (TensorRT): 8-bit products with as many first layers in 16 bits as the gate requires.
        dtype: dtype of the store's embeddings; the gate compares after the cast.
        target: device and runtime.
        full_gate: whether the gate compares all variants of the store's own photographs, instead of those of packaged
            ones.
        gate_cosine: minimum cosine of 16 and 8 bits; None for the default.
        policy: with ``auto``, the policy tried first: that of a store to continue.
    """

    batch: int
    canvas: int
    threads: int
    precision: str = AUTO
    dtype: str = "float16"
    target: Target = OPENVINO_ON_CPU
    full_gate: bool = False
    gate_cosine: float | None = None
    policy: PrecisionPolicy | None = None

    def __post_init__(self) -> None:
        check_precision("precision", self.precision)
        self.target.require_precision("precision", self.precision)


def compile_source(
    source: LazyBackbone,
    samples: CalibrationSamples,
    options: CompileOptions,
    note: Callable[[str], None] = lambda text: None,
    *,
    own: GateSamples | None = None,
) -> CompiledBackbone:
    """Compile and gate a backbone. Weights and samples are read only if results are not cached.

    Args:
        samples: photographs that calibrate quantisation, and those of the gate.
        own: the store's own photographs, for a spot check of what passed the gate.

    Raises:
        GateError: the compiled backbone disagrees with its float32 reference.
    """
    target = options.target
    measured = {"batch": options.batch, "threads": options.threads, "device": target.identity}
    if not source.compiled:
        module = source.backbone.module
        assert module is not None
        plain = eager(module, target, options.threads)
        runtime = {"name": "torch", "precision": "fp32", "float32_layers": 0, "version": version("torch")}
        facts = {"spec": source.spec.describe(), "runtime": runtime, "canvas": options.canvas, **measured}
        rate = _rate(plain, samples, facts, options)
        return CompiledBackbone(source.spec, plain, {**runtime, **target.describe()}, None, rate)
    builder = builder_of(source, samples, options)
    policy, embed, gates = _gated(builder, samples, own, options, note)
    runtime = {**policy.describe(), **builder.describe(embed)}
    rate = _rate(embed, samples, {"graph": builder.key, "runtime": runtime, **measured}, options)
    members = source.members if len(source.members) > 1 else ()
    return CompiledBackbone(source.spec, embed, {**runtime, **target.describe()}, gates, rate, members)


def _gated(
    builder: RuntimeBuilder,
    samples: GateSamples,
    own: GateSamples | None,
    options: CompileOptions,
    note: Callable[[str], None],
) -> tuple[PrecisionPolicy, Runtime, tuple[dict[str, Any], ...]]:
    """The first policy that passes the gate and the spot check, compiled, with its result for each backbone.

    Where the spot check refuses a policy, later ones are tried on the store's own photographs, and checked likewise.
    """

    def gate(photographs: GateSamples) -> PrecisionGate:
        return PrecisionGate(
            builder,
            photographs,
            options.dtype,
            full=options.full_gate,
            gate_cosine=options.gate_cosine,
            note=note,
        )

    first_gate = gate(samples if own is None or not options.full_gate else own)
    candidates = policies(first_gate, options.precision, options.policy)
    policy, results = choose(first_gate, candidates)
    embed = builder.runtime(policy)
    if own is None or options.full_gate:
        return policy, embed, tuple(asdict(result) for result in results)
    own_gate = gate(own)
    while True:
        try:
            spots = own_gate.spot(policy, embed)
            break
        except RejectedError as error:
            candidates = candidates[candidates.index(policy) + 1 :]
            if not candidates:
                raise
            print(f"{error}; trying others on these photographs", file=sys.stderr)
        policy, results = choose(own_gate, candidates)
        embed = builder.runtime(policy)
    gates = [asdict(result) for result in results]
    for gated, spot in zip(gates, spots, strict=False):  # none where compiled float32 is the reference
        gated["spot"] = asdict(spot)
    return policy, embed, tuple(gates)


def builder_of(source: LazyBackbone, samples: CalibrationSamples, options: CompileOptions) -> RuntimeBuilder:
    """Create the builder for a backbone and runtime. Raises ConfigError if they are incompatible."""
    kind: type[RuntimeBuilder]
    if options.target.runtime == "openvino":
        from substyle.engine.backbones.runtimes.openvino_builder import OpenVINOBuilder as kind
    elif options.target.runtime == "tensorrt":
        from substyle.engine.backbones.runtimes.tensorrt import TensorRTBuilder as kind
    else:
        from substyle.engine.backbones.runtimes.torch_compile import TorchBuilder as kind
    batch = graph_batch(options.batch, on_gpu=options.target.on_gpu)
    made = kind(source, samples, batch=batch, canvas=options.canvas, threads=options.threads, target=options.target)
    made.require_precision(options.precision)
    return made


def _rate(embed: Embed, samples: GateSamples, facts: dict[str, Any], options: CompileOptions) -> float:
    """Images per second of the backbone alone: the fastest of a few full batches, cached."""

    def measure() -> float:
        canvas_BSSC: Canvas = samples.first()
        if options.target.on_gpu:  # on a GPU, a batch takes as long if most of it is padding
            whole_BSSC = samples.first()[np.arange(options.batch) % len(canvas_BSSC)]
            canvas_BSSC = torch.from_numpy(whole_BSSC).to(options.target.torch_device)
        (seconds,) = fastest([partial(embed, canvas_BSSC)])
        return len(canvas_BSSC) / seconds

    return float(cache.remember("rates", facts, measure))

"""The gate: compare compiled backbones with their float32 reference, and search for a precision that passes.

It runs on photographs that packages ship, so its result holds for every store; a spot check compares what passed on a
few photographs of each new store.

The reference is float32 in eager torch. In OpenVINO, compiled float32 is several times as fast: it is compared with
eager torch on every variant, and is then the reference of other precisions.

Pictures are compared in blocks, the variants that fail most often first, and the first block outside the limits rejects
a policy. So a policy that fails costs little, and one that passes has been compared on all pictures.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from substyle.engine import cache
from substyle.engine.backbones.runtimes.base import GateSamples, PrecisionPolicy, RuntimeBuilder
from substyle.engine.backbones.runtimes.tensorrt import EngineError
from substyle.engine.backbones.spec import Embed
from substyle.engine.devices import AUTO, EightBits, Precision, as_eight_bits, as_precision
from substyle.engine.observability import fastest
from substyle.kernels.errors import SubstyleError

# minimum cosine after subtraction of the reference mean
THRESHOLDS = {"fp32": 0.9999, "bf16": 0.999, "fp16": 0.999, "int8": 0.99, "fp8": 0.99}
MAX_NORM_ERROR = 0.1  # relative to a centred embedding's norm; cosines do not detect a wrong scale
GATE_IMAGES = 32
GATE_EACH = 4  # photographs per variant, unless the gate is full
GATE_FEWEST = 16  # pictures, if there are as many
SPOT_IMAGES = 16  # photographs of a spot check, one picture of each
MIN_SPEEDUP = 1.2  # of a mixture over float32; a slower one is not worth its error
MIN_SPEEDUP_8_BITS = 1.3  # over 16 bits, on a GPU
_HARDEST = ("grayscale", "channel_permute", "gaussian_noise", "impulse_noise", "shot_noise")  # fail first in 16 bits


class GateError(SubstyleError):
    """A compiled backbone disagrees with its reference."""


@dataclass(frozen=True)
class GateResult:
    """Measurements of the gate.

    Attributes:
        cosine_min, cosine_mean: over all rows, after subtraction of the reference mean.
        norm_error_max: largest relative difference of norms, after subtraction of the reference mean.
        images: number of photographs.
        rows: number of pictures: variants of photographs.
        threshold: required minimum cosine.
        reference: description of the reference.
    """

    cosine_min: float
    cosine_mean: float
    norm_error_max: float
    images: int
    rows: int
    threshold: float
    reference: str


def check(
    name: str,
    got_ND: NDArray[np.floating],
    reference_ND: NDArray[np.float32],
    *,
    precision: str,
    images: int,
    reference: str,
    mean_D: NDArray[np.float64] | None = None,
    configured: str = "",
) -> GateResult:
    """Compare embeddings, cast to the store's dtype, with their float32 reference.

    The reference mean is subtracted first, because embeddings of most networks share a large component that would
    dominate the cosine.

    Args:
        mean_D: mean of the reference; default that of these rows.
        configured: name in the configuration, if another: that of several layers.

    Raises:
        GateError: an embedding is not finite, or its cosine or norm is outside the limits of the precision.
    """
    got = got_ND.astype(np.float64)
    if not np.isfinite(got).all():
        raise GateError(f"{name}: {int((~np.isfinite(got)).any(axis=1).sum())} of {len(got)} rows are not finite")
    mean = reference_ND.mean(axis=0, dtype=np.float64) if mean_D is None else mean_D
    a, b = got - mean, reference_ND.astype(np.float64) - mean
    length_a, length_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(axis=1) / np.maximum(length_a * length_b, 1e-30)
    norm_error = np.abs(length_a - length_b) / np.maximum(length_b, 1e-30)
    threshold = THRESHOLDS[precision]
    result = GateResult(
        cosine_min=float(cosine.min()),
        cosine_mean=float(cosine.mean()),
        norm_error_max=float(norm_error.max()),
        images=images,
        rows=len(got),
        threshold=threshold,
        reference=reference,
    )
    if result.cosine_min < threshold or result.norm_error_max > MAX_NORM_ERROR:
        raise GateError(
            f"{name}: {precision} disagrees with {reference} on {len(got)} pictures: "
            f"cosine min {result.cosine_min:.5f}, mean {result.cosine_mean:.5f} (required: ≥ {threshold}), "
            f"largest norm error {result.norm_error_max:.4f} (required: ≤ {MAX_NORM_ERROR}). "
            f'To set the precision of one backbone: {{ name = "{configured or name}", precision = "fp32" }}'
        )
    return result


def worst(results: Sequence[GateResult]) -> GateResult:
    """Return the smallest cosines and the largest norm error of several results on the same pictures."""
    return replace(
        results[0],
        cosine_min=min(result.cosine_min for result in results),
        cosine_mean=min(result.cosine_mean for result in results),
        norm_error_max=max(result.norm_error_max for result in results),
    )


_UNQUANTISED = (0, 1, 2, 4, 8)  # sixteenths of a network's layers
_FLOAT32 = PrecisionPolicy("fp32")
Extent = Literal["full", "each", "once", "spot"]  # pictures that are compared, see `pictures`


def pictures(samples: GateSamples, extent: Extent) -> NDArray[np.uint8]:
    """Return the pictures that the gate compares, in order. Shape: (G, S, S, 3) uint8.

    Each round has every variant once, the hardest first, of another photograph.

    Args:
        extent: ``full``: all pictures. ``each``: each variant of `GATE_EACH` photographs, all photographs in turn.
            ``once``: each variant of one photograph. Of short suites both have more photographs, for at least
            `GATE_FEWEST` pictures: cosines are relative to their mean. ``spot``: one picture of each photograph: of the
            hardest variants, then of every second of the others.
    """
    batches, count, names = samples.variants(), samples.images(), list(samples.names())
    size = len(batches[0])
    variants = len(batches) // -(-count // size)
    hardest = [names.index(name) for name in _HARDEST if name in names]
    others = [t for t in range(variants) if t not in hardest]
    if extent == "spot":
        order = [*hardest, *others[::2], *others[1::2]]
        chosen = [(order[i % variants], i) for i in range(count)]
    else:
        order = [*hardest, *others]
        fewest = min(-(-GATE_FEWEST // variants), count)
        each = min(max(GATE_EACH, fewest), count)
        rounds, step = {"full": (count, 1), "each": (each, count // each), "once": (fewest, count // each)}[extent]
        chosen = [(t, (i * step + t) % count) for i in range(rounds) for t in order]
    return np.stack([batches[n // size * variants + t][n % size] for t, n in chosen])


class PrecisionSearch:
    """Gates one backbone, searching for its precision if ``auto``.

    Args:
        dtype: dtype of the store's embeddings.
        extent: pictures to compare. Instead of ``each``, a GPU compares all, and a float32 that becomes the reference
            of others every variant once.
        policy: tried before searching, since a search may find another one on another day: it measures time.
    """

    def __init__(
        self,
        builder: RuntimeBuilder,
        samples: GateSamples,
        precision: str,
        dtype: str,
        *,
        extent: Extent = "each",
        policy: PrecisionPolicy | None = None,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.policy = policy
        self.builder, self.samples, self.precision, self.dtype = builder, samples, precision, dtype
        self.extent: Extent = extent
        if extent == "each" and builder.target.on_gpu:
            self.extent = "full"
        elif extent == "each" and precision == "fp32" and builder.float32_reference:
            self.extent = "once"
        self.note = note
        self.name = builder.source.spec.name
        self._title = "spot check" if extent == "spot" else "gate"
        self._runtimes: dict[PrecisionPolicy, Embed] = {}

    def result(self) -> dict[str, Any]:
        """Return ``{"precision", "float32_layers", "gate", "gates"}`` of the policy that passed.

        ``gates`` are the results of each backbone of a pass, ``gate`` the worst. Raises GateError if none passes.
        """
        facts = {"precision": self.precision, **self._facts(), **self.builder.facts(self.precision)}

        def remember(policy: PrecisionPolicy, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
            return cache.remember("gates", {**facts, "policy": policy.describe()}, make)  # type: ignore[no-any-return]

        if self.policy is not None:
            try:
                return remember(self.policy, self._tried)
            except GateError as error:
                print(f"{error}; searching for another precision", file=sys.stderr)
        found = cache.remember("gates", facts, self._search)
        return remember(PrecisionPolicy.of(found), lambda: found) if self.precision == AUTO else found

    def check(self, mixture: PrecisionPolicy, embed: Embed) -> dict[str, Any] | None:
        """Return `result` of a compiled policy; None for the reference itself. Raises GateError if it fails."""
        if mixture.precision == "fp32" and self._compiled:
            return None
        facts = {"policy": mixture.describe(), **self._facts(), **self.builder.facts(mixture.precision)}
        found: dict[str, Any] = cache.remember("spots", facts, lambda: self._passed(mixture, embed))
        return found

    def _facts(self) -> dict[str, Any]:
        return {**self._compared(), "dtype": self.dtype, "code": cache.code_hash()}

    def _compared(self) -> dict[str, Any]:
        """What the reference depends on."""
        return {
            "graph": self.builder.key,
            "samples": self.samples.fingerprint(),
            "names": list(self.samples.names()),  # their order is that of the pictures
            "extent": self.extent,
            "device": self.builder.target.identity,
        }

    def _search(self) -> dict[str, Any]:
        if kind := as_eight_bits(self.precision):
            return self._search_eight_bits(kind)
        if self.precision != AUTO:
            return self._passed(PrecisionPolicy(as_precision(self.precision)))
        if self.builder.ladder:
            return self._first_that_passes(self.builder.ladder)
        return self._fewest_float32_layers()

    def _fewest_float32_layers(self) -> dict[str, Any]:
        """bf16 with the fewest first layers in float32 that passes; float32 if none does, or if it is not much faster.

        Multiplies the number by four until it passes, then bisects.
        """
        total, failure = self._layers, None
        passed: dict[int, dict[str, Any]] = {}

        def passes(count: int) -> bool:
            nonlocal failure
            try:
                passed[count] = self._passed(PrecisionPolicy("bf16", count))
            except GateError as error:
                failure = error
            return count in passed

        low, high = -1, 0
        while high < total and not passes(high):
            low, high = high, max(1, 4 * high)
        high = min(high, total)
        while high - low > max(total // 12, 1):
            middle = (low + high) // 2
            low, high = (low, middle) if passes(middle) else (middle, high)
        why = f"bf16 failed: {failure}" if total else "it has no convolution or matrix product"
        if high in passed:
            mixture = PrecisionPolicy("bf16", high)
            speedup = self._speedup(mixture)
            if speedup >= MIN_SPEEDUP:
                return self._told(mixture, passed[high], failure)
            why = f"{self._words(mixture)} is only {speedup:.2f} times as fast"
        print(f"{self.name}: using float32; {why}", file=sys.stderr)
        return self._float32()

    def _told(self, mixture: PrecisionPolicy, found: dict[str, Any], failure: GateError | None) -> dict[str, Any]:
        """A result; prints why first layers have more bits, if any have."""
        if mixture.float32_layers or mixture.unquantised_layers:
            passes = f"passes the gate (cosine min {found['gate']['cosine_min']:.5f})"
            print(f"{self.name}: {self._words(mixture)} {passes}; with fewer: {failure}", file=sys.stderr)
        return found

    def _tried(self) -> dict[str, Any]:
        assert self.policy is not None
        return self._float32() if self.policy == _FLOAT32 else self._passed(self.policy)

    def _float32(self) -> dict[str, Any]:
        """Float32 and its result. Raises GateError if it disagrees with the reference."""
        return self._once.result() if self._compiled else self._passed(_FLOAT32)

    @cached_property
    def _once(self) -> PrecisionSearch:
        """Compares compiled float32 with the reference on every variant."""
        once = PrecisionSearch(self.builder, self.samples, "fp32", self.dtype, extent="once", note=self.note)
        once._runtimes = self._runtimes
        return once

    def _speedup(self, mixture: PrecisionPolicy, over: PrecisionPolicy = _FLOAT32) -> float:
        """How many times as fast as another policy one is."""
        self.note(f"gate: comparing the speed of {self._words(mixture)} and {over.precision}")
        embeds = (self._runtime(mixture), self._runtime(over))
        block = self._pictures[: self._block]
        mixed, plain = fastest([partial(embed, block) for embed in embeds])
        return plain / mixed

    def _first_that_passes(self, ladder: Sequence[Precision]) -> dict[str, Any]:
        """The fastest precision that passes, with its result. Raises the last GateError if none does."""
        for precision in ladder[:-1]:
            try:
                return self._passed(PrecisionPolicy(precision))
            except (GateError, EngineError) as error:  # a card may not support the precision
                slower = ladder[ladder.index(precision) + 1]
                print(f"{self.name}: trying {slower}; {error}", file=sys.stderr)
        return self._passed(PrecisionPolicy(ladder[-1]))

    def _search_eight_bits(self, precision: EightBits) -> dict[str, Any]:
        """The 8-bit policy with the fewest unquantised first layers that passes, with its result.

        Unquantised layers use the fastest 16-bit precision that passes alone. Raises GateError if none passes.
        """
        narrow = [kind for kind in self.builder.ladder if kind != "fp32"]
        between = as_precision(self._first_that_passes(narrow)["precision"]) if narrow else "bf16"
        total = self._layers
        failure: GateError | None = None
        for count in sorted({total * part // 16 for part in _UNQUANTISED}):
            mixture = PrecisionPolicy(precision, unquantised_layers=count, between=between)
            try:
                found = self._passed(mixture)
            except GateError as error:
                failure = error
                continue
            self._told(mixture, found, failure)
            if narrow and (speedup := self._speedup(mixture, PrecisionPolicy(between))) < MIN_SPEEDUP_8_BITS:
                words = f'{precision} is only {speedup:.2f} times as fast as {between}; consider precision = "auto"'
                print(f"{self.name}: {words}", file=sys.stderr)
            return found
        assert failure is not None
        raise GateError(f"{failure}. It also failed with up to half of the layers in {between}")

    def _passed(self, mixture: PrecisionPolicy, embed: Embed | None = None) -> dict[str, Any]:
        """Gate a policy and return it with the result. Raises GateError at the first block outside the limits."""
        words = self._title if self.extent == "spot" else f"{self._title}: {self._words(mixture)}"
        self.note(words)
        embed = embed or self._runtime(mixture)
        got: list[NDArray[np.floating]] = []
        for start in range(0, len(self._pictures), self._block):
            got.append(embed(self._pictures[start : start + self._block]).astype(self.dtype))
            done = start + len(got[-1])
            self.note(f"{words}, {done} of {len(self._pictures)} pictures")
            try:
                self._compare(mixture, got[-1], self._reference[start:done])
            except GateError:
                self.note(f"{words}, rejected at {done} pictures")
                raise
        results = self._compare(mixture, np.concatenate(got), self._reference)
        gates = [asdict(result) for result in results]
        return {**mixture.describe(), "gate": asdict(worst(results)), "gates": gates}

    def _compare(
        self, mixture: PrecisionPolicy, got_ND: NDArray[np.floating], reference_ND: NDArray[np.float32]
    ) -> list[GateResult]:
        """Results of each backbone of the pass."""
        results, first = [], 0
        for member in self.builder.source.members:
            columns = slice(first, first := first + member.dim)
            results.append(
                check(
                    member.name,
                    got_ND[:, columns],
                    reference_ND[:, columns],
                    precision=mixture.precision,
                    images=min(self.samples.images(), len(self._pictures)),
                    reference=self._reference_name,
                    mean_D=self._mean_D[columns],
                    configured=self.name,
                )
            )
        return results

    @property
    def _block(self) -> int:
        """Pictures of a block: as many as the runtime computes at once."""
        return self.builder.batch * (1 if self.builder.target.on_gpu else max(self.builder.threads, 1))

    @cached_property
    def _pictures(self) -> NDArray[np.uint8]:
        return pictures(self.samples, self.extent)

    @cached_property
    def _reference(self) -> NDArray[np.float32]:
        """Float32 embeddings of the pictures, computed once per machine."""

        def compute() -> bytes:
            parts: list[NDArray[np.float32]] = []
            if self._compiled and self.extent == "each":  # its first pictures are those of `_once`
                self._once.result()
                parts.append(self._once._reference)
            embed = self._runtime(_FLOAT32) if self._compiled else self.builder.reference()
            for start in range(sum(map(len, parts)), len(self._pictures), self._block):
                self.note(f"{self._title}: float32 reference, {start} of {len(self._pictures)} pictures")
                parts.append(embed(self._pictures[start : start + self._block]).astype(np.float32))
            return np.concatenate(parts).tobytes()

        data = cache.fetch(f"references/{cache.key(self._compared())}.f32", compute)
        return np.frombuffer(data, np.float32).reshape(len(self._pictures), -1)

    @property
    def _compiled(self) -> bool:
        """Whether compiled float32 is the reference."""
        return self.builder.float32_reference and self.extent not in ("full", "once")

    def _runtime(self, mixture: PrecisionPolicy) -> Embed:
        """The compiled policy; the last one and the reference stay in memory."""
        if mixture not in self._runtimes:
            for other in set(self._runtimes) - {_FLOAT32}:
                del self._runtimes[other]
            reference = self.builder.float32_reference and mixture == _FLOAT32
            self._runtimes[mixture] = self.builder.runtime(mixture, keep=reference)
        return self._runtimes[mixture]

    @property
    def _reference_name(self) -> str:
        if self._compiled:
            return "float32"
        return "float32 torch" if self.builder.source.backbone.module is not None else "the same graph in float32"

    @cached_property
    def _mean_D(self) -> NDArray[np.float64]:
        return np.asarray(self._reference.mean(axis=0, dtype=np.float64))

    @cached_property
    def _layers(self) -> int:
        return self.builder.layers()

    def _words(self, mixture: PrecisionPolicy) -> str:
        """A policy, for messages."""
        count = mixture.float32_layers or mixture.unquantised_layers
        kind = "float32" if mixture.float32_layers else mixture.between
        return mixture.precision + (f" with the first {count} of {self._layers} layers in {kind}" if count else "")

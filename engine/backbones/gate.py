"""The gate: compare compiled backbones with their float32 reference, and search for a precision that passes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine import cache
from substyle.engine.backbones.runtimes.base import GateSamples, PrecisionPolicy, RuntimeBuilder
from substyle.engine.backbones.runtimes.tensorrt import EngineError
from substyle.engine.devices import AUTO, EightBits, Precision, as_eight_bits, as_precision
from substyle.kernels.errors import SubstyleError

# minimum cosine after subtraction of the reference mean
THRESHOLDS = {"fp32": 0.9999, "bf16": 0.999, "fp16": 0.999, "int8": 0.99, "fp8": 0.99}
MAX_NORM_ERROR = 0.1  # relative to a centred embedding's norm; cosines do not detect a wrong scale
GATE_IMAGES = 32


class GateError(SubstyleError):
    """A compiled backbone disagrees with its reference."""


@dataclass(frozen=True)
class GateResult:
    """Measurements of the gate.

    Attributes:
        cosine_min, cosine_mean: over all rows, after subtraction of the reference mean.
        norm_error_max: largest relative difference of norms, after subtraction of the reference mean.
        images: photographs; rows: photographs × variants.
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

    def describe(self) -> dict[str, Any]:
        """Return the result as plain JSON."""
        return asdict(self)


def check(
    name: str,
    got_ND: NDArray[np.floating],
    reference_ND: NDArray[np.float32],
    *,
    precision: str,
    images: int,
    reference: str,
) -> GateResult:
    """Compare embeddings, cast to the store's dtype, with their float32 reference.

    The reference mean is subtracted first, because embeddings of most networks share a large component that would
    dominate the cosine.

    Raises:
        GateError: an embedding is not finite, or its cosine or norm is outside the limits of the precision.
    """
    got = got_ND.astype(np.float64)
    if not np.isfinite(got).all():
        raise GateError(f"{name}: {int((~np.isfinite(got)).any(axis=1).sum())} of {len(got)} rows are not finite")
    mean = reference_ND.mean(axis=0, dtype=np.float64)
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
            f"{name}: {precision} disagrees with {reference} on {images} photographs: "
            f"cosine min {result.cosine_min:.5f}, mean {result.cosine_mean:.5f} (required: ≥ {threshold}), "
            f"largest norm error {result.norm_error_max:.4f} (required: ≤ {MAX_NORM_ERROR}). "
            f'To set the precision of one backbone: {{ name = "{name}", precision = "fp32" }}'
        )
    return result


_EVERY = 3  # the search for float32 layers uses every third variant, the final gate all
_UNQUANTISED = (0, 1, 2, 4, 8)  # sixteenths of a network's layers


class PrecisionSearch:
    """Gates one backbone, searching for its precision if ``auto``.

    Args:
        artefact: builder of the backbone.
        samples: photographs of the gate.
        precision: a precision, or auto.
        dtype: dtype of the store's embeddings.
    """

    def __init__(self, artefact: RuntimeBuilder, samples: GateSamples, precision: str, dtype: str) -> None:
        self.artefact, self.samples, self.precision, self.dtype = artefact, samples, precision, dtype
        self.name = artefact.source.spec.name
        self._reference: list[NDArray[np.float32]] = []

    def result(self) -> dict[str, Any]:
        """Return ``{"precision", "float32_layers", "gate"}`` of the policy that passed. Raises GateError if none."""
        facts = {
            "graph": self.artefact.key,
            "precision": self.precision,
            "dtype": self.dtype,
            "device": self.artefact.target.identity,
            "samples": self.samples.fingerprint(),
            "code": cache.code_hash(),
        }
        facts |= self.artefact.facts(self.precision)
        found: dict[str, Any] = cache.remember("gates", facts, self._search)
        return found

    def _search(self) -> dict[str, Any]:
        if kind := as_eight_bits(self.precision):
            return self._search_eight_bits(kind)
        if self.precision != AUTO:
            mixture = PrecisionPolicy(as_precision(self.precision))
            return self._passed(mixture, self._check(mixture, 1))
        if self.artefact.ladder:
            return self._first_that_passes(self.artefact.ladder)
        total = self.artefact.layers()
        count, trouble = self._fewest_float32_layers(total)
        while count < total:
            mixture = PrecisionPolicy("bf16", count)
            try:
                result = self._check(mixture, 1)
            except GateError as error:
                trouble = error
                count += max(total // 16, 1)
                continue
            if count:
                print(
                    f"{self.name}: bf16 with the first {count} of {total} layers in float32 passes the gate "
                    f"(cosine min {result.cosine_min:.5f}); with fewer: {trouble}",
                    file=sys.stderr,
                )
            return self._passed(mixture, result)
        print(f"{self.name}: using float32; bf16 failed: {trouble}", file=sys.stderr)
        mixture = PrecisionPolicy("fp32")
        return self._passed(mixture, self._check(mixture, 1))

    def _first_that_passes(self, ladder: Sequence[Precision]) -> dict[str, Any]:
        """The fastest precision that passes, with its result. Raises the last GateError if none does."""
        for precision in ladder[:-1]:
            mixture = PrecisionPolicy(precision)
            try:
                return self._passed(mixture, self._check(mixture, 1))
            except (GateError, EngineError) as error:  # a card may not support the precision
                slower = ladder[ladder.index(precision) + 1]
                print(f"{self.name}: trying {slower}; {error}", file=sys.stderr)
        mixture = PrecisionPolicy(ladder[-1])
        return self._passed(mixture, self._check(mixture, 1))

    def _search_eight_bits(self, precision: EightBits) -> dict[str, Any]:
        """The 8-bit policy with the fewest unquantised first layers that passes, with its result.

        Unquantised layers use the fastest 16-bit precision that passes alone. Raises GateError if none passes.
        """
        narrow = [kind for kind in self.artefact.ladder if kind != "fp32"]
        between = as_precision(self._first_that_passes(narrow)["precision"]) if narrow else "bf16"
        total = self.artefact.layers()
        trouble: GateError | None = None
        for count in sorted({total * part // 16 for part in _UNQUANTISED}):
            mixture = PrecisionPolicy(precision, unquantised_layers=count, between=between)
            try:
                result = self._check(mixture, 1)
            except GateError as error:
                trouble = error
                continue
            if count:
                print(
                    f"{self.name}: {precision} with the first {count} of {total} layers in {between} passes the "
                    f"gate (cosine min {result.cosine_min:.5f}); with fewer: {trouble}",
                    file=sys.stderr,
                )
            return self._passed(mixture, result)
        assert trouble is not None
        raise GateError(f"{trouble}. It also failed with up to half of the layers in {between}")

    def _fewest_float32_layers(self, total: int) -> tuple[int, GateError | None]:
        """Bisect the number of float32 layers on some of the variants; returns it and the error of a lower number."""
        low, high = -1, total  # low fails, high is assumed to pass
        trouble = None
        middle = 0
        while high - low > max(total // 24, 1):
            try:
                self._check(PrecisionPolicy("bf16", middle), _EVERY)
                high = middle
            except GateError as error:
                low, trouble = middle, error
            middle = (low + high) // 2
        return high, trouble

    def _check(self, mixture: PrecisionPolicy, every: int) -> GateResult:
        embed = self.artefact.runtime(mixture)
        samples_GSSC = self.samples.variants()[::every]
        has_module = self.artefact.source.backbone.module is not None
        return check(
            self.name,
            np.concatenate([embed(batch) for batch in samples_GSSC]).astype(self.dtype),
            np.concatenate(self._references()[::every]),
            precision=mixture.precision,
            images=self.samples.images(),
            reference="float32 torch" if has_module else "the same graph in float32",
        )

    def _references(self) -> list[NDArray[np.float32]]:
        if not self._reference:
            reference = self.artefact.reference()
            self._reference = [reference(batch) for batch in self.samples.variants()]
        return self._reference

    @staticmethod
    def _passed(mixture: PrecisionPolicy, result: GateResult) -> dict[str, Any]:
        return {**mixture.describe(), "gate": result.describe()}

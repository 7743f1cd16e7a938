"""The gate: a compiled backbone computes nothing for a store before it has agreed with its float32 reference."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.kernels.errors import SubstyleError

# minimum cosine, after subtraction of the reference mean, by arithmetic
THRESHOLDS = {"fp32": 0.9999, "bf16": 0.999, "fp16": 0.999, "int8": 0.99, "fp8": 0.99}
MAX_NORM_ERROR = 0.1  # of a centred embedding's length; a wrong scale passes every cosine
GATE_IMAGES = 32


class GateError(SubstyleError):
    """A compiled backbone does not agree with its reference."""


@dataclass(frozen=True)
class GateResult:
    """What the gate measured.

    Attributes:
        cosine_min, cosine_mean: over all rows, after subtraction of the reference mean.
        norm_error_max: largest relative difference of lengths, likewise centred.
        images: photographs; rows: photographs × variants.
        threshold: the cosine that every row must reach.
        reference: what it was compared with.
    """

    cosine_min: float
    cosine_mean: float
    norm_error_max: float
    images: int
    rows: int
    threshold: float
    reference: str

    def describe(self) -> dict[str, Any]:
        """This result in plain JSON."""
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
    """Compare embeddings after the store's cast with their float32 reference.

    The reference mean is subtracted first: most networks give all images a large common part, which would make any two
    embeddings look alike.

    Raises:
        GateError: not finite, or a cosine or length beyond what the precision allows; the message has the numbers.
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
            f"{name}: {precision} does not agree with {reference} on {images} photographs: "
            f"cosine min {result.cosine_min:.5f}, mean {result.cosine_mean:.5f} (needed: ≥ {threshold}), "
            f"largest length error {result.norm_error_max:.4f} (needed: ≤ {MAX_NORM_ERROR}). "
            f'A backbone can be given another: {{ name = "{name}", precision = "fp32" }}'
        )
    return result

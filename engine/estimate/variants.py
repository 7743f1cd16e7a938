"""The traffic of variants that no network makes."""

from __future__ import annotations

from collections.abc import Sequence

from substyle.pipelines.plugins import load_all
from substyle.pipelines.transforms import base


def variant_bytes(transformations: Sequence[str], canvas: int) -> float:
    """Bytes that the variants of one photograph move, styles left out: a canvas is read and a variant written.

    Both are read once more to see whether they differ.

    Args:
        transformations: names.
        canvas: side S in pixels.
    """
    load_all()
    plain = sum(base.get(name).made_by not in ("identity", "network") for name in transformations)
    return plain * 4.0 * canvas * canvas * 3

"""What a gate looks at: real photographs in every variant, made only where a gate runs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from substyle.kernels.errors import ConfigError


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

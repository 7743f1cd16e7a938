"""Files of photographs, and of their real variants, as they are read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.store.records import UNREAD, content_hash
from substyle.errors import ConfigError
from substyle.kernels.dispatch import upload
from substyle.pipelines.decode import Decoded
from substyle.pipelines.sources import ImageRecord, Source
from substyle.pipelines.transforms import base

ReadAll = Callable[[Callable[[ImageRecord | None], "Blob"], Iterable[ImageRecord | None]], Iterable["Blob"]]


@dataclass(frozen=True)
class Blob:
    """A photograph as it was read."""

    data: bytes  # encoded; empty if it could not be read
    content: str = ""  # hash of the bytes
    mark: int = 0  # of the file when it was read
    reason: str = ""  # why it could not be read


def read(record: ImageRecord | None) -> Blob:
    """Read a photograph; one that cannot be read has a reason."""
    if record is None:
        return Blob(b"", reason=f"{UNREAD}: no longer in the source")
    mark = record.mark()  # before reading: a file that changes during the read is checked again next time
    try:
        data = record.read()
    except OSError as error:
        return Blob(b"", reason=f"{UNREAD}: {error.strerror or error}")
    return Blob(data, content_hash(data), mark)


def _read_variant(record: ImageRecord | None) -> Blob:
    return Blob(b"", reason="no file") if record is None else read(record)


class RealVariants:
    """Real variants of B photographs, read and decoded when they are asked for, one transformation at a time.

    Args:
        records: the photographs; None for one that is no longer in the source.
        canvas_BSSC: (B, S, S, 3) uint8, their canvases.
        decoder: decodes the bytes of images as those of the photographs were.
        read_all: maps a function over records.

    Attributes:
        blobs: by transformation, the B files without their data; the reason says why a variant is left out.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord | None],
        canvas_BSSC: torch.Tensor,
        decoder: Callable[[Sequence[bytes]], Decoded],
        read_all: ReadAll = map,
    ) -> None:
        self.records, self.canvas_BSSC, self.decoder, self.read_all = records, canvas_BSSC, decoder, read_all
        self.blobs: dict[str, list[Blob]] = {}

    def __call__(self, transformation: str) -> torch.Tensor:
        """Decode a transformation; a variant without a file that can be decoded shows the canvas.

        Shape: (B, S, S, 3) uint8 on the decoder's device.
        """
        files = [record and record.variant(transformation) for record in self.records]
        blobs = list(self.read_all(_read_variant, files))
        decoded = self.decoder([blob.data for blob in blobs])
        self.blobs[transformation] = [
            replace(blob, data=b"", reason=blob.reason or reason or "")
            for blob, reason in zip(blobs, decoded.reasons, strict=True)
        ]
        ok_B = upload(decoded.ok_B, self.canvas_BSSC.device)
        return torch.where(ok_B[:, None, None, None], decoded.canvas_BSSC, self.canvas_BSSC)

    def ok_B(self, transformation: str) -> NDArray[np.bool_]:
        """Whether each variant of a transformation is valid; all of one that is computed. Shape: (B,)."""
        if transformation not in self.blobs:
            return np.ones(len(self.records), np.bool_)
        return np.array([not blob.reason for blob in self.blobs[transformation]], np.bool_)

    def left_out(self, transformation: str) -> Iterator[tuple[int, str]]:
        """Position and reason of each variant of a transformation that is left out."""
        for b, blob in enumerate(self.blobs.get(transformation, ())):
            if blob.reason:
                yield b, blob.reason


def require_shown(source: Source, transformations: Iterable[str], field: str = "suite") -> None:
    """Raise ConfigError if a transformation is real, and no files of the source show its photographs in it."""
    real = base.real(transformations)
    if real and (absent := [name for name in real if name not in source.understood.transformations]):
        known = ", ".join(source.understood.transformations)
        shown = f"of real ones {known}, which {source.root} shows" if known else "none that is real"
        why = f", since {source.root} is of kind {source.options['kind']}, not variants" * (not known)
        raise ConfigError(field, ", ".join(absent), shown + why)


def not_used(source: Source, transformations: Collection[str]) -> list[str]:
    """A warning if the source shows real transformations that are not embedded; else nothing."""
    unused = [name for name in source.understood.transformations if name not in transformations]
    how = 'name them in a suite file, with of = "photographs"'
    return [f"the suite has no {', '.join(unused)}, which {source.root} shows: {how}"] if unused else []

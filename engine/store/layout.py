"""Layout of a store: settings, names of groups, places of chunks, splits."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from substyle.engine.devices import as_precision
from substyle.kernels.errors import ConfigError, SubstyleError
from substyle.pipelines.image_header import ORIENTATIONS
from substyle.pipelines.sources.files import MARKER
from substyle.pipelines.storage import Place

SCHEMA = 3
DTYPES = ("float16", "float32")
ARRAYS = "embeddings"
METADATA = "zarr.json"  # of Zarr; its attributes belong to whoever uses the store
HEADER = MARKER  # of the store itself


@dataclass(frozen=True)
class BackboneEntry:
    """A backbone of a store: its name, the group it lives in, and the facts it was made with."""

    name: str
    slug: str
    dim: int
    facts: dict[str, Any]


@dataclass(frozen=True)
class StoreSettings:
    """What is fixed when a store is made.

    Attributes:
        seed: seed of variants and splits.
        canvas: canvas side S in pixels.
        shard_rows: R, rows of a shard and of a chunk.
        dtype: ``float16`` or ``float32``.
        orientation: what is done with EXIF orientations (``ignore``, ``apply``).
        style_precision: arithmetic inside style networks.
    """

    seed: int
    canvas: int
    shard_rows: int
    dtype: str
    orientation: str = "ignore"
    style_precision: str = "bf16"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError("dtype", self.dtype, ", ".join(DTYPES))
        if not 0 <= self.seed < 2**63:
            raise ConfigError("seed", self.seed, "a whole number from 0 to 2^63 - 1")
        if self.canvas < 1:
            raise ConfigError("canvas", self.canvas, "pixels, 1 or more")
        if self.shard_rows < 1 or self.shard_rows & (self.shard_rows - 1):
            raise ConfigError("shard_rows", self.shard_rows, "a power of two")
        if self.orientation not in ORIENTATIONS:
            raise ConfigError("orientation", self.orientation, ", ".join(ORIENTATIONS))
        as_precision(self.style_precision, "style_precision")

    def chunk_bytes(self, dim: int) -> int:
        """Bytes of a chunk file of a backbone D wide; all chunks of it have this size, the last one too."""
        return self.shard_rows * dim * np.dtype(self.dtype).itemsize


def slug(name: str) -> str:
    """A backbone's name as a group name: letters, digits, dot, dash and underscore, and a hash where it had others."""
    tail = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(name).name if name.startswith("onnx:") else name)
    # names come from the command line, where any bytes may stand
    return f"{tail[-80:].lstrip('.')}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def chunk_path(store: Place, backbone_slug: str, transformation: str, shard: int) -> Place:
    """The file or object of one shard's chunk."""
    return store / ARRAYS / backbone_slug / transformation / "c" / str(shard) / "0"


TRAIN, VAL, TEST = 0, 1, 2  # split codes


SPLITS = ("train", "val", "test")


UNLABELLED = -1


# What can go wrong with a store.


class StoreError(SubstyleError):
    """A store cannot be opened or written, or what is asked of it does not agree with what it holds."""


class DifferentError(StoreError):
    """What is to be stored was made from other inputs, or in another way, than what the store holds."""


class LockedError(StoreError):
    """Another run holds the store."""


class OverflowError16(SubstyleError):
    """An embedding does not fit the store's type."""

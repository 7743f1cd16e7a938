"""Layout of a store: settings, names of groups, places of chunks, splits."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, StrictInt

from substyle.engine.devices import Precision
from substyle.kernels.errors import SubstyleError
from substyle.pipelines.image_header import Orientation
from substyle.pipelines.sources.files import MARKER
from substyle.pipelines.storage import Place
from substyle.pipelines.validation import PowerOfTwo, validated

SCHEMA = 3
Dtype = Literal["float16", "float32"]
ResampleBy = Literal["photograph", "folder"]
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


@validated()
class StoreSettings:
    """What is fixed when a store is made."""

    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)]
    """Seed of variants and splits."""
    canvas: Annotated[StrictInt, Field(ge=1, lt=2**63)]
    """Canvas side S in pixels."""
    shard_rows: Annotated[StrictInt, Field(ge=1, lt=2**63), PowerOfTwo]
    """R, rows of a shard and of a chunk."""
    dtype: Dtype
    """Type of stored embeddings."""
    orientation: Orientation = "ignore"
    """What is done with EXIF orientations."""
    style_precision: Precision = "bf16"
    """Arithmetic inside style networks."""

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

"""Layout of a store: settings, names of groups, paths of chunks, split codes, errors."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, StrictFloat, StrictInt

from substyle.engine.backbones.spec import SAME_SKETCH, distance
from substyle.engine.devices import Precision
from substyle.errors import SubstyleError
from substyle.files import UnsafeFileError, relative
from substyle.pipelines.image_header import CROP_PCT, Orientation
from substyle.pipelines.sources.files import MARKER
from substyle.pipelines.storage import Place
from substyle.pipelines.validation import PowerOfTwo, validated

SCHEMA = 4
EXPORT_NOTE = "_substyle.json"  # of an export; readers of Parquet folders skip names that start with an underscore
# settings of a store that decide about pixels, and their types
PIXELS = {"seed": int, "canvas": int, "orientation": str, "style_precision": str, "crop_pct": float}
CropPct = Annotated[StrictFloat, Field(ge=0.1, le=1)]
Dtype = Literal["float16", "float32"]
Codec = Literal["none", "zstd", "blosc", "bitround+zstd"]
ResampleBy = Literal["photograph", "folder"]
ARRAYS = "embeddings"
# strict types, for what is read from files; a bound on lengths makes pydantic refuse strings that UTF-8 cannot encode
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, str_max_length=2**31)
METADATA = "zarr.json"  # Zarr's; users of the store may change its attributes
HEADER = MARKER  # the store's own


@dataclass(frozen=True)
class BackboneEntry:
    """A backbone of a store: its name, Zarr group, width of a row and the facts it was embedded with."""

    name: str
    slug: str
    dim: int
    facts: dict[str, Any]


@dataclass(frozen=True)
class ArrayEntry:
    """A Zarr array (T, N, D): embeddings of a backbone in transformations that were embedded together.

    Attributes:
        slug: Zarr group of the backbone.
        dim: D.
        transformations: T names, in the order of the array.
    """

    slug: str
    dim: int
    transformations: tuple[str, ...]

    @cached_property
    def name(self) -> str:
        """Name of the array: T, and a digest of the transformations."""
        text = json.dumps(self.transformations).encode()
        return f"{len(self.transformations)}-{hashlib.sha256(text).hexdigest()[:8]}"

    def node(self, store: Place) -> Place:
        """Return the folder of the array."""
        return store / ARRAYS / self.slug / self.name

    def shard(self, store: Place, number: int) -> Place:
        """Return the file or object of a shard."""
        return self.node(store) / f"c.0.{number}.0"


GRAPH, SKETCH = "graph", "sketch"  # what a network does, see `BackboneSpec`


def network_identity(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a backbone computes a row with, apart from its runtime: weights and preprocessing.

    Args:
        spec: `BackboneSpec.describe`, or the spec of a store; imported embeddings have weights only.
    """
    return {
        "weights": spec.get("weights_hash"),
        "input_side": spec.get("input_side"),
        "mean": list(spec.get("mean") or ()),
        "std": list(spec.get("std") or ()),
    }


def network_facts(spec: Mapping[str, Any]) -> dict[str, Any]:
    """`network_identity`, and what the network does, for `network_changes`."""
    sketch = [list(row) for row in spec.get(SKETCH) or ()]
    return {**network_identity(spec), GRAPH: spec.get(GRAPH, ""), SKETCH: sketch}


def network_changes(old: Mapping[str, Any], new: Mapping[str, Any], where: str) -> list[str]:
    """Describe how two results of `network_facts` differ.

    Graphs that libraries export differently are of one network if its embeddings of fixed pictures are the same; these
    are unknown of embeddings of earlier versions.
    """
    exact = [name for name in new if name not in (GRAPH, SKETCH)]
    found = changes({name: old.get(name) for name in exact}, {name: new[name] for name in exact}, where)
    if found or not old.get(SKETCH) or not new[SKETCH] or (old.get(GRAPH) and old.get(GRAPH) == new[GRAPH]):
        return found
    far = distance(old[SKETCH], new[SKETCH])
    return [] if far <= SAME_SKETCH else [f"embeddings of fixed pictures differ by {far:.2g} from those {where}"]


def changes(old: Mapping[str, Any], new: Mapping[str, Any], where: str) -> list[str]:
    """Describe the entries that differ between an earlier and the current record."""
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return [f"{name} {old.get(name)} {where}, {new.get(name)} now" for name in names]


@validated()
class StoreSettings:
    """Settings of a store, fixed at creation."""

    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)]
    """Seed of variants and splits."""
    canvas: Annotated[StrictInt, Field(ge=1, lt=2**63)]
    """Canvas side S in pixels."""
    shard_rows: Annotated[StrictInt, Field(ge=1, lt=2**63), PowerOfTwo]
    """R, photographs of a shard."""
    dtype: Dtype
    """Dtype of stored embeddings."""
    orientation: Orientation = "ignore"
    """How EXIF orientations are handled."""
    style_precision: Precision = "bf16"
    """Arithmetic inside style networks."""
    codec: Codec = "none"
    """Codec of chunks."""
    crop_pct: CropPct = CROP_PCT
    """Part of the shorter side of a photograph that the canvas shows."""

    @property
    def pixels(self) -> dict[str, Any]:
        """The settings of `PIXELS`."""
        return {name: getattr(self, name) for name in PIXELS}

    def chunk_bytes(self, dim: int) -> int:
        """Return the size in bytes of each decoded chunk of rows of ``dim`` numbers, including the last."""
        return self.shard_rows * dim * np.dtype(self.dtype).itemsize


def slug(name: str) -> str:
    """Convert a backbone's name to a group name of letters, digits, dot, dash and underscore, with a hash of it."""
    tail = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(name).name if name.startswith("onnx:") else name)
    # names come from the command line and may contain any bytes
    return f"{tail[-80:].lstrip('.')}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def is_array_name(name: object) -> bool:
    """Whether a backbone's slug or a transformation's name, read from a file, is the name of one folder."""
    try:
        return isinstance(name, str) and "/" not in relative(name)
    except UnsafeFileError:
        return False


MAX_ROWS = 1024
_SHARD_BYTES, _SHARD_SECONDS = 1 << 27, 900.0  # intended maximum of a shard of the widest backbone
_FEW = ((1_000, 16), (10_000, 64), (100_000, 256))  # rows of shards below a number of photographs


def rows_of_shards(images: int, row_bytes: float, seconds: float) -> int:
    """Return R of a new store: larger for more photographs, so that little work is lost in a small one.

    Args:
        images: number of photographs.
        row_bytes: size of all embeddings of a photograph by the widest backbone.
        seconds: time for all embeddings of a photograph.
    """
    by_number = next((rows for most, rows in _FEW if images < most), MAX_ROWS)
    rows = int(min(by_number, _SHARD_BYTES / row_bytes, _SHARD_SECONDS / seconds))
    # many photographs would have too many files
    return max(1 << max(rows.bit_length() - 1, 0), min(by_number, 64 if images >= 10_000 else 1))


TRAIN, VAL, TEST = 0, 1, 2  # split codes
SPLITS = ("train", "val", "test")
Fractions = tuple[float, float, float]
DEFAULT_FRACTIONS: Fractions = (0.65, 0.15, 0.20)
UNLABELLED = -1


class StoreError(SubstyleError):
    """A store cannot be opened, read or written, or does not contain what was requested."""


class DifferentError(StoreError):
    """New embeddings have other inputs or settings than those of the store."""


class LockedError(StoreError):
    """Another run holds the store."""


class OverflowError16(SubstyleError):
    """An embedding overflows the store's dtype."""

"""Zarr v3 metadata of groups and arrays, as this engine writes them; they are read through Zarr.

Zarr would write them from threads of its own, which an interrupt leaves behind with a traceback, and takes milliseconds
for each. Format: Zarr core specification, version 3.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import zarr

from substyle.engine.store.errors import StoreError
from substyle.engine.store.files import make_folder, write_durably, writing
from substyle.engine.store.layout import METADATA, StoreSettings
from substyle.pipelines.objects import ObjectPlace
from substyle.pipelines.places import Place

# of every array: bare numbers, little-endian; chunk (i, j) is the file c/i/j
CODECS: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}]
CHUNK_NAMES: dict[str, Any] = {"name": "default", "configuration": {"separator": "/"}}


def group(attributes: Mapping[str, Any]) -> bytes:
    """Metadata of a group."""
    return _text({"attributes": dict(attributes), "zarr_format": 3, "node_type": "group"})


def array(rows: int, width: int, *, shard_rows: int, dtype: str, attributes: Mapping[str, Any]) -> bytes:
    """Metadata of an array of (rows, width) numbers in chunks of whole rows; NaN is what no chunk says."""
    return _text(
        {
            "shape": [rows, width],
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard_rows, width]}},
            "chunk_key_encoding": CHUNK_NAMES,
            "fill_value": "NaN",
            "codecs": CODECS,
            "attributes": dict(attributes),
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }
    )


def write(node: Place, metadata: bytes) -> None:
    """Write the metadata of a group or an array, in place of what is there. Raises StoreError where that cannot be."""
    make_folder(node)
    path = node / METADATA
    if isinstance(path, ObjectPlace):
        with writing(path):
            path.put(metadata)
    else:
        write_durably(path, metadata)


def grow(node: Place, rows: int) -> None:
    """Give an array more rows, which are NaN as yet. Raises StoreError where that cannot be."""
    path = node / METADATA
    with writing(path):
        metadata: dict[str, Any] = json.loads(path.read_bytes())
    metadata["shape"][0] = rows
    write(node, _text(metadata))


def require_layout(found: zarr.Array[Any], settings: StoreSettings, dim: int, path: Place) -> None:
    """Raise StoreError unless an array is laid out as this engine does it: (N, D) numbers in bare chunks (R, D)."""
    there = json.loads(json.dumps(found.metadata.to_dict()))
    pairs = {
        "width": (found.shape[1:], (dim,)),
        "chunks": (found.chunks, (settings.shard_rows, dim)),
        "type": (str(found.dtype), settings.dtype),
        "codecs": (there["codecs"], CODECS),
        "names of chunks": (there["chunk_key_encoding"], CHUNK_NAMES),
        "fill value": (str(found.fill_value), "nan"),
    }
    for what, (value, wanted) in pairs.items():
        if value != wanted:
            raise StoreError(f"{path / METADATA}: {what} {value}, not {wanted} (run substyle verify)")


def _text(metadata: Mapping[str, Any]) -> bytes:
    return json.dumps(metadata, indent=2).encode()

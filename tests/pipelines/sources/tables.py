"""Small tables of images, written as Parquet and as Arrow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tests.conformance.kinds import IMAGE

BLOBS = [bytes([65 + i]) * (100 + i) for i in range(10)]


def structs(blobs: Sequence[bytes | None]) -> pa.Array:
    return pa.array([{"bytes": blob, "path": f"{i}.jpg"} for i, blob in enumerate(blobs)], IMAGE)


def parquet(path: Path, columns: dict[str, Any], features: dict[str, Any] | None = None, **more: Any) -> Path:  # noqa: ANN401
    table = pa.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({b"huggingface": json.dumps({"info": {"features": features}}).encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **more)
    return path


def arrow(path: Path, columns: dict[str, Any], rows: int = 3, **more: Any) -> Path:  # noqa: ANN401
    table = pa.table(columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_stream(path, table.schema, **more) as stream:
        stream.write_table(table, max_chunksize=rows)
    return path

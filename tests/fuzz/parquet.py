"""Parquet files of any rows, however absurd."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from tests.fuzz.mutations import changed, garbage, spoilt


def parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def rows_of(data: bytes) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(data)).to_pylist()
    return rows


def columns(rows: Any, schema: pa.Schema | None) -> pa.Table | None:  # noqa: ANN401
    """Rows as a table: in the types of a schema where they fit, else in what Arrow makes of them, None for nothing."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return None
    names = list(dict.fromkeys(str(name) for row in rows for name in row))
    arrays = []
    for name in names:
        values = [row.get(name) for row in rows]
        wanted = schema.field(name).type if schema is not None and name in schema.names else None
        array = _array(values, wanted)
        arrays.append(array if array is not None else _array(values, None))
    try:
        return pa.table([pa.nulls(len(rows)) if a is None else a for a in arrays], names=names)
    except (ValueError, pa.ArrowException):
        return None


def _array(values: list[Any], wanted: pa.DataType | None) -> pa.Array | None:
    if wanted is not None and pa.types.is_map(wanted) and any(isinstance(v, list) and None in v for v in values):
        return None  # Arrow ends the process over a map's entry that is None
    try:
        return pa.array(values, type=wanted)
    except (ValueError, TypeError, OverflowError, pa.ArrowException):
        return None


def spoilt_parquet(data: bytes, schema: pa.Schema | None) -> SearchStrategy[bytes]:
    """A Parquet file with other bytes, other rows, other columns, or none at all."""

    def again(rows: Any) -> bytes:  # noqa: ANN401
        table = columns(rows, schema)
        try:
            return b"no rows" if table is None else parquet(table)
        except (ValueError, TypeError, pa.ArrowException):
            return b"not writable"

    foreign = pa.table({"x": [1, 2, 3], "label": ["a", "b", None]})
    return st.one_of(
        spoilt(data),
        changed(rows_of(data)).map(again),
        changed(rows_of(data)).map(again),
        st.sampled_from([parquet(foreign), parquet(foreign.slice(0, 0)), parquet(pa.table({}))]),
        garbage(),
    )

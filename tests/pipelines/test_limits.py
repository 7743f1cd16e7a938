"""Claims of files against their sizes; files that claim gigabytes are read in tests/fuzz/test_confined.py."""

from __future__ import annotations

import io
import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from substyle.engine import cli
from substyle.errors import SubstyleError
from substyle.pipelines import limits
from substyle.pipelines.sources import open_source
from substyle.pipelines.sources.base import KINDS


def parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def test_rows_are_bounded_by_the_size_of_their_file() -> None:
    limits.require_rows("x", limits.FEW + 100, 1600, 16)
    with pytest.raises(ValueError, match=r"x: claims 65,637 rows; allowed for a file of this size: 65,636"):
        limits.require_rows("x", limits.FEW + 101, 1600, 16)


def test_strings_are_written_out_as_they_were() -> None:
    kinds = pa.struct([("name", pa.string()), ("data", pa.large_binary())])
    schema = pa.schema(
        [
            ("row", pa.int64()),
            ("text", pa.string()),
            ("some", pa.list_(kinds)),
            ("pairs", pa.map_(pa.string(), pa.string())),
        ]
    )
    rows = [
        {
            "row": i,
            "text": [None, "a", "é"][i % 3],
            "some": [{"name": "x", "data": b"\0y"}] * (i % 4),
            "pairs": [("k", "v")],
        }
        for i in range(50)
    ]
    table = pa.Table.from_pylist(rows, schema)
    assert limits.read_parquet(parquet(table), "x", 1, schema).equals(table)
    assert limits.values(limits.read_parquet(parquet(table), "x", 1)["text"]) == table["text"].to_pylist()
    with pytest.raises(ValueError, match="x: unexpected columns"):
        limits.read_parquet(parquet(table), "x", 1, pa.schema([("row", pa.int64())]))


def test_a_repeated_string_is_one_object() -> None:
    column = pa.chunked_array([pa.array(["long text", None, "long text"]).dictionary_encode()])
    first, missing, again = limits.values(column)
    assert first == "long text"
    assert first is again
    assert missing is None


@pytest.mark.parametrize("nested", [False, True])
def test_strings_that_would_not_fit_are_refused(nested: bool) -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(5000, np.int32)), pa.array(["x" * 100_000]))
    plain = texts.cast(pa.string())
    if nested:
        plain = pa.ListArray.from_arrays(pa.array(range(5001), pa.int32()), plain)
    table = pa.table({"text": plain})
    with pytest.raises(ValueError, match=r"x: claims 500,0\d\d,\d+ bytes"):
        limits.read_parquet(parquet(table), "x", 1, table.schema)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_a_list_of_one_repeated_value_is_refused_before_it_is_decoded(version: str) -> None:
    rows = 10_000_000
    numbers = pa.ListArray.from_arrays(pa.array([0, 2, rows], pa.int32()), pa.array(np.zeros(rows, np.int8)))
    buffer = io.BytesIO()
    pq.write_table(pa.table({"key": ["a", "b"], "some": numbers}), buffer, data_page_version=version)
    before = pa.default_memory_pool().bytes_allocated()
    data = pa.py_buffer(buffer.getvalue())
    with pytest.raises(ValueError, match=r"x: claims 80,000,0\d\d bytes"):
        limits.require_parquet(data, "x", 1)
    assert limits.require_parquet(data, "x", 1, ("key",)).metadata.num_rows == 2
    with pytest.raises(ValueError, match="x: claims"):
        limits.read_parquet(buffer.getvalue(), "x", 1)
    assert pa.default_memory_pool().bytes_allocated() < before + rows


@pytest.mark.parametrize("at", range(4, 40))
def test_spoilt_headers_of_pages_end_in_an_answer(at: int) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"some": [[1, 2], [3]]}), buffer, use_dictionary=False)
    for byte in (0, 1, 0x7F, 0x80, 0xFF):
        data = bytearray(buffer.getvalue())
        data[at] = byte
        with suppress(ValueError):
            limits.require_parquet(pa.py_buffer(bytes(data)), "x", 1)


def test_a_footer_of_too_many_bytes_is_refused() -> None:
    table = pa.table({"zeros": pa.array([bytes(1 << 20)] * 100)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", use_dictionary=False)
    with pytest.raises(ValueError, match="bytes; allowed"):
        limits.read_parquet(buffer.getvalue(), "x", 1)


@pytest.mark.parametrize("dictionary", [False, True])
@pytest.mark.parametrize("kind", ["stream", "file"])
def test_compressed_buffers_are_found_before_they_are_read(tmp_path: Path, kind: str, dictionary: bool) -> None:
    texts = pa.array(["a" * 1000] * 10)
    table = pa.table({"text": texts.dictionary_encode() if dictionary else texts})
    for compression in (None, "zstd", "lz4"):
        options = pa.ipc.IpcWriteOptions(compression=compression)
        make = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
        with make(tmp_path / "x", table.schema, options=options) as file:
            file.write_table(table)
        buffer = pa.py_buffer((tmp_path / "x").read_bytes())
        stream = buffer.slice(8) if kind == "file" else buffer
        if compression is None:
            limits.require_uncompressed(stream)
        else:
            with pytest.raises(ValueError, match="compressed buffers"):
                limits.require_uncompressed(stream)


@pytest.mark.parametrize(
    ("shape", "size", "sound"), [((4, 2), 32, True), ((1 << 40,), 32, False), ((60, 2), 32, False)]
)
def test_arrays_of_an_archive(tmp_path: Path, shape: tuple[int, ...], size: int, sound: bool) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("w.npy", buffer.getvalue() + bytes(size))
    if sound:
        limits.require_archive(tmp_path / "x.npz")
    else:
        with pytest.raises(ValueError, match=r"w\.npy: claims"):
            limits.require_archive(tmp_path / "x.npz")


def test_memory_that_runs_out_names_what_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("Unable to allocate 3 TiB")

    monkeypatch.setitem(KINDS, "folder", replace(KINDS["folder"], opener=fail))
    with pytest.raises(SubstyleError, match=rf"{tmp_path}: takes more memory than is available \(Unable to allocate"):
        open_source(tmp_path)


def test_memory_that_runs_out_in_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from substyle.engine.commands import describe

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(describe, "transforms", fail)
    assert cli.main(["transforms"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("substyle: transforms: out of memory in fail, ")
    assert "Traceback" not in error

"""Claims of files against their sizes; files that claim gigabytes are read in tests/fuzz/test_confined.py."""

from __future__ import annotations

import io
from contextlib import suppress
from itertools import product

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from substyle.engine import cli
from substyle.pipelines import limits


def test_rows_are_bounded_by_the_size_of_their_file() -> None:
    limits.require_rows("x", limits.FEW + 100, 1600, 16)
    with pytest.raises(ValueError, match=r"x: claims 65,637 rows; allowed for a file of this size: 65,636"):
        limits.require_rows("x", limits.FEW + 101, 1600, 16)


def test_spoilt_headers_of_pages_end_in_an_answer() -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"some": [[1, 2], [3]]}), buffer, use_dictionary=False)
    for at, byte in product(range(4, 40), (0, 1, 0x7F, 0x80, 0xFF)):
        data = bytearray(buffer.getvalue())
        data[at] = byte
        with suppress(ValueError):
            limits.require_parquet(pa.py_buffer(bytes(data)), "x", 1)


def test_memory_that_runs_out_in_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from substyle.engine.commands import describe

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(describe, "transforms", fail)
    assert cli.main(["transforms"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("substyle: transforms: out of memory in fail, ")
    assert "Traceback" not in error

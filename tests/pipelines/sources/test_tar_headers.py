"""Unusual tar headers, built byte by byte."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from substyle.pipelines.sources import TarSource

DATA = b"12345"
USTAR, GNU = b"ustar\x0000", b"ustar  \0"


def header(
    name: bytes, size: bytes = b"00000000005\0", kind: bytes = b"0", magic: bytes = USTAR, prefix: bytes = b""
) -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257 : 257 + len(magic)] = magic
    block[345 : 345 + len(prefix)] = prefix
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def record(text: bytes) -> bytes:
    """A pax record; its length includes the length field."""
    length = len(text) + 3
    while len(str(length)) + len(text) + 2 != length:
        length += 1
    return b"%d %s\n" % (length, text)


def read(path: Path, *parts: bytes) -> dict[str, bytes]:
    """Images of an archive of these parts and one valid member, by key."""
    path.write_bytes(b"".join(parts) + header(b"last.jpg") + padded(DATA) + bytes(1024))
    return {record.key.removeprefix(f"{path.name}/"): record.read() for record in TarSource(path).records}


def test_reads_that_come_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole: Callable[[int, int, int], bytes] = os.pread
    path = tmp_path / "t.tar"
    read(path)
    (record,) = TarSource(path).records
    monkeypatch.setattr("os.pread", lambda descriptor, size, offset: whole(descriptor, min(size, 2), offset))
    assert record.read() == DATA
    path.write_bytes(path.read_bytes())  # another modification time
    with pytest.raises(OSError, match=r"t\.tar") as caught:
        record.read()
    assert caught.value.errno == errno.ESTALE

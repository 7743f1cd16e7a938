"""Unusual tar headers, built byte by byte."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from substyle.errors import ConfigError
from substyle.pipelines.sources import TarSource

DATA = b"12345"
USTAR, GNU = b"ustar\x0000", b"ustar  \0"
STRICT = pytest.mark.skipif(
    sys.version_info < (3, 11, 10) or (3, 12) <= sys.version_info < (3, 12, 6),
    reason="tarfile passes over a pax header that it cannot read",
)


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


def pax(*texts: bytes, kind: bytes = b"x") -> bytes:
    content = b"".join(map(record, texts))
    return header(b"pax", b"%011o\0" % len(content), kind) + padded(content)


def read(path: Path, *parts: bytes) -> dict[str, bytes]:
    """Images of an archive of these parts and one valid member, by key."""
    path.write_bytes(b"".join(parts) + header(b"last.jpg") + padded(DATA) + bytes(1024))
    return {record.key.removeprefix(f"{path.name}/"): record.read() for record in TarSource(path).records}


@pytest.mark.parametrize(
    "member",
    [
        header(b"a.jpg", b"00000000005\0"),
        header(b"a.jpg", b"          5 "),
        header(b"a.jpg", b"5\0garbage"),
        header(b"a.jpg", b"\x80" + (5).to_bytes(11, "big")),
        header(b"a.jpg", kind=b"\0"),
        header(b"a.jpg", kind=b"7"),
        header(b"a.jpg", magic=b""),
        header(b"a.jpg", magic=GNU, prefix=b"14700000000\x0014700000000\0"),  # times, in the field of the ustar prefix
        pax(b"size=5") + header(b"a.jpg", b"00000000000\0"),
        pax(b"path=a.jpg", b"comment=\xff=x") + header(b"b.jpg"),
        pax(b"comment=b.jpg", kind=b"g") + header(b"a.jpg"),
        header(b"long", b"00000000010\0", b"L", GNU) + padded(b"./a.jpg\0") + header(b"b.jpg", magic=GNU),
    ],
    ids=range(12),
)
def test_forms_of_one_member(tmp_path: Path, member: bytes) -> None:
    assert read(tmp_path / "t.tar", member, padded(DATA)) == {"a": DATA, "last": DATA}


def test_a_prefix_is_part_of_the_name(tmp_path: Path) -> None:
    assert read(tmp_path / "t.tar", header(b"a.jpg", prefix=b"b/c"), padded(DATA)) == {"b/c/a": DATA, "last": DATA}


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6"])
def test_what_has_no_data_has_none_whatever_its_size_says(tmp_path: Path, kind: bytes) -> None:
    assert read(tmp_path / "t.tar", header(b"a.jpg", b"00000007777\0", kind)) == {"last": DATA}


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (header(b"a.jpg", b"\x80" + b"\x7f" * 11), "invalid size"),
        (header(b"a.jpg", b"\xff" * 12), "invalid size"),
        (header(b"a.jpg", b"-0000000001\0"), "invalid size"),
        (header(b"a.jpg", b"00000000009\0"), "unreadable header"),
        (pax(b"size=-5") + header(b"a.jpg"), ""),
        (pax(b"size=" + b"9" * 30) + header(b"a.jpg"), "invalid size"),
        (pax(b"size=x") + header(b"a.jpg"), "invalid size"),
        pytest.param(
            header(b"x", b"00000000005\0", b"x") + padded(b"9 a=b") + header(b"a.jpg"),
            "unreadable header",
            marks=STRICT,
        ),
        pytest.param(
            header(b"x", b"00000000006\0", b"x") + padded(b"6 a_b\n") + header(b"a.jpg"),
            "unreadable header",
            marks=STRICT,
        ),
        (header(b"x", b"%011o\0" % (2 << 20), b"L") + bytes(2 << 20), "2097152 bytes"),
        (header(b"x", b"%011o\0" % (1 << 15), b"x"), "unreadable header"),
        (header(b"long", b"%011o\0" % 5, b"L") * 2000, "unreadable header"),
    ],
    ids=range(12),
)
def test_headers_that_cannot_be_right_end_the_shard(tmp_path: Path, part: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=f"{message} at byte 0") as caught:
        read(tmp_path / "t.tar", part)
    assert (caught.value.field, caught.value.given) == ("images", str(tmp_path / "t.tar"))


def test_checksums_of_signed_bytes(tmp_path: Path) -> None:
    block = bytearray(header("é.jpg".encode()))
    total = sum(b - 256 * (b > 127) for b in block[:148] + b" " * 8 + block[156:])
    block[148:156] = b"%06o\0 " % total
    assert read(tmp_path / "t.tar", bytes(block), padded(DATA)) == {"é": DATA, "last": DATA}


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

"""Tar files with corrupted headers give an error or images from inside the file."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

from substyle.errors import SubstyleError
from substyle.pipelines.sources import TarSource

BLOCK = 512
# start and end of name, mode, uid, size, time, checksum, type, link, magic, prefix, sparse maps
FIELDS = [(0, 100), (100, 108), (108, 116), (124, 136), (136, 148), (148, 156), (156, 157), (157, 257), (257, 265)]
FIELDS += [(345, 500), (386, 483), (482, 483)]
SIZES = [
    b"00000000000\0",
    b"77777777777\0",
    b"\x80" + b"\xff" * 11,
    b"\xff" * 12,
    b"\x80" + bytes(11),
    b"-0000000001\0",
]
SIZES += [
    b"            ",
    b"0x000000001\0",
    b"00000001000 ",
    b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7,
    b"00000000777\0",
]
TYPES = [bytes([i]) for i in b"01234567xXgLKSVMNDZ\0\xff"]
NAMES = [b"\0" * 100, b"/" * 100, b"../" * 33 + b"a", b"a\0b.jpg".ljust(100, b"\0"), b"\xff" * 96 + b".jpg", b"." * 100]
PAX = [b"0 size=1\n", b"9999999 path=a\n", b"12 size=-100\n", b"30 size=99999999999999999999999\n", b"11 path=/a\n"]
PAX += [b"13 path=a\0b\n", b"6 a=\n\n", b"x path=a\n", b" 5 a=b\n", b"5\n", b"19 GNU.sparse.map=\n", b"\xff" * 60, b""]


def examples() -> list[bytes]:
    """Small archives in every format, with long names, labels, folders and links."""
    made = []
    for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
            for i in range(3):
                name = f"{'d' * 60}/{'e' * 60}/{i}" if i == 1 else f"{i}"
                for end, data in (("cls", b"7"), ("jpg", bytes([i]) * 700), ("json", b'{"label": "a"}')):
                    info = tarfile.TarInfo(f"{name}.{end}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
            link = tarfile.TarInfo("link.jpg")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
        made.append(buffer.getvalue()[: -10240 + 1024] if format == tarfile.USTAR_FORMAT else buffer.getvalue())
    return made


def headers(data: bytes) -> list[int]:
    """Offsets of blocks that look like headers."""
    return [at for at in range(0, len(data) - BLOCK + 1, BLOCK) if data[at + 257 : at + 262] == b"ustar"]


def sign(data: bytearray, at: int) -> None:
    """Recompute the checksum of a header."""
    if at + BLOCK <= len(data):
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + BLOCK])


def bytes_of_a_header(data: bytearray, at: int, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 4)):
        start, stop = rng.choice(FIELDS)
        data[at + rng.randrange(start, stop)] = rng.randrange(256)


def field_of_a_header(data: bytearray, at: int, rng: random.Random) -> None:
    choice = rng.randrange(4)
    if choice == 0:
        data[at + 124 : at + 136] = rng.choice(SIZES)
    elif choice == 1:
        data[at + 156 : at + 157] = rng.choice(TYPES)
    elif choice == 2:
        data[at : at + 100] = rng.choice(NAMES)
    else:
        start, stop = rng.choice(FIELDS)
        data[at + start : at + stop] = rng.randbytes(stop - start)


def pax_header(data: bytearray, at: int, rng: random.Random) -> None:
    content = b"".join(rng.choice(PAX) for _ in range(rng.randint(1, 3)))
    header = bytearray(data[at : at + BLOCK])
    header[156:157] = rng.choice([b"x", b"g", b"L", b"X", b"K"])
    header[124:136] = b"%011o\0" % len(content)
    data[at:at] = header + content.ljust(-(-len(content) // BLOCK) * BLOCK, b"\0")


def cut(data: bytearray, at: int, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def moved(data: bytearray, at: int, rng: random.Random) -> None:
    other = rng.choice(headers(bytes(data)))
    data[at : at + BLOCK] = data[other : other + BLOCK]


def anything(data: bytearray, at: int, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] = rng.randrange(256)


CHANGES: list[Callable[[bytearray, int, random.Random], None]] = [
    bytes_of_a_header, field_of_a_header, field_of_a_header, pax_header, cut, moved, anything,
]  # fmt: skip


def check(path: Path, number: int, originals: list[bytes]) -> str:
    """Open one mutated archive; returns the outcome."""
    rng = random.Random(number)
    data = bytearray(rng.choice(originals))
    for _ in range(rng.randint(1, 3)):
        places = headers(bytes(data))
        if not places:
            break
        at = rng.choice(places)
        rng.choice(CHANGES)(data, at, rng)
        if rng.random() < 0.8:  # else the checksum reveals the change
            sign(data, at)
    path.write_bytes(data)
    try:
        source = TarSource(path)
    except SubstyleError as error:
        return "refused" if len(str(error)) < 2000 else "refused at length"
    failed = 0
    for record in source.records:
        assert record.key.encode()
        assert record.key.startswith("a.tar/")
        assert ".." not in record.key.split("/")
        try:
            image = record.read()
        except OSError:
            failed += 1
            continue
        assert bytes(image) in bytes(data)
    assert [record.key for record in source.records] == sorted({record.key for record in source.records})
    return "partly" if failed or len(source.records) < 3 else "whole"


def run(path: Path, numbers: range) -> dict[str, int]:
    originals = examples()
    found: dict[str, int] = {}
    for number in numbers:
        try:
            became = check(path, number, originals)
        except Exception as error:
            raise AssertionError(f"archive {number}") from error
        found[became] = found.get(became, 0) + 1
    return found


def test_changed_archives(tmp_path: Path) -> None:
    found = run(tmp_path / "a.tar", range(400))
    assert set(found) == {"refused", "partly", "whole"}
    assert min(found.values()) > 20

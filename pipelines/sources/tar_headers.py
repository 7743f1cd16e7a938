"""Where the members of a tar file lie, read from its headers; nothing in a header is believed that the file denies.

The formats are those of POSIX.1-1988 (ustar), POSIX.1-2001 (pax) and GNU tar; sizes are octal or base 256. Layout:
https://www.gnu.org/software/tar/manual/html_node/Standard.html
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from substyle.pipelines.sources.shard_files import Spans

BLOCK = 512
MAX_EXTENDED = 1 << 20  # bytes of a pax header or a long name: more is an attack, not a name
_AFTER_END = 1 << 20  # bytes looked at behind the end mark
_ZEROS = bytes(BLOCK)
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}

FILE, FOLDER = "file", "folder"
_KINDS = {
    b"0": FILE, b"\0": FILE, b"7": FILE, b"5": FOLDER, b"1": "hard link", b"2": "link", b"3": "device", b"4": "device",
    b"6": "pipe", b"S": "sparse file", b"V": "volume label", b"M": "part of another volume", b"N": "old long name",
}  # fmt: skip
_WITHOUT_DATA = frozenset(b"123456")


class TarDamage(Exception):
    """A tar file cannot be read on; the message is the rest of a sentence that begins with its name."""


@dataclass(frozen=True, slots=True)
class Member:
    """One member: its name, what it is, and where its bytes lie in the tar file.

    Attributes:
        whole: False where the file ends before the member does.
    """

    name: str
    kind: str
    offset: int
    size: int
    whole: bool = True


def compression(file: Spans) -> str | None:
    """What a file is compressed with, None where it is not."""
    start = file.read(6, 0)
    return next((name for magic, name in _COMPRESSED.items() if start.startswith(magic)), None)


def members(file: Spans) -> Iterator[Member]:
    """All members in the file's order.

    Raises:
        TarDamage: a header that is none, an extended header that is too large, a member beyond the end of the file, no
            end mark, or data after it; what came before is right.
    """
    end = file.size
    position = 0
    while position < end:
        header, position, extended = _header(file, position, end)
        if header is None:
            return
        flag = header[156:157]
        # whatever a damaged header says, the next one lies further on
        size = _size(header, position - BLOCK) if "size" not in extended else _decimal(extended["size"])
        kind = _KINDS.get(flag, "member of an unknown type")
        if any(key.startswith("GNU.sparse") for key in extended):
            kind = "sparse file"
        if flag == b"S":
            position = _sparse_map(file, header, position)
        if flag[0] in _WITHOUT_DATA:
            size = 0
        whole = position + size <= end
        name = _text(extended["path"]) if "path" in extended else _name(header)
        yield Member(name, kind, position, size, whole)
        if not whole:
            raise TarDamage(f"ends inside {name!a}, which is to have {size} bytes")
        position += -(-size // BLOCK) * BLOCK
    raise TarDamage("has no end mark; it may have been cut short" if position else "is empty")


def _header(file: Spans, position: int, end: int) -> tuple[bytes | None, int, dict[str, bytes]]:
    """The next member's own header, the position behind it, and what extended headers before it say.

    The header is None at the end mark.
    """
    extended: dict[str, bytes] = {}
    while True:
        header = file.read(BLOCK, position)
        if header == _ZEROS:
            _nothing_more(file, position)
            return None, position, extended
        if len(header) < BLOCK:
            raise TarDamage(f"ends inside the header at byte {position}")
        _check(header, position)
        flag = header[156:157]
        position += BLOCK
        if flag not in (b"x", b"X", b"g", b"L", b"K"):
            return header, position, extended
        size = _size(header, position - BLOCK)
        if size > MAX_EXTENDED:
            raise TarDamage(f"has an extended header of {size} bytes at byte {position - BLOCK}")
        data = file.read(size, position)
        if len(data) < size or position + size > end:
            raise TarDamage(f"ends inside the extended header at byte {position - BLOCK}")
        if flag == b"L":
            extended["path"] = data.split(b"\0", 1)[0]
        elif flag in (b"x", b"X"):
            extended.update(_pax(data, position))
        position += -(-size // BLOCK) * BLOCK


def _check(header: bytes, position: int) -> None:
    """Raise TarDamage unless a header has its checksum: the sum of its bytes, those of the checksum taken as spaces."""
    said = _octal(header[148:156])
    rest = header[:148] + header[156:]
    # some old writers sum signed bytes
    if said is None or (said != sum(rest) + 256 and said != sum(b - 256 * (b > 127) for b in rest) + 256):
        raise TarDamage(f"has no header where one should be, at byte {position}")


def _octal(field: bytes) -> int | None:
    digits = field.split(b"\0", 1)[0].strip()
    if not digits:
        return 0
    if len(digits) > 12 or digits.strip(b"01234567"):
        return None
    return int(digits, 8)


def _size(header: bytes, position: int) -> int:
    field = header[124:136]
    size = int.from_bytes(field[1:], "big") if field[0] == 0x80 else _octal(field)
    if size is None or size >= 1 << 62:
        raise TarDamage(f"has a header with an impossible size at byte {position}")
    return size


def _decimal(digits: bytes) -> int:
    if len(digits) > 18 or not digits.isdigit():
        raise TarDamage(f"has a pax header with the size {digits[:40]!r}")
    return int(digits)


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    # GNU tar keeps times where ustar keeps the first part of a long name
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _pax(data: bytes, position: int) -> dict[str, bytes]:
    """The records ``<length> <key>=<value>\\n`` of a pax header."""
    records: dict[str, bytes] = {}
    at = 0
    while at < len(data) and data[at] != 0:
        space = data.find(b" ", at, at + 9)
        length = data[at:space] if space > at else b""
        stop = at + int(length) if length.isdigit() else 0
        key, equals, value = data[space + 1 : stop - 1].partition(b"=")
        if not space + 1 < stop <= len(data) or data[stop - 1 : stop] != b"\n" or not equals:
            raise TarDamage(f"has a pax header that cannot be read at byte {position}")
        records[key.decode("utf-8", "replace")] = value
        at = stop
    return records


def _sparse_map(file: Spans, header: bytes, position: int) -> int:
    """The position behind the further maps of holes that follow an old GNU header."""
    more = header[482]
    while more:
        block = file.read(BLOCK, position)
        if len(block) < BLOCK:
            raise TarDamage(f"ends inside the map of a sparse file at byte {position}")
        position += BLOCK
        more = block[504]
    return position


def _nothing_more(file: Spans, position: int) -> None:
    """Raise TarDamage where something follows the end mark: archives that were appended to one another."""
    if file.read(_AFTER_END, position).strip(b"\0"):
        raise TarDamage(f"has data after its end mark at byte {position}, which was not looked at")

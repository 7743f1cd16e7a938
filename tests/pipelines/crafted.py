"""Image files written field by field, which no library would write."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping, Sequence

# 16 x 16 grey ramp (40 + index // 2), arithmetic coding; no Python library writes it
ARITHMETIC_JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwcKDcpLDAxNDQ0Hyc5PTgyPC"
    "4zNDL/yQALCAAQABABAREA/8wABgAQEAX/2gAIAQEAAD8A/wCapkVnQ/rNG+YNAjZI/9k="
)


def chunk(name: bytes, body: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(header: Sequence[int], data: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG of (width, height, bits, colour type, interlace), compressed rows, and chunks before them."""
    width, height, bits, color, interlace = header
    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, interlace))
    extra = b"".join(chunk(*part) for part in more)
    return b"\x89PNG\r\n\x1a\n" + start + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def with_checksums(blob: bytes) -> bytes:
    """Recompute the checksums of all chunks that can be parsed."""
    out, at = blob[:8], 8
    while at + 12 <= len(blob):
        length = int.from_bytes(blob[at : at + 4], "big")
        if at + 12 + length > len(blob):
            break
        body = blob[at + 4 : at + 8 + length]
        out += blob[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return out + blob[at:]


def tiff(tags: Mapping[int, int | Sequence[int]], data: bytes) -> bytes:
    """A little-endian TIFF of one page with LONG values. Strip and tile offsets of 0 become the offset of the data."""
    fields, extra = b"", b""
    start = 8 + 2 + 12 * len(tags) + 4
    offset_of_data = start + sum(4 * len(v) for v in tags.values() if not isinstance(v, int) and len(v) > 1)
    for tag, given in sorted(tags.items()):
        values = [given] if isinstance(given, int) else list(given)
        if tag in (273, 324):
            values = [value + offset_of_data for value in values]
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            packed, extra = struct.pack("<I", start + len(extra)), extra + packed
        fields += struct.pack("<HHI", tag, 4, len(values)) + packed
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + fields + bytes(4) + extra + data


def jpeg_size(blob: bytes, *, height: int = 0, width: int = 0, marker: int = 0, bits: int = 0) -> bytes:
    """Change the frame header of a JPEG."""
    data = bytearray(blob)
    at = next(i for i in range(len(data)) if data[i] == 0xFF and data[i + 1] in (0xC0, 0xC1, 0xC2))
    for offset, value, length in ((1, marker, 1), (4, bits, 1), (5, height, 2), (7, width, 2)):
        if value:
            data[at + offset : at + offset + length] = value.to_bytes(length, "big")
    return bytes(data)


def bombs(side: int = 30_000) -> dict[str, bytes]:
    """Small files that claim side x side pixels, by format."""
    rows = zlib.compress(bytes(1_000_000))
    size = struct.pack("<HH", side & 0xFFFF, side & 0xFFFF)
    bmp = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    canvas = (side - 1).to_bytes(3, "little")
    extended = b"VP8X" + struct.pack("<I", 10) + bytes([2, 0, 0, 0]) + canvas * 2
    animation = b"ANIM" + struct.pack("<I", 6) + bytes(6)
    webp = b"WEBP" + extended + animation
    frame = b"\xff\xc0" + struct.pack(">HBHHB", 11, 8, side, side, 1) + b"\1\x11\0"
    scan = b"\xff\xda" + struct.pack(">HB", 8, 1) + b"\1\0\0\x3f\0"
    return {
        "png": png((side, side, 8, 2, 0), rows),
        "png palette": png((side, side, 8, 3, 0), rows, (b"PLTE", bytes(768))),
        "jpeg": b"\xff\xd8" + frame + scan + bytes(5_000_000) + b"\xff\xd9",
        "jpeg without data": b"\xff\xd8" + frame + scan + bytes(100) + b"\xff\xd9",
        "gif": b"GIF89a" + size + b"\x80\0\0" + bytes(6) + b"," + bytes(4) + size + b"\0\x08" + b"\xff" * 300 + b"\0;",
        "bmp": b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + bmp + bytes(1000),
        "webp": b"RIFF" + struct.pack("<I", len(webp)) + webp,
        "tiff": tiff(_plain(side, side) | {259: 8, 279: len(rows)}, rows),
        "tiff tile": tiff(
            _plain(9, 9, 0) | {259: 8, 322: side // 16 * 16, 323: side // 16 * 16, 324: 0, 325: 99}, rows
        ),
    }


def _plain(width: int, height: int, strips: int = 1) -> dict[int, int | Sequence[int]]:
    tags: dict[int, int | Sequence[int]] = {256: width, 257: height, 258: 8, 262: 1, 277: 1}
    return tags | ({273: 0, 278: height} if strips else {})


def grey_tiff(width: int, height: int, bits: int, data: bytes, *, white_is_zero: bool = False) -> bytes:
    """Uncompressed grey TIFF."""
    return tiff(_plain(width, height) | {258: bits, 262: 0 if white_is_zero else 1, 259: 1, 279: len(data)}, data)


def tiled_tiff(width: int, height: int, tile: int, tiles: Sequence[bytes]) -> bytes:
    """Grey TIFF of 8 bits in uncompressed square tiles, row by row."""
    offsets = [i * tile * tile for i in range(len(tiles))]
    tags = _plain(width, height, 0) | {259: 1, 322: tile, 323: tile, 324: offsets, 325: [tile * tile] * len(tiles)}
    return tiff(tags, b"".join(tiles))

"""File name extensions of images, and integrity checks of JPEG and PNG files before decoding.

Decoders fill missing data with grey. JPEG checks detect a missing end-of-image marker, misplaced markers, missing
restart intervals, and scans with fewer bits than their blocks need. :func:`.decode.require_tail` detects data that end
early although all markers are present. Not detected: damaged data that still decode to the full number of blocks,
missing or truncated passes of a progressive image, and trailing data. JPEG has no checksums: about 1 % of changed bytes
in coded data are detected, and libjpeg would warn of less than 20 %. PNG chunks have checksums, all of which are
verified; decoders skip some.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from substyle.errors import ImageError

# file name extensions of images; if a tar sample has several, the first of these wins
IMAGE_KINDS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".mpo", ".avif", ".heic", ".heif")
EXTENSIONS = frozenset(IMAGE_KINDS)

JPEG_MAGIC = b"\xff\xd8\xff"
MAX_SCANS = 100  # progressive files have about ten; each costs a pass over the whole image

_SOF = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_PROGRESSIVE = 0xC2
_HUFFMAN_DCT = {0xC0, 0xC1, _PROGRESSIVE}
_SOS, _EOI, _DRI = 0xDA, 0xD9, 0xDD
_ALONE = {0x01, *range(0xD0, 0xD8)}  # TEM and RST0-7 have no length
_SEGMENTS = {0xC4, 0xCC, 0xDA, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0), *_SOF}
_MARKER = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)
_END_OF_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_MORE = bytes((37 * i + 11) % 251 for i in range(256))  # arbitrary bytes other than 0xFF


@dataclass(frozen=True)
class Jpeg:
    """Properties of a JPEG file from its markers.

    Attributes:
        height, width: px.
        components: 1 (grey), 3 or 4 (CMYK, YCCK).
        huffman: baseline, extended or progressive, with Huffman coding.
        common: decoded alike by all decoders: no stray bytes, chroma not larger than luma and at most halved.
        ends: end offset of the data of each scan.
    """

    height: int
    width: int
    components: int
    huffman: bool
    common: bool
    ends: tuple[int, ...]


@dataclass(frozen=True)
class _Part:
    marker: int
    body: bytes
    start: int  # of the coded data
    stop: int  # of the coded data; equal to start unless this is a scan
    tidy: bool  # no stray or fill bytes before it: libjpeg and Pillow skip these, DALI not always


@dataclass(frozen=True)
class _Frame:
    marker: int
    height: int
    width: int
    sampling: dict[int, tuple[int, int]]  # component: horizontal, vertical factor


def read_jpeg(blob: bytes) -> Jpeg:
    """Parse all markers up to the first end of an image.

    Raises:
        ImageError: truncated, damaged or unsupported; the message is the reason for quarantine.
    """
    frame: _Frame | None = None
    interval = 0
    tidy = True
    ends: list[int] = []
    for part in _parts(blob):
        tidy = tidy and part.tidy
        if part.marker in _SOF:
            if frame is not None:
                raise ImageError("damaged JPEG (more than one frame header)")
            frame = _frame(part)
        elif part.marker == _DRI:
            interval = int.from_bytes(part.body[:2], "big")
        elif part.marker == _SOS:
            if frame is None:
                raise ImageError("damaged JPEG (scan before the frame header)")
            if frame.marker in _HUFFMAN_DCT:
                _require_enough(frame, part, blob, interval)
            ends.append(part.stop)
            if len(ends) > MAX_SCANS:
                raise ImageError(f"JPEG with more than {MAX_SCANS} scans")
    if frame is None or not ends:
        raise ImageError("truncated JPEG (no image data)")
    return Jpeg(
        frame.height,
        frame.width,
        len(frame.sampling),
        huffman=frame.marker in _HUFFMAN_DCT,
        common=tidy and _common(list(frame.sampling.values())),
        ends=tuple(ends),
    )


def _parts(blob: bytes) -> Iterator[_Part]:
    """All segments and scans up to the first end of an image."""
    at = 2
    while (found := _MARKER.search(blob, at)) is not None:
        tidy = found.start() == at
        marker, at = blob[found.end() - 1], found.end()
        if marker == _EOI:
            return
        if marker in _ALONE:
            continue
        if marker not in _SEGMENTS:
            raise ImageError(f"damaged JPEG (unexpected marker {marker:02X})")
        start = stop = at + max(int.from_bytes(blob[at : at + 2], "big"), 2)
        if start > len(blob):
            raise ImageError("truncated JPEG (incomplete segment)")
        if marker == _SOS:
            end = _END_OF_SCAN.search(blob, start)
            stop = len(blob) if end is None else end.start()
        yield _Part(marker, blob[at + 2 : start], start, stop, tidy)
        at = stop
    raise ImageError("truncated JPEG (no end-of-image marker)")


def with_more_data(blob: bytes, jpeg: Jpeg) -> bytes:
    """Append bytes to every scan; a decoder that already has all blocks skips them."""
    cuts = (0, *jpeg.ends, len(blob))
    return _MORE.join(blob[a:b] for a, b in itertools.pairwise(cuts))


def _frame(part: _Part) -> _Frame:
    body = part.body
    if len(body) < 6 or len(body) < 6 + 3 * body[5]:
        raise ImageError("damaged JPEG (frame header too short)")
    bits, count = body[0], body[5]
    height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    if bits != 8:
        raise ImageError(f"{bits}-bit JPEG")
    if count not in (1, 3, 4):
        raise ImageError(f"JPEG with {count} components")
    sampling = {body[i]: (body[i + 1] >> 4, body[i + 1] & 15) for i in range(6, 6 + 3 * count, 3)}
    if len(sampling) != count or not all(1 <= factor <= 4 for pair in sampling.values() for factor in pair):
        raise ImageError("damaged JPEG (invalid components)")
    return _Frame(part.marker, height, width, sampling)


def _common(sampling: list[tuple[int, int]]) -> bool:
    if len(sampling) == 1:
        return True
    (across, down), *others = sampling
    return across <= 2 and down <= 2 and all(other == (1, 1) for other in others)


def _require_enough(frame: _Frame, scan: _Part, blob: bytes, interval: int) -> None:
    """Raise if a scan lacks restart intervals or bits: a block takes at least two, one in progressive passes.

    Progressive passes other than the first coefficient's may skip blocks and are not checked.
    """
    head = scan.body
    count = head[0] if head else 0
    if len(head) < 4 + 2 * count or not all(head[i] in frame.sampling for i in range(1, 1 + 2 * count, 2)):
        raise ImageError("damaged JPEG (invalid scan header)")
    units, blocks = _extent(frame, [frame.sampling[head[i]] for i in range(1, 1 + 2 * count, 2)])
    if interval and len(_RESTART.findall(blob, scan.start, scan.stop)) < -(-units // interval) - 1:
        raise ImageError("truncated JPEG (missing restart intervals)")
    progressive = frame.marker == _PROGRESSIVE
    first = head[1 + 2 * count] == 0
    if (not progressive or first) and (scan.stop - scan.start) * 8 < units * blocks * (1 if progressive else 2):
        raise ImageError("truncated JPEG (too few data for its size)")


def _extent(frame: _Frame, sampling: list[tuple[int, int]]) -> tuple[int, int]:
    """Number of coded units (MCUs) of a scan, and blocks per unit."""
    most = [max(pair[axis] for pair in frame.sampling.values()) for axis in (0, 1)]
    lengths = (frame.width, frame.height)
    if len(sampling) == 1:  # a unit is one block, whatever the component's sampling
        across, down = (-(-length * sampling[0][i] // (most[i] * 8)) for i, length in enumerate(lengths))
        return across * down, 1
    across, down = (-(-length // (most[i] * 8)) for i, length in enumerate(lengths))
    return across * down, sum(a * d for a, d in sampling)


PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PICTURE = (b"IHDR", b"IDAT", b"IEND")
_GREY, _RGB = 0, 2  # colour types
_SAMPLES = {_GREY: 1, _RGB: 3, 3: 1, 4: 2, 6: 4}  # per pixel by colour type; 3 is palette, 4 and 6 have alpha
# Adam7: left, top, step across, step down of every pass
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PIECE = 1 << 20  # bytes inflated at once


@dataclass(frozen=True)
class Png:
    """Properties of a PNG file from its chunks.

    Attributes:
        height, width: px.
        bits: bits per sample.
        color: PNG colour type.
        interlaced: stored in seven passes.
        names: types of all chunks.
        picture: start and end offset of every chunk that pixels depend on, except palettes.
    """

    height: int
    width: int
    bits: int
    color: int
    interlaced: bool
    names: frozenset[bytes]
    picture: tuple[tuple[int, int], ...]

    @property
    def eight_bits(self) -> bool:
        """Whether the image is grey or RGB without alpha, with 8 bits per sample."""
        return self.bits == 8 and self.color in (_GREY, _RGB)


def read_png(blob: bytes) -> Png:
    """Parse all chunks and verify their checksums.

    Raises:
        ImageError: truncated or damaged, in image data or elsewhere; the message is the reason for quarantine.
    """
    view = memoryview(blob)  # a slice of bytes would copy all image data
    at = len(PNG_MAGIC)
    names: set[bytes] = set()
    picture: list[tuple[int, int]] = []
    while b"IEND" not in names:
        length, name = int.from_bytes(blob[at : at + 4], "big"), blob[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(blob):
            raise ImageError("truncated PNG")
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(blob[end - 4 : end], "big"):
            raise ImageError(f"damaged PNG (checksum of {name.decode('latin-1')!r})")
        if (not names and (name, length) != (b"IHDR", 13)) or (name == b"IHDR" and names):
            raise ImageError("damaged PNG (missing or misplaced header)")
        names.add(name)
        if name in _PICTURE:
            picture.append((at, end))
        at = end
    if b"IDAT" not in names:
        raise ImageError("truncated PNG (no image data)")
    width, height = int.from_bytes(blob[16:20], "big"), int.from_bytes(blob[20:24], "big")
    if blob[25] not in _SAMPLES:
        raise ImageError(f"PNG with unknown colour type {blob[25]}")
    return Png(height, width, blob[24], blob[25], blob[28] != 0, frozenset(names), tuple(picture))


def picture_only(blob: bytes, png: Png) -> bytes:
    """Remove chunks that pixels do not depend on: transparency, colour profiles, text, animation frames.

    Decoders print warnings about odd ones. For an animation with a separate default image, DALI would decode the first
    frame; Pillow, timm and open_clip use the default image.
    """
    if png.names <= set(_PICTURE):
        return blob
    return PNG_MAGIC + b"".join(blob[start:end] for start, end in png.picture)


def require_rows(blob: bytes, png: Png) -> None:
    """Raise if the compressed data hold too few rows, which Pillow would fill with black.

    Raises:
        ImageError: rows are missing, or the data cannot be decompressed.
    """
    missing = sum(
        -(-(png.height - top) // down) * (1 + -(-(-(-(png.width - left) // across) * _pixel_bits(png)) // 8))
        for left, top, across, down in (_PASSES if png.interlaced else ((0, 0, 1, 1),))
        if png.width > left and png.height > top
    )
    inflate = zlib.decompressobj()
    try:
        for start, end in png.picture:
            if blob[start + 4 : start + 8] != b"IDAT":
                continue
            data = blob[start + 8 : end - 4]
            while data and missing > 0:
                missing -= len(inflate.decompress(data, _PIECE))
                data = inflate.unconsumed_tail
    except zlib.error as error:
        raise ImageError(f"damaged PNG ({error})") from error
    if missing > 0 and missing > len(inflate.flush()):
        raise ImageError("truncated PNG (missing rows)")


def _pixel_bits(png: Png) -> int:
    return png.bits * _SAMPLES[png.color]

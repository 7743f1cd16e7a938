"""The chunks of a PNG file, all of whose checksums are held: decoders skip some of them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from substyle.kernels.errors import ImageError

MAGIC = b"\x89PNG\r\n\x1a\n"
_PICTURE = (b"IHDR", b"IDAT", b"IEND")
_GREY, _RGB = 0, 2  # colour types
_SAMPLES = {_GREY: 1, _RGB: 3, 3: 1, 4: 2, 6: 4}  # by colour type: palette, and those with alpha
# Adam7: left, top, step across, step down of every pass
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PIECE = 1 << 20  # bytes inflated at once


@dataclass(frozen=True)
class Png:
    """What the chunks say.

    Attributes:
        height, width: px.
        bits: of a sample; color: PNG's colour type.
        interlaced: stored in seven passes.
        names: of all kinds of chunks in the file.
        picture: first and last offset of every chunk that pixels depend on, but for palettes.
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
        """Grey or RGB without alpha, 8 bits a sample."""
        return self.bits == 8 and self.color in (_GREY, _RGB)


def read(blob: bytes) -> Png:
    """Walk over all chunks up to the last.

    Raises:
        ImageError: cut off or damaged, in picture data or elsewhere; the message is the reason for quarantine.
    """
    view = memoryview(blob)  # a slice of bytes would copy all picture data
    at = len(MAGIC)
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
            raise ImageError("damaged PNG (no header where it should be)")
        names.add(name)
        if name in _PICTURE:
            picture.append((at, end))
        at = end
    if b"IDAT" not in names:
        raise ImageError("truncated PNG (no picture data)")
    width, height = int.from_bytes(blob[16:20], "big"), int.from_bytes(blob[20:24], "big")
    if blob[25] not in _SAMPLES:
        raise ImageError(f"PNG of unknown colour type {blob[25]}")
    return Png(height, width, blob[24], blob[25], blob[28] != 0, frozenset(names), tuple(picture))


def picture_only(blob: bytes, png: Png) -> bytes:
    """The file without chunks that pixels do not depend on: transparency, colour profiles, text, further frames.

    Decoders warn of odd ones on the terminal, and DALI takes the first frame of an animation for the picture where a
    picture of its own is there; Pillow, timm and open_clip take that.
    """
    if png.names <= set(_PICTURE):
        return blob
    return MAGIC + b"".join(blob[start:end] for start, end in png.picture)


def require_rows(blob: bytes, png: Png) -> None:
    """Raise if the compressed data are whole but hold fewer rows than the picture has: Pillow makes the rest black.

    Raises:
        ImageError: rows are missing, or the data cannot be inflated.
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
        raise ImageError("truncated PNG (rows are missing)")


def _pixel_bits(png: Png) -> int:
    return png.bits * _SAMPLES[png.color]

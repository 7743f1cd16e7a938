"""What an encoded image says of itself before its pixels are decoded."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from substyle.kernels.errors import ImageError

MAX_PIXELS = 100_000_000  # 300 MB as RGB; larger ones are taken for decompression bombs

# What Pillow raises for bytes that are no proper image.
PILLOW_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, TypeError, OverflowError, LookupError, AttributeError, MemoryError),
    *(AssertionError, NotImplementedError, RuntimeError, struct.error, zlib.error, Image.DecompressionBombError),
)

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # the limit here is checked first


@dataclass(frozen=True)
class Header:
    """Size of an image in pixels and whether DALI decodes its kind exactly as Pillow does."""

    height: int
    width: int
    for_dali: bool


def inspect(blob: bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """Read an image's header.

    Raises:
        ImageError: not an image, cut off, or more pixels than allowed; the message is the reason for quarantine.
    """
    if not blob:
        raise ImageError("empty file")
    try:
        with Image.open(io.BytesIO(blob)) as image:
            (width, height), mode, kind = image.size, image.mode, image.format
    except Image.DecompressionBombError as error:
        raise ImageError(f"more than {max_pixels} pixels") from error
    except UnidentifiedImageError as error:
        raise ImageError("not an image of a known format") from error
    except PILLOW_ERRORS as error:
        raise ImageError(f"broken header ({error})") from error
    if width * height > max_pixels:
        raise ImageError(f"{width} x {height} pixels, more than {max_pixels}")
    if min(width, height) < 1:
        raise ImageError(f"{width} x {height} pixels")
    jpeg = kind in ("JPEG", "MPO")
    if jpeg and not _jpeg_is_whole(blob):
        raise ImageError("truncated JPEG (no end-of-image marker)")
    eight_bits = jpeg or (kind == "PNG" and blob[24] == 8)
    return Header(height, width, for_dali=eight_bits and mode in ("RGB", "L"))


def _jpeg_is_whole(blob: bytes) -> bool:
    """Whether the picture's data end with an end-of-image marker; that of a thumbnail in the header does not count.

    Decoders fill what is missing with grey instead of failing, so this must be known before.
    """
    at = 2
    while at + 4 <= len(blob) and blob[at] == 0xFF:
        marker = blob[at + 1]
        if marker == 0xDA:  # start of scan
            return blob.rfind(b"\xff\xd9", at) >= 0
        # Fill bytes and the markers without a length (RST, SOI, TEM) are one byte or two bytes long.
        bare = marker == 0xFF or 0xD0 <= marker <= 0xD8 or marker == 0x01
        at += (1 if marker == 0xFF else 2) if bare else 2 + int.from_bytes(blob[at + 2 : at + 4], "big")
    return blob.rfind(b"\xff\xd9", max(0, len(blob) - 64)) >= 0  # odd segments: trust an end that is near the end

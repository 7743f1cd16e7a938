"""Format, size and EXIF orientation of encoded images, read before decoding pixels.

JPEG and PNG files are parsed by :mod:`.image_formats`, other formats are opened by Pillow. The size is checked against
the limit before any allocation proportional to it. Truncated files and any changed byte of a PNG are detected. Other
formats have no checksums: a changed byte is detected if it breaks a header, a marker or the end of the data; otherwise
pixels are wrong.
"""

from __future__ import annotations

import dataclasses
import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from substyle.errors import ImageError
from substyle.pipelines import image_formats

if TYPE_CHECKING:
    import torch

Orientation = Literal["ignore", "apply"]
ORIENTATIONS: tuple[Orientation, ...] = ("ignore", "apply")
CROP_PCT = 0.875  # part of the shorter side that a canvas shows, as torchvision's and timm's evaluation of 224 px
UPRIGHT = 1

_TAG = 0x0112
# (transpose, reverse rows, reverse columns) by EXIF orientation; transposed last
_TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}
# raised by Pillow for unreadable EXIF data
_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)

Interval = tuple[float, float]
Picture = TypeVar("Picture", NDArray[np.uint8], "torch.Tensor")


def of(image: Image.Image) -> int:
    """EXIF orientation as in Pillow's ``exif_transpose``, 1 to 8; 1 if unreadable."""
    try:
        value = image.getexif().get(_TAG, UPRIGHT)
    except _ERRORS:
        return UPRIGHT
    return value if isinstance(value, int) and value in _TURNS else UPRIGHT


def upright_size(height: int, width: int, orientation: int) -> tuple[int, int]:
    """Height and width of the upright image from those of the stored one, or the reverse."""
    return (width, height) if _TURNS[orientation][0] else (height, width)


def stored(rows: Interval, columns: Interval, size: tuple[int, int], orientation: int) -> tuple[Interval, Interval]:
    """Map a part of the upright image to the stored one.

    Args:
        rows, columns: first and last row and column of the part, upright px.
        size: height and width of the stored image in px.
        orientation: EXIF orientation, 1 to 8.

    Returns:
        rows and columns in the stored image.
    """
    exchanged, *reversed_ = _TURNS[orientation]
    intervals = (columns, rows) if exchanged else (rows, columns)
    turned = [
        (max(length - last, 0.0), length - first) if flip else (first, last)
        for (first, last), length, flip in zip(intervals, size, reversed_, strict=True)
    ]
    return turned[0], turned[1]


def turn(picture_HWC: Picture, orientation: int) -> Picture:
    """Apply an EXIF orientation to a stored image; arrays are returned as views. Commutes with resampling."""
    exchanged, rows, columns = _TURNS[orientation]
    if isinstance(picture_HWC, np.ndarray):
        picture_HWC = picture_HWC[:: -1 if rows else 1, :: -1 if columns else 1]
        return picture_HWC.transpose(1, 0, 2) if exchanged else picture_HWC
    upright = picture_HWC.flip([axis for axis, reverse in enumerate((rows, columns)) if reverse])
    return upright.transpose(0, 1) if exchanged else upright


MAX_PIXELS = 100_000_000  # 300 MB as RGB; larger images are treated as decompression bombs
# Pillow's other formats are rare for photographs, and PostScript starts a program
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")

# raised by Pillow for invalid images
PILLOW_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, AttributeError, MemoryError, ArithmeticError),
    *(AssertionError, NotImplementedError, RuntimeError, struct.error, zlib.error, Image.DecompressionBombError),
)

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MAX_PIXELS is checked first
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # about metadata that pixels do not depend on

_TILE_WIDTH, _TILE_LENGTH = 322, 323  # TIFF tags
_LONGEST_REASON = 120  # characters kept of a library's message


@dataclass(frozen=True)
class ImageHeader:
    """Properties of an image known before decoding.

    Attributes:
        height, width: px; of the upright image if orientation is applied.
        orientation: EXIF orientation still to be applied to the stored image, 1 to 8.
        for_dali: bytes for DALI, or None if DALI does not decode the image as Pillow does.
        markers: properties of a JPEG.
        chunks: properties of a PNG.
    """

    height: int
    width: int
    orientation: int = UPRIGHT
    for_dali: bytes | None = None
    markers: image_formats.Jpeg | None = None
    chunks: image_formats.Png | None = None

    @property
    def stored(self) -> tuple[int, int]:
        """Height and width of the stored image in px."""
        return upright_size(self.height, self.width, self.orientation)


def inspect(blob: bytes, max_pixels: int = MAX_PIXELS, *, upright: bool = False) -> ImageHeader:
    """Read an image's header.

    Args:
        blob: the encoded image.
        max_pixels: limit on the number of pixels.
        upright: read the EXIF orientation. Pillow applies it to TIFF files itself, which always report 1.

    Raises:
        ImageError: not an image, truncated, damaged or too large; the message is the reason.
    """
    if not blob:
        raise ImageError("empty file")
    if blob.startswith(image_formats.JPEG_MAGIC):
        markers = image_formats.read_jpeg(blob)
        _check(markers.height, markers.width, max_pixels)
        alike = markers.huffman and markers.common and markers.components != 4
        header = ImageHeader(markers.height, markers.width, for_dali=blob if alike else None, markers=markers)
    elif blob.startswith(image_formats.PNG_MAGIC):
        chunks = image_formats.read_png(blob)
        _check(chunks.height, chunks.width, max_pixels)
        kept = image_formats.picture_only(blob, chunks) if chunks.eight_bits else None
        header = ImageHeader(chunks.height, chunks.width, for_dali=kept, chunks=chunks)
        upright = upright and (b"eXIf" in chunks.names or b"tiff:Orientation" in blob or b"Raw profile" in blob)
    else:
        header = _by_pillow(blob, max_pixels)
        upright = upright and not blob.startswith((b"II", b"MM"))
    return _turned(header, blob) if upright else header


def open_image(blob: bytes) -> Image.Image:
    """Open an image with Pillow without decoding its pixels.

    Raises:
        ImageError: unknown format or broken header.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # some libraries enable it, which fills missing rows with grey
    try:
        return Image.open(io.BytesIO(blob), formats=("AVIF", *_heif()) if blob[4:8] == _CONTAINER else FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels") from error
    except UnidentifiedImageError as error:
        if blob[4:8] == _CONTAINER and blob[8:12] in _HEIF_BRANDS and not _heif():
            raise ImageError("HEIC, which needs the extra heif") from error
        known = next((name for magic, name in _MAGIC if blob.startswith(magic)), None)
        raise ImageError(f"broken {known} header" if known else "not an image of a known format") from error
    except PILLOW_ERRORS as error:
        raise ImageError(f"broken header ({short(error)})") from error


@cache
def _heif() -> tuple[str, ...]:
    """Register the reader of HEIC files if it is installed; its name for Pillow."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return ()
    register_heif_opener()
    return ("HEIF",)


def short(error: BaseException) -> str:
    """The message of a library's error on one short, printable line."""
    text = " ".join(str(error).split())[:_LONGEST_REASON]
    return "".join(c if c.isprintable() else "?" for c in text) or type(error).__name__


_CONTAINER = b"ftyp"  # of AVIF and HEIC, after the length of the box
_HEIF_BRANDS = (b"heic", b"heix", b"mif1", b"heim", b"heis", b"hevc", b"hevx", b"msf1")
_MAGIC = (
    *(
        (image_formats.JPEG_MAGIC, "JPEG"),
        (image_formats.PNG_MAGIC, "PNG"),
        (b"GIF8", "GIF"),
        (b"RIFF", "WebP"),
        (b"BM", "BMP"),
    ),
    *((b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"II+\0", "TIFF"), (b"MM\0+", "TIFF")),
)


def _by_pillow(blob: bytes, max_pixels: int) -> ImageHeader:
    size = _webp_size(blob)
    if size is not None:  # the decoder allocates the image on opening
        _check(*size, max_pixels)
    with open_image(blob) as image:
        _check(image.height, image.width, max_pixels)
        tags = getattr(image, "tag_v2", {})
        tile = tags.get(_TILE_WIDTH, 1), tags.get(_TILE_LENGTH, 1)
        if not all(isinstance(length, int) for length in tile):
            raise ImageError("broken TIFF header (tile size)")
        if tile[0] * tile[1] > max_pixels:
            raise ImageError(f"TIFF with tiles of {tile[0]} x {tile[1]} pixels, more than {max_pixels}")
        return ImageHeader(image.height, image.width)


def _check(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise ImageError(f"{width} x {height} pixels, more than {max_pixels}")
    if min(height, width) < 1:
        raise ImageError(f"{width} x {height} pixels")


def _webp_size(blob: bytes) -> tuple[int, int] | None:
    """Height and width of a WebP canvas in px; None for other files and for those that end in the header.

    Raises:
        ImageError: the file is shorter than its header declares.
    """
    if blob[:4] != b"RIFF" or blob[8:12] != b"WEBP" or len(blob) < 30:
        return None
    if int.from_bytes(blob[4:8], "little") + 8 > len(blob):
        raise ImageError("truncated WebP")
    kind = blob[12:16]
    if kind == b"VP8X":
        return int.from_bytes(blob[27:30], "little") + 1, int.from_bytes(blob[24:27], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(blob[21:25], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    return int.from_bytes(blob[28:30], "little") & 0x3FFF, int.from_bytes(blob[26:28], "little") & 0x3FFF


def _turned(header: ImageHeader, blob: bytes) -> ImageHeader:
    try:
        with open_image(blob) as image:
            turn = of(image)
    except ImageError:
        return header  # DALI may still decode it
    height, width = upright_size(header.height, header.width, turn)
    return dataclasses.replace(header, height=height, width=width, orientation=turn)

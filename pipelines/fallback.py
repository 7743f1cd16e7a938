"""Pillow decodes what DALI does not: 16-bit, CMYK, palette and animated images, broken tables."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from substyle.kernels.errors import ImageError
from substyle.pipelines import jpeg, png
from substyle.pipelines.header import PILLOW_ERRORS, Header, open_image, short

Box = tuple[float, float, float, float]

_BITS, _PHOTOMETRIC = 258, 262  # TIFF tags
_WHITE_IS_ZERO = 0


def decode(blob: bytes, head: Header, side: int, box: Box) -> NDArray[np.uint8]:
    """The first frame of an image: ``box`` (left, top, right, bottom in stored px) of it, resized (antialiased cubic).

    Returns:
        (S, S, 3) uint8, not turned.

    Raises:
        ImageError: the image cannot be decoded; the message is the reason for quarantine.
    """
    with _loaded(blob) as image:
        if (image.height, image.width) != head.stored:
            raise ImageError(f"{image.width} x {image.height} pixels, other than its header says")
        if head.markers is not None and grey(np.asarray(image.getpixel((image.width - 1, image.height - 1)))):
            require_tail(blob, head.markers)
        if head.chunks is not None and (head.chunks.interlaced or not _last_row(image).any()):
            png.require_rows(blob, head.chunks)
        try:
            rgb = _rgb(image)
            return np.asarray(rgb.resize((side, side), Image.Resampling.BICUBIC, box=box))
        except PILLOW_ERRORS as error:
            raise _refused(error) from error


def grey(pixel_C: NDArray[np.integer]) -> bool:
    """Whether the last pixel of a JPEG is what decoders fill missing blocks with: 128 in every channel."""
    return bool(np.abs(pixel_C.astype(np.int64) - 128).max() <= 1)


def require_tail(blob: bytes, markers: jpeg.Jpeg) -> None:
    """Raise if the data of a JPEG run out before its picture is complete: then further data change the picture.

    Decoders warn on the terminal at most and fill the rest with grey. This decodes twice, so it is for pictures that
    end in such grey only. Arithmetic coding may leave off trailing zeros, so that nothing can be told of it.

    Raises:
        ImageError: the data run out early.
    """
    if not markers.huffman:
        return
    digests = set()
    for data in (blob, jpeg.with_more_data(blob, markers)):
        with _loaded(data) as image:
            digests.add(hashlib.blake2b(image.tobytes()).digest())
    if len(digests) > 1:
        raise ImageError("truncated JPEG (the data end before the picture does)")


def _loaded(blob: bytes) -> Image.Image:
    image = open_image(blob)
    try:
        image.load()
    except PILLOW_ERRORS as error:
        raise _refused(error) from error
    return image


def _last_row(image: Image.Image) -> NDArray[np.generic]:
    return np.asarray(image.crop((0, image.height - 1, image.width, image.height)))


def _refused(error: BaseException) -> ImageError:
    return ImageError(f"cannot be decoded ({short(error)})")


def _rgb(image: Image.Image) -> Image.Image:
    """Three channels of 8 bits. Transparency is dropped, as timm and open_clip do."""
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips at 255
        tags = getattr(image, "tag_v2", {})
        bits, zero = tags.get(_BITS, (16,)), tags.get(_PHOTOMETRIC, 1)
        if bits != (16,) or zero == _WHITE_IS_ZERO:
            raise ImageError(f"grey pixels of {bits[0]} bits{', white as zero' if zero == _WHITE_IS_ZERO else ''}")
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(f"pixels of mode {image.mode} have no known range")
    return image.convert("RGB")

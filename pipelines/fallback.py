"""Pillow decodes what DALI does not: 16-bit, CMYK, palette and animated images, broken tables."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from substyle.kernels.errors import ImageError
from substyle.pipelines.header import PILLOW_ERRORS

Box = tuple[float, float, float, float]


def decode(blob: bytes, side: int, box: Box) -> NDArray[np.uint8]:
    """The first frame of an image: ``box`` (left, top, right, bottom in source px) of it, resized (antialiased cubic).

    Returns:
        (S, S, 3) uint8.

    Raises:
        ImageError: the image cannot be decoded; the message is the reason for quarantine.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # some libraries turn it on: missing rows would become grey
    try:
        with Image.open(io.BytesIO(blob)) as image:
            image.load()
            rgb = _rgb(image)
            return np.asarray(rgb.resize((side, side), Image.Resampling.BICUBIC, box=box))
    except PILLOW_ERRORS as error:
        text = " ".join(str(error).split())[:120]
        raise ImageError(f"cannot be decoded ({text or type(error).__name__})") from error


def _rgb(image: Image.Image) -> Image.Image:
    """Three channels of 8 bits. Transparency is dropped, as timm and open_clip do."""
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips at 255
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(f"pixels of mode {image.mode} have no known range")
    return image.convert("RGB")

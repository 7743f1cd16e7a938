"""EXIF orientation: how a stored picture is turned to stand upright."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

ORIENTATIONS = ("ignore", "apply")
UPRIGHT = 1

_TAG = 0x0112
# Orientation: are rows and columns exchanged, after the stored rows, the stored columns have been reversed?
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
# What Pillow raises for EXIF data that it cannot read.
_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)

Interval = tuple[float, float]
Picture = TypeVar("Picture", NDArray[np.uint8], torch.Tensor)


def of(image: Image.Image) -> int:
    """The orientation that Pillow's ``exif_transpose`` would follow, 1 to 8; unreadable EXIF data say nothing."""
    try:
        value = image.getexif().get(_TAG, UPRIGHT)
    except _ERRORS:
        return UPRIGHT
    return value if isinstance(value, int) and value in _TURNS else UPRIGHT


def upright_size(height: int, width: int, orientation: int) -> tuple[int, int]:
    """Height and width of the upright picture, from those of the stored one; and the other way round."""
    return (width, height) if _TURNS[orientation][0] else (height, width)


def stored(rows: Interval, columns: Interval, size: tuple[int, int], orientation: int) -> tuple[Interval, Interval]:
    """Where a part of the upright picture lies in the stored one.

    Args:
        rows, columns: first and last of the part, upright px.
        size: height and width of the stored picture in px.
        orientation: EXIF orientation, 1 to 8.

    Returns:
        Rows and columns in the stored picture.
    """
    exchanged, *reversed_ = _TURNS[orientation]
    intervals = (columns, rows) if exchanged else (rows, columns)
    turned = [
        (max(length - last, 0.0), length - first) if flip else (first, last)
        for (first, last), length, flip in zip(intervals, size, reversed_, strict=True)
    ]
    return turned[0], turned[1]


def turn(picture_HWC: Picture, orientation: int) -> Picture:
    """A stored picture, upright; an array is turned as a view. Resampling before this and after it gives the same."""
    exchanged, rows, columns = _TURNS[orientation]
    if isinstance(picture_HWC, torch.Tensor):
        upright = picture_HWC.flip([axis for axis, reverse in enumerate((rows, columns)) if reverse])
        return upright.transpose(0, 1) if exchanged else upright
    picture_HWC = picture_HWC[:: -1 if rows else 1, :: -1 if columns else 1]
    return picture_HWC.transpose(1, 0, 2) if exchanged else picture_HWC

"""Decode a photograph to an (S, S, 3) uint8 canvas with other libraries: shorter side to 8/7 S, centre crop."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

cv2.setNumThreads(1)  # the parallelism is over workers


def pillow(blob: bytes, side: int) -> NDArray[np.uint8]:
    """Pillow, bicubic, antialiased."""
    picture = Image.open(io.BytesIO(blob)).convert("RGB")
    width, height = _resized(*picture.size, side)
    left, top = (width - side) // 2, (height - side) // 2
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + side, top + side)))


def torchvision(blob: bytes, side: int) -> NDArray[np.uint8]:
    """torchvision on bytes, bicubic, antialiased."""
    picture = decode_image(torch.frombuffer(bytearray(blob), dtype=torch.uint8), ImageReadMode.RGB)
    resized = tv.resize(picture, [round(side * 8 / 7)], InterpolationMode.BICUBIC, antialias=True)
    return np.ascontiguousarray(tv.center_crop(resized, [side, side]).numpy().transpose(1, 2, 0))


def opencv(blob: bytes, side: int) -> NDArray[np.uint8]:
    """OpenCV, which antialiases only by area averaging."""
    picture = cv2.imdecode(np.frombuffer(blob, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if picture is None:
        raise ValueError("not decoded")
    width, height = _resized(picture.shape[1], picture.shape[0], side)
    how = cv2.INTER_AREA if width < picture.shape[1] else cv2.INTER_CUBIC
    left, top = (width - side) // 2, (height - side) // 2
    resized = cv2.resize(picture, (width, height), interpolation=how)
    return np.ascontiguousarray(resized[top : top + side, left : left + side])


def _resized(width: int, height: int, side: int) -> tuple[int, int]:
    short = round(side * 8 / 7)
    return short * width // min(width, height), short * height // min(width, height)


ALL: dict[str, Callable[[bytes, int], NDArray[Any]]] = {"Pillow": pillow, "torchvision": torchvision, "OpenCV": opencv}

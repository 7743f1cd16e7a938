"""Quality transformations against Pillow, which uses the same codec and filters."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Make = Callable[..., tuple[NDArray[np.uint8], dict[str, NDArray[Any]]]]
BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC


def test_jpeg_is_what_pillow_saves(canvas: NDArray[np.uint8], make: Make) -> None:
    made, drawn = make("jpeg", canvas)
    for image, result, quality in zip(canvas, made, drawn["quality"], strict=True):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=int(quality))
        # Bit-identical with the JPEG library of the wheels; another build may round differently.
        difference = np.abs(result.astype(int) - np.asarray(Image.open(file)))
        assert difference.mean() <= 0.5


def test_pixelate(canvas: NDArray[np.uint8], make: Make) -> None:
    made, drawn = make("pixelate", canvas)
    side = canvas.shape[1]
    for image, result, scale in zip(canvas, made, drawn["scale"], strict=True):
        small = int(np.rint(scale * side))
        reduced = np.asarray(Image.fromarray(image).resize((small, small), BILINEAR))
        at = (np.arange(side) + 0.5) * small / side
        clear = np.abs(at - np.rint(at)) > 1e-3  # a pixel centre on the border of two cells may be assigned to either
        index = np.floor(at[clear]).astype(int)
        difference = np.abs(result[clear][:, clear].astype(int) - reduced[index][:, index])
        inner = (index > 0) & (index < small - 1)
        assert difference[inner][:, inner].max() <= 1
        assert difference.max() <= 20  # at borders DALI replicates the last pixel, Pillow renormalises the weights


def test_low_resolution(canvas: NDArray[np.uint8], make: Make) -> None:
    made, drawn = make("low_resolution", canvas)
    side = canvas.shape[1]
    for image, result, scale in zip(canvas, made, drawn["scale"], strict=True):
        small = int(np.rint(scale * side))
        expected = Image.fromarray(image).resize((small, small), BICUBIC).resize((side, side), BICUBIC)
        difference = np.abs(result.astype(int) - np.asarray(expected))
        border = 3 * side // small + 1  # where either filter reaches beyond the image
        assert difference[border:-border, border:-border].max(initial=0) <= 8  # Pillow rounds after each pass
        assert difference.max() <= 20
        assert difference.mean() <= 1

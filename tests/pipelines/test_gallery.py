"""The gallery: one image with all variants."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from substyle.errors import ImageError
from substyle.pipelines import variants


def photograph() -> bytes:
    y, x = np.mgrid[0:80, 0:120]
    image = np.stack([x * 2, y * 3, (x + y)], axis=2).clip(0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def test_gallery_holds_every_variant(tmp_path: Path) -> None:
    names = ("identity", "gaussian_blur", "motion_blur", "jpeg", "grayscale")
    made = variants.variants_of(photograph(), names, side=48)
    assert tuple(made) == names
    file = tmp_path / "variants.png"
    variants.draw(made, {"jpeg": "JPEG"}, file, columns=1)
    sheet = np.asarray(Image.open(file))
    windows = np.lib.stride_tricks.sliding_window_view(sheet, (48, 48, 3))[:, variants.LABEL, 0]
    for name, image in made.items():
        assert any(np.array_equal(window, image) for window in windows), name


def test_an_image_that_cannot_be_decoded(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"^p\.jpg: "):
        variants.variants_of(b"hello", ("identity",), key="p.jpg")

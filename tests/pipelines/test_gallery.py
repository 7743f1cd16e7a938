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


def test_rows_follow_the_kind_classes(tmp_path: Path) -> None:
    made = variants.variants_of(photograph(), ("jpeg", "identity", "pixelate", "low_resolution"), side=32)
    heights = []
    for columns in (5, 2):
        variants.draw(made, None, tmp_path / "g.png", columns=columns)
        heights.append(Image.open(tmp_path / "g.png").height)
    row = 32 + variants.GAP + variants.CAPTION
    assert heights == [2 * row + variants.GAP, 3 * row + variants.GAP]  # identity; quality on one or two rows


def test_an_image_that_cannot_be_decoded(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"^p\.jpg: "):
        variants.variants_of(b"hello", ("identity",), key="p.jpg")


def test_test_photographs_have_the_overlays_of_their_split() -> None:
    blob, names = photograph(), ("identity", "icon_overlay")
    maker = variants.VariantMaker(names, side=48, seed=0, batch=1, threads=1)
    canvas = variants.Decoder(48, 1, 1)([blob]).canvas_BSSC
    for test in (False, True):
        shown = variants.variants_of(blob, names, key="k", side=48, test=test)
        expected = {each.name: each.pixels_BSSC[0].numpy() for each in maker(canvas, ["k"], np.array([test]))}
        np.testing.assert_array_equal(shown["icon_overlay"], expected["icon_overlay"])

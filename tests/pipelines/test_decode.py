"""Decoding against Pillow, and invalid images.

Tolerance of the canvas to Pillow's decode, bicubic resize and centre crop: mean 0.35 grey levels, 99.5 % within 3,
maximum 16 (Pillow rounds and clips to bytes between its two passes, DALI does not).
"""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile
from tests.conftest import slow_after
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from substyle.errors import ConfigError
from substyle.pipelines import decode, image_header
from substyle.pipelines.decode import Decoder


def scene(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = 120 + 60 * np.sin(9 * x[..., None] + rng.uniform(0, 6, 3)) + 50 * np.cos(7 * y[..., None] + [0, 1, 2])
    waves[np.hypot(y - 0.3, x - 0.4) < 0.1] = (220, 30, 40)
    return np.clip(waves + rng.normal(0, 4, waves.shape), 0, 255).astype(np.uint8)


def encode(image: NDArray[np.generic] | Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(out, kind, **options)
    return out.getvalue()


def reference(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """Resize the shorter side to 8/7 S and crop the centre, as torchvision and timm do with Pillow."""
    short = round(side * 8 / 7)
    width, height = image.size
    size = (short, short * height // width) if width <= height else (short * width // height, short)
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    resized = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + side, top + side)))


def assert_close(canvas: torch.Tensor, expected: NDArray[np.uint8]) -> None:
    difference = np.abs(canvas.numpy().astype(int) - expected)
    assert difference.mean() <= 0.35
    assert np.quantile(difference, 0.995) <= 3
    assert difference.max() <= 16


@pytest.mark.parametrize("side", slow_after(1, [224, 64]))
@pytest.mark.parametrize(
    ("height", "width"),
    [(224, 224), (300, 200), (201, 333), (64, 900), (1200, 70), (40, 40), (7, 9), (256, 256), (1000, 1500)],
)
def test_canvas_is_pillows(side: int, height: int, width: int) -> None:
    for blob in (encode(scene(height, width), quality=90), encode(scene(height, width), "PNG")):
        decoded = Decoder(side, 4, 2)([blob])
        assert decoded.ok_B.tolist() == [True]
        assert decoded.size_B2.tolist() == [[height, width]]
        assert_close(decoded.canvas_BSSC[0], reference(Image.open(io.BytesIO(blob)), side))


@pytest.mark.parametrize("crop_pct", [0.5, 0.95, 1.0])
@pytest.mark.parametrize(("height", "width"), [(201, 333), (64, 64), (40, 32)])
def test_the_part_that_a_canvas_shows_is_torchvisions(height: int, width: int, crop_pct: float) -> None:
    for blob in (encode(scene(height, width), quality=90), encode(scene(height, width), "PNG")):
        decoded = Decoder(96, 4, 2, crop_pct=crop_pct)([blob])
        image = Image.open(io.BytesIO(blob)).convert("RGB")
        resized = resize(image, [round(96 / crop_pct)], InterpolationMode.BICUBIC)
        assert_close(decoded.canvas_BSSC[0], np.asarray(center_crop(resized, [96, 96])))


@pytest.mark.parametrize("crop_pct", [0.0, 1.01, float("nan")])
def test_impossible_parts_are_refused(crop_pct: float) -> None:
    with pytest.raises(ConfigError) as caught:
        Decoder(96, 1, 1, crop_pct=crop_pct)
    assert caught.value.field == "crop_pct"


@pytest.mark.parametrize("folder", ["imagenette", "imagenet_samples", "chest_xray"])
def test_canvas_of_real_photographs(shared: Path, folder: str) -> None:
    files = sorted(f for f in (shared / folder).rglob("*") if f.suffix.lower() in {".jpg", ".jpeg"})
    blobs = [f.read_bytes() for f in files[:: max(1, len(files) // 16)]][:16]
    decoded = Decoder(224, 16, 2)(blobs)
    assert decoded.ok_B.all()
    for blob, canvas in zip(blobs, decoded.canvas_BSSC, strict=True):
        assert_close(canvas, reference(Image.open(io.BytesIO(blob)), 224))


def test_awkward_files(shared: Path) -> None:
    files = sorted((shared / "hard").iterdir())
    decoder = Decoder(224, 16, 2)
    bad = {}
    for start in range(0, len(files), 16):
        blobs = [f.read_bytes() for f in files[start : start + 16]]
        decoded = decoder(blobs)
        for file, blob, canvas, reason in zip(
            files[start : start + 16], blobs, decoded.canvas_BSSC, decoded.reasons, strict=True
        ):
            if reason is not None:
                bad[file.name] = reason
            elif min(Image.open(io.BytesIO(blob)).size) > 4:
                assert_close(canvas, reference(Image.open(io.BytesIO(blob)), 224))  # so EXIF has no effect
    assert list(bad) == ["truncated_jpeg.jpg"]
    assert "truncated" in bad["truncated_jpeg.jpg"]


def kinds() -> dict[str, bytes]:
    image = Image.fromarray(scene(90, 120))
    grey = np.asarray(image.convert("L"))
    return {
        "jpeg": encode(image),
        "progressive": encode(image, progressive=True),
        "grey jpeg": encode(image.convert("L")),
        "cmyk jpeg": encode(image.convert("CMYK")),
        "exif jpeg": encode(image, exif=_turned()),
        "png": encode(image, "PNG"),
        "grey png": encode(image.convert("L"), "PNG"),
        "16-bit png": encode(grey.astype(np.uint16) * 257, "PNG"),
        "rgba png": encode(image.convert("RGBA"), "PNG"),
        "la png": encode(image.convert("LA"), "PNG"),
        "palette png": encode(image.convert("P"), "PNG"),
        "1-bit png": encode(image.convert("1"), "PNG"),
        "gif": encode(image, "GIF", save_all=True, append_images=[Image.new("RGB", image.size)]),
        "webp": encode(image, "WEBP"),
        "bmp": encode(image, "BMP"),
        "tiff": encode(image, "TIFF"),
        "mpo": encode(image, "MPO", save_all=True, append_images=[Image.new("RGB", image.size)]),
    }


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize("kind", sorted(kinds()))
def test_kinds(kind: str) -> None:
    blob = kinds()[kind]
    decoded = Decoder(64, 4, 2)([blob])
    assert decoded.reasons == [None]
    image = Image.open(io.BytesIO(blob))
    if kind == "16-bit png":
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    assert_close(decoded.canvas_BSSC[0], reference(image, 64))


@pytest.mark.parametrize("kind", sorted(set(kinds()) - {"tiff"}))
@pytest.mark.parametrize("share", slow_after(2, [0.8, 0.1, 0.4, 0.97]))
def test_truncated_files_are_quarantined(kind: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as set by some libraries
    blob = kinds()[kind]
    if kind == "mpo":  # only the first frame counts
        blob = blob[: blob.index(b"\xff\xd9") + 2]
    decoded = Decoder(64, 4, 2)([blob[: int(len(blob) * share)]])
    assert decoded.ok_B.tolist() == [False]
    assert decoded.reasons[0]
    assert not decoded.canvas_BSSC.any()


def test_groups_bound_the_pixels_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "GROUP_PIXELS", 100)
    heads = [image_header.ImageHeader(1, pixels) for pixels in [60, 40, 1, 300, 20, 90]]
    items = [decode._Item(i, b"", head, (0, 1), (0, 1)) for i, head in enumerate(heads)]
    groups = [[item.index for item in group] for group in decode._groups(items)]
    assert groups == [[0, 1], [2], [3], [4], [5]]


def test_unknown_device() -> None:
    with pytest.raises(ConfigError) as caught:
        Decoder(64, 2, 1, device="abacus")
    assert (caught.value.field, caught.value.given) == ("device", "abacus")


@pytest.mark.parametrize("tags", [[1, 6, 1, 3, 8], [1, 1, 1], [5, 7], []])
def test_both_ways_of_copying(tags: list[int]) -> None:
    """Some canvases are rejected and indices are permuted; rejected entries stay unchanged."""
    count = len(tags) + 3
    source = torch.from_numpy(np.random.default_rng(0).integers(1, 256, (count, 6, 6, 3), dtype=np.uint8))
    accepted: list[Any] = [
        (i + 1, SimpleNamespace(index=count - 1 - i, head=SimpleNamespace(orientation=tag)))
        for i, tag in enumerate(tags)
    ]
    made = [torch.zeros_like(source) for _ in range(2)]
    decode._copy_one_by_one(accepted, source, made[0])
    decode._copy_at_once(accepted, source, made[1])
    assert torch.equal(*made)
    assert made[0].flatten(1).any(1).tolist() == [False] * 3 + [True] * len(tags)

"""Decoding against Pillow: canvases, EXIF orientation, AVIF and HEIC.

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
from PIL import Image, ImageOps, features
from tests.conftest import photograph, slow_after
from tests.pipelines import crafted
from tests.pipelines.conftest import encode, scene, turned
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from substyle.engine.store.table import load_table, store_facts
from substyle.engine.study.api import embed
from substyle.errors import ConfigError, ImageError
from substyle.pipelines import decode, image_header
from substyle.pipelines.decode import Decoder


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
    [(256, 256), (201, 333), (64, 900), (1200, 70), (40, 40)],
)
def test_canvas_is_pillows(side: int, height: int, width: int) -> None:
    for blob in (encode(scene(height, width), quality=90), encode(scene(height, width), "PNG")):
        decoded = Decoder(side, 4, 2)([blob])
        assert decoded.ok_B.tolist() == [True]
        assert decoded.size_B2.tolist() == [[height, width]]
        assert_close(decoded.canvas_BSSC[0], reference(Image.open(io.BytesIO(blob)), side))


@pytest.mark.parametrize("crop_pct", [0.5, 0.95, 1.0])
@pytest.mark.parametrize(("height", "width"), [(201, 333), (40, 32)])
def test_the_part_that_a_canvas_shows_is_torchvisions(height: int, width: int, crop_pct: float) -> None:
    for blob in (encode(scene(height, width), quality=90), encode(scene(height, width), "PNG")):
        decoded = Decoder(96, 4, 2, crop_pct=crop_pct)([blob])
        image = Image.open(io.BytesIO(blob)).convert("RGB")
        resized = resize(image, [round(96 / crop_pct)], InterpolationMode.BICUBIC)
        assert_close(decoded.canvas_BSSC[0], np.asarray(center_crop(resized, [96, 96])))


@pytest.mark.parametrize("folder", ["imagenette", "imagenet_samples", "chest_xray"])
def test_canvas_of_real_photographs(shared: Path, folder: str) -> None:
    files = sorted(f for f in (shared / folder).rglob("*") if f.suffix.lower() in {".jpg", ".jpeg"})
    blobs = [f.read_bytes() for f in files[:: max(1, len(files) // 16)]][:16]
    decoded = Decoder(224, 16, 2)(blobs)
    assert decoded.ok_B.all()
    for blob, canvas in zip(blobs, decoded.canvas_BSSC, strict=True):
        assert_close(canvas, reference(Image.open(io.BytesIO(blob)), 224))


@pytest.mark.parametrize("orientation", ["ignore", "apply"])
def test_awkward_files(shared: Path, orientation: str) -> None:
    decoder, bad = Decoder(224, 1, 2, orientation=orientation), {}
    for file in sorted((shared / "hard").iterdir()):
        decoded, image = decoder([file.read_bytes()]), Image.open(file)
        if decoded.reasons[0] is not None:
            bad[file.name] = decoded.reasons[0]
        elif min(image.size) > 4:
            image = ImageOps.exif_transpose(image) if orientation == "apply" else image
            assert_close(decoded.canvas_BSSC[0], reference(image, 224))
    assert list(bad) == ["truncated_jpeg.jpg"]
    assert "truncated" in bad["truncated_jpeg.jpg"]


def test_groups_bound_the_pixels_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "GROUP_PIXELS", 100)
    heads = [image_header.ImageHeader(1, pixels) for pixels in [60, 40, 1, 300, 20, 90]]
    items = [decode._Item(i, b"", head, (0, 1), (0, 1)) for i, head in enumerate(heads)]
    groups = [[item.index for item in group] for group in decode._groups(items)]
    assert groups == [[0, 1], [2], [3], [4], [5]]


@pytest.mark.parametrize("given", [{"crop_pct": 0.0}, {"crop_pct": 1.01}, {"crop_pct": float("nan")}, {"device": "x"}])
def test_impossible_settings_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Decoder(64, 2, 1, **given)
    assert [caught.value.field] == list(given)


@pytest.mark.parametrize("tags", [[1, 6, 1, 3, 8], []])
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


# --- orientation ------------------------------------------------------------------------------------------------------

SIDE = 64
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'


def late(blob: bytes, tag: int) -> bytes:
    """A PNG with the orientation after the image data."""
    return blob[:-12] + crafted.chunk(b"eXIf", turned(tag).tobytes()[6:]) + blob[-12:]


def files(tag: int, height: int, width: int) -> dict[str, bytes]:
    """One image with an orientation, in every format that supports it."""
    image = Image.fromarray(scene(height, width))
    other = [Image.new("RGB", image.size)]
    return {
        "jpeg": encode(image, exif=turned(tag), subsampling=0),
        "jpeg 4:2:0": encode(image, exif=turned(tag), subsampling=2),
        "jpeg grey, progressive": encode(image.convert("L"), exif=turned(tag), progressive=True),
        "jpeg cmyk": encode(image.convert("CMYK"), exif=turned(tag)),
        "jpeg xmp": encode(image, xmp=XMP % tag),
        "mpo": encode(image.copy(), "MPO", save_all=True, append_images=other, exif=turned(tag)),
        "png": encode(image, "PNG", exif=turned(tag)),
        "png late": late(encode(image, "PNG"), tag),
        "png palette": encode(image.convert("P"), "PNG", exif=turned(tag)),
        "webp": encode(image, "WEBP", exif=turned(tag), quality=95),
        "tiff": encode(image.copy(), "TIFF", exif=turned(tag)),
        "tiff lzw": encode(image.copy(), "TIFF", exif=turned(tag), compression="tiff_lzw"),
    }


@pytest.mark.filterwarnings("ignore::UserWarning")  # pytest resets the product's warning filters
@pytest.mark.parametrize("tag", range(1, 9))
def test_apply_is_exif_transpose(tag: int) -> None:
    made, decoder = files(tag, 201, 77), Decoder(SIDE, 6, 2, orientation="apply")
    for names in (list(made)[:6], list(made)[6:]):
        decoded = decoder([made[name] for name in names])
        assert decoded.reasons == [None] * len(names)
        for i, name in enumerate(names):
            upright = ImageOps.exif_transpose(Image.open(io.BytesIO(made[name])))
            assert upright.size == ((201, 77) if tag >= 5 else (77, 201))
            assert decoded.size_B2[i].tolist() == [upright.height, upright.width]
            assert_close(decoded.canvas_BSSC[i], reference(upright, SIDE))


@pytest.mark.parametrize("tag", [3, 6])
def test_ignore_is_how_pillow_loads(tag: int) -> None:
    decoder = Decoder(SIDE, 1, 2)
    for blob in files(tag, 90, 120).values():
        decoded = decoder([blob])
        loaded = Image.open(io.BytesIO(blob)).convert("RGB")
        assert decoded.size_B2.tolist() == [[loaded.height, loaded.width]]
        assert_close(decoded.canvas_BSSC[0], reference(loaded, SIDE))


# --- AVIF and HEIC ----------------------------------------------------------------------------------------------------


def encoded(picture: Image.Image, kind: str) -> bytes:
    if kind == "AVIF":
        if not features.check("avif"):
            pytest.skip("this Pillow has no AVIF")
    else:
        pytest.importorskip("pillow_heif").register_heif_opener()
    return encode(picture, kind, quality=95)


@pytest.mark.parametrize(("kind", "suffix"), [("AVIF", ".avif"), ("HEIF", ".heic")])
def test_photographs_are_embedded_as_their_pixels_and_damaged_ones_quarantined(
    kind: str, suffix: str, tmp_path: Path
) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for seed in range(3):
        blob = encoded(photograph(seed), kind)
        (folder / f"{seed}{suffix}").write_bytes(blob)
        with Image.open(io.BytesIO(blob)) as image:
            image.convert("RGB").save(folder / f"{seed}.png")
    (folder / f"cut{suffix}").write_bytes(blob[: len(blob) // 2])
    (folder / f"head{suffix}").write_bytes(blob[:40])
    store = embed(folder, tmp_path / "s.zarr", ["control:pixels"], transformations="identity", canvas=64)
    assert set(store_facts(store).quarantined) == {f"cut{suffix}", f"head{suffix}"}
    table = load_table(store, "control:pixels")
    row = {key: table.take(0, np.array([i]))[0] for i, key in enumerate(table.keys)}
    assert len(row) == 6
    for seed in range(3):
        np.testing.assert_allclose(row[f"{seed}{suffix}"], row[f"{seed}.png"], atol=0.01)  # resized by another library
    assert np.abs(row[f"0{suffix}"] - row["1.png"]).max() > 0.1


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    blob = encoded(photograph(0), "HEIF")
    monkeypatch.setattr(image_header, "_heif", lambda: ())
    with pytest.raises(ImageError, match="extra heif"):
        image_header.inspect(blob)

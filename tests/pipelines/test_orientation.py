"""EXIF orientation against Pillow's ``exif_transpose``; tolerances are those of decoding."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image, ImageOps
from tests.pipelines import crafted
from tests.pipelines.conftest import encode, scene
from tests.pipelines.test_decode import assert_close, reference

from substyle.pipelines.decode import Decoder

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pytest resets the product's warning filters

SIDE = 64
TAGS = range(1, 9)
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'


@pytest.fixture(scope="module")
def apply() -> Decoder:
    return Decoder(SIDE, 8, 2, orientation="apply")


@pytest.fixture(scope="module")
def ignore() -> Decoder:
    return Decoder(SIDE, 8, 2)


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def late(blob: bytes, tag: int) -> bytes:
    """A PNG with the orientation after the image data."""
    return blob[:-12] + crafted.chunk(b"eXIf", exif(tag).tobytes()[6:]) + blob[-12:]


def files(tag: int, height: int, width: int) -> dict[str, bytes]:
    """One image with an orientation, in every format that supports it."""
    image = Image.fromarray(scene(height, width))
    other = [Image.new("RGB", image.size)]
    return {
        "jpeg": encode(image, exif=exif(tag), subsampling=0),
        "jpeg 4:2:0": encode(image, exif=exif(tag), subsampling=2),
        "jpeg grey, progressive": encode(image.convert("L"), exif=exif(tag), progressive=True),
        "jpeg cmyk": encode(image.convert("CMYK"), exif=exif(tag)),
        "jpeg xmp": encode(image, xmp=XMP % tag),
        "mpo": encode(image.copy(), "MPO", save_all=True, append_images=other, exif=exif(tag)),
        "png": encode(image, "PNG", exif=exif(tag)),
        "png late": late(encode(image, "PNG"), tag),
        "png palette": encode(image.convert("P"), "PNG", exif=exif(tag)),
        "webp": encode(image, "WEBP", exif=exif(tag), quality=95),
        "tiff": encode(image.copy(), "TIFF", exif=exif(tag)),
        "tiff lzw": encode(image.copy(), "TIFF", exif=exif(tag), compression="tiff_lzw"),
    }


@pytest.mark.parametrize(("height", "width"), [(90, 120), (201, 77)])
@pytest.mark.parametrize("tag", TAGS)
def test_apply_is_exif_transpose(apply: Decoder, tag: int, height: int, width: int) -> None:
    made = files(tag, height, width)
    for names in (list(made)[:8], list(made)[8:]):
        decoded = apply([made[name] for name in names])
        assert decoded.reasons == [None] * len(names)
        for i, name in enumerate(names):
            upright = ImageOps.exif_transpose(Image.open(io.BytesIO(made[name])))
            assert upright.size == ((height, width) if tag >= 5 else (width, height))
            assert decoded.size_B2[i].tolist() == [upright.height, upright.width]
            assert_close(decoded.canvas_BSSC[i], reference(upright, SIDE))


@pytest.mark.parametrize("tag", TAGS)
def test_ignore_is_how_pillow_loads(ignore: Decoder, tag: int) -> None:
    for blob in files(tag, 90, 120).values():
        decoded = ignore([blob])
        loaded = Image.open(io.BytesIO(blob)).convert("RGB")
        assert decoded.size_B2.tolist() == [[loaded.height, loaded.width]]
        assert_close(decoded.canvas_BSSC[0], reference(loaded, SIDE))


def test_hard_files_are_turned_as_pillow_turns_them(shared: Path, apply: Decoder) -> None:
    for path in sorted((shared / "hard").iterdir()):
        if "scape_" in path.name or "Portrait_" in path.name:
            continue
        decoded = apply([path.read_bytes()])
        image = Image.open(path)
        if decoded.ok_B[0] and min(image.size) > 4:
            assert_close(decoded.canvas_BSSC[0], reference(ImageOps.exif_transpose(image), SIDE))

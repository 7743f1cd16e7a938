"""EXIF orientation against Pillow's ``exif_transpose``; tolerances are those of decoding."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from tests.pipelines import crafted
from tests.pipelines.conftest import encode, scene
from tests.pipelines.mutations import exif
from tests.pipelines.test_decode import assert_close, reference

from substyle.errors import ConfigError
from substyle.pipelines import image_header
from substyle.pipelines.decode import ORIENTATIONS, Decoder
from substyle.pipelines.variants import variants_of

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


def test_the_turned_canvas_shows_another_part() -> None:
    """The crop is that of the upright image: with an odd remainder, the centre of the stored one differs."""
    picture = scene(101, 64)
    blob = late(encode(picture, "PNG"), 6)
    decoded = Decoder(56, 1, 1, orientation="apply")([blob])
    assert decoded.size_B2.tolist() == [[64, 101]]
    upright = np.rot90(picture, -1)
    top, left = 4, 22  # round((64 - 56) / 2), round((101 - 56) / 2), round to even
    assert np.array_equal(decoded.canvas_BSSC[0].numpy(), upright[top : top + 56, left : left + 56])


@pytest.mark.parametrize("tag", TAGS)
def test_stored_part_and_turn_agree(tag: int) -> None:
    stored = np.arange(7 * 11 * 3, dtype=np.uint8).reshape(7, 11, 3)
    upright = image_header.turn(stored, tag)
    assert upright.shape[:2] == image_header.upright_size(7, 11, tag)
    (top, bottom), (left, right) = image_header.stored((1, 4), (2, 7), (7, 11), tag)
    part = stored[int(top) : int(bottom), int(left) : int(right)]
    np.testing.assert_array_equal(image_header.turn(part, tag), upright[1:4, 2:7])


@pytest.mark.parametrize(
    "data",
    [b"", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40, bytes(300)],
)
def test_unreadable_exif_says_nothing(apply: Decoder, ignore: Decoder, data: bytes) -> None:
    blob = encode(scene(90, 120), exif=data) if data else encode(scene(90, 120))
    assert image_header.inspect(blob, upright=True).orientation == 1
    assert np.array_equal(apply([blob]).canvas_BSSC, ignore([blob]).canvas_BSSC)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_unknown_orientations_turn_nothing(apply: Decoder, ignore: Decoder, value: int) -> None:
    blob = encode(scene(90, 120), exif=exif(value))
    assert np.array_equal(apply([blob]).canvas_BSSC, ignore([blob]).canvas_BSSC)


def test_real_photographs_stand_upright(shared: Path, apply: Decoder, ignore: Decoder) -> None:
    """The same image stored in nine ways agrees only if orientation is applied."""
    for name in ("Landscape", "Portrait"):
        blobs = [(shared / "hard" / f"{name}_{i}.jpg").read_bytes() for i in range(1, 9)]
        turned, stored = (decoder(blobs).canvas_BSSC.numpy().astype(int) for decoder in (apply, ignore))
        assert np.abs(turned - turned[0]).mean(axis=(1, 2, 3)).max() < 4
        assert np.abs(stored - stored[0]).mean(axis=(1, 2, 3))[1:].min() > 8


def test_hard_files_are_turned_as_pillow_turns_them(shared: Path, apply: Decoder) -> None:
    for path in sorted((shared / "hard").iterdir()):
        if "scape_" in path.name or "Portrait_" in path.name:
            continue
        decoded = apply([path.read_bytes()])
        image = Image.open(path)
        if decoded.ok_B[0] and min(image.size) > 4:
            assert_close(decoded.canvas_BSSC[0], reference(ImageOps.exif_transpose(image), SIDE))


def test_bad_values() -> None:
    assert ORIENTATIONS == ("ignore", "apply")
    for make in (
        lambda: Decoder(SIDE, 1, 1, orientation="upright"),
        lambda: variants_of(encode(scene(9, 9)), ("identity",), orientation="upright"),
    ):
        with pytest.raises(ConfigError) as caught:
            make()
        assert (caught.value.field, caught.value.given) == ("orientation", "upright")
        assert caught.value.allowed == "ignore, apply"

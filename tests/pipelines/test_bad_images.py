"""Unusual and hostile files are decoded or quarantined with a reason, independent of the rest of the batch."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile
from tests.conftest import slow_after
from tests.fuzz.test_confined import spoilt
from tests.pipelines import crafted
from tests.pipelines.conftest import encode, scene, turned
from tests.pipelines.test_decode import assert_close, reference

from substyle.pipelines.decode import Decoded, Decoder

# pytest resets the product's warning filters
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")

SIDE = 64
IMAGE = Image.fromarray(scene(90, 120))
GREY = np.asarray(IMAGE.convert("L"))
OTHER = Image.new("RGB", IMAGE.size, "teal")
JPEG, PROGRESSIVE, PNG = encode(IMAGE), encode(IMAGE, progressive=True), encode(IMAGE, "PNG")


def rows(image: NDArray[np.generic]) -> bytes:
    """Unfiltered, compressed rows of a PNG; 16-bit samples are big-endian."""
    return zlib.compress(b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in image))


ROWS = rows(np.asarray(IMAGE))
BLACK_BELOW = np.asarray(IMAGE.convert("RGBA")) * (np.arange(90) < 80).astype(np.uint8)[:, None, None]


def wide(channels: int) -> bytes:
    """A 16-bit PNG: grey (1) or RGB (3), and with alpha (2, 4)."""
    image = np.asarray(IMAGE.convert(("L", "LA", "RGB", "RGBA")[channels - 1])).reshape(90, 120, channels)
    return crafted.png((120, 90, 16, (0, 4, 2, 6)[channels - 1], 0), rows(image.astype(np.uint16) * 257))


def interlaced(image: NDArray[np.uint8]) -> bytes:
    """The compressed rows of the seven passes of Adam7."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    parts = [image[top::down, left::across] for top, left, down, across in passes]
    return zlib.compress(b"".join(b"\0" + row.tobytes() for part in parts for row in part if row.size))


def tiles() -> bytes:
    """GREY in tiles of 64 x 64."""
    padded = np.pad(GREY, ((0, 38), (0, 8)))
    return crafted.tiled_tiff(120, 90, 64, [padded[y : y + 64, x : x + 64].tobytes() for y in (0, 64) for x in (0, 64)])


def scans(count: int) -> bytes:
    """The progressive image with its last scan repeated."""
    start = PROGRESSIVE.rindex(b"\xff\xda")
    return PROGRESSIVE[:start] + PROGRESSIVE[start:-2] * count + b"\xff\xd9"


def kinds(image: Image.Image) -> dict[str, bytes]:
    """One valid file of every format; those of several frames begin with the image."""
    grey, several = image.convert("L"), {"save_all": True, "append_images": [Image.new("RGB", image.size, "teal")]}
    return {
        "jpeg": encode(image),
        "jpeg progressive": encode(image, progressive=True),
        "jpeg with restarts": encode(image, restart_marker_blocks=2, subsampling=0),
        "jpeg grey": encode(grey, exif=turned(6), comment=b"a comment"),
        "jpeg cmyk": encode(image.convert("CMYK")),
        "mpo": encode(image.copy(), "MPO", **several),
        "png": encode(image, "PNG"),
        "png with alpha": encode(image.convert("RGBA"), "PNG", exif=turned(6)),
        "png grey": encode(grey, "PNG"),
        "png grey, alpha": encode(image.convert("LA"), "PNG"),
        "png 16-bit": encode(np.asarray(grey).astype(np.uint16) * 257, "PNG"),
        "png palette": encode(image.convert("P"), "PNG", transparency=7),
        "png 1-bit": encode(image.convert("1"), "PNG"),
        "gif": encode(image.copy(), "GIF", **several),
        "webp": encode(image, "WEBP"),
        "webp lossless": encode(image.copy(), "WEBP", lossless=True, **several),
        "bmp": encode(image, "BMP"),
        "tiff lzw": encode(image.copy(), "TIFF", compression="tiff_lzw"),
        "tiff cmyk": encode(image.convert("CMYK"), "TIFF", compression="tiff_adobe_deflate"),
        "tiff 1-bit": encode(image.convert("1"), "TIFF", compression="group4"),
    }


# blob, or (blob, expected image); by default the expected image is Pillow's
GOOD: dict[str, bytes | tuple[bytes, Image.Image]] = {
    **kinds(IMAGE),
    "png 16-bit": (kinds(IMAGE)["png 16-bit"], IMAGE.convert("L")),
    "jpeg in rgb": encode(IMAGE, keep_rgb=True),
    "jpeg of many scans": scans(40),
    "jpeg arithmetic": crafted.ARITHMETIC_JPEG,
    "jpeg with stray bytes": JPEG[:2] + b"\xff\0\0\xff" + JPEG[2:],
    "jpeg with garbage after it": (JPEG + bytes(range(256)) * 9, Image.open(io.BytesIO(JPEG))),
    "jpeg with another after it": (JPEG + encode(OTHER), Image.open(io.BytesIO(JPEG))),
    "jpeg with much xmp": encode(IMAGE, xmp=b"<x>" + b" " * 65_000),
    "jpeg with a broken profile": encode(IMAGE, icc_profile=b"no profile" * 20_000),
    "jpeg all grey 128": encode(Image.new("RGB", (90, 120), (128, 128, 128))),
    "png 16-bit grey": (wide(1), IMAGE.convert("L")),
    "png 16-bit grey, alpha": (wide(2), IMAGE.convert("L")),
    "png 16-bit rgb": (wide(3), IMAGE),
    "png 16-bit rgb, alpha": (wide(4), IMAGE),
    "png palette, transparent": encode(IMAGE.convert("P"), "PNG", transparency=bytes(256)),
    "png with a transparent colour": (crafted.png((120, 90, 8, 2, 0), ROWS, (b"tRNS", bytes(6))), IMAGE),
    "png interlaced": (crafted.png((120, 90, 8, 2, 1), interlaced(np.asarray(IMAGE))), IMAGE),
    "png with gamma and a broken profile": (
        crafted.png((120, 90, 8, 2, 0), ROWS, (b"gAMA", b"\0\0\x20\0"), (b"iCCP", b"a\0\0" + zlib.compress(b"no"))),
        IMAGE,
    ),
    "png with alpha, black below": (crafted.png((120, 90, 8, 6, 0), rows(BLACK_BELOW)), Image.fromarray(BLACK_BELOW)),
    "png with alpha, interlaced": (
        crafted.png((120, 90, 8, 6, 1), interlaced(BLACK_BELOW)),
        Image.fromarray(BLACK_BELOW),
    ),
    "png with bytes after it": (PNG + bytes(1000), IMAGE),
    "png animated": (encode(IMAGE.copy(), "PNG", save_all=True, append_images=[OTHER.copy()]), IMAGE),
    "png animated, another picture first": (
        encode(IMAGE.copy(), "PNG", save_all=True, default_image=True, append_images=[OTHER.copy(), OTHER.copy()]),
        IMAGE,
    ),
    "bmp 1-bit": encode(IMAGE.convert("1"), "BMP"),
    "bmp with alpha": encode(IMAGE.convert("RGBA"), "BMP"),
    "tiff of two pages": (encode(IMAGE.copy(), "TIFF", save_all=True, append_images=[OTHER.copy()]), IMAGE),
    "tiff in tiles": (tiles(), IMAGE.convert("L")),
    "tiff 16-bit": (crafted.grey_tiff(120, 90, 16, (GREY.astype("<u2") * 257).tobytes()), IMAGE.convert("L")),
    "tiff white is zero": (
        crafted.grey_tiff(120, 90, 8, (255 - GREY).tobytes(), white_is_zero=True),
        IMAGE.convert("L"),
    ),
    "1 x 1": encode(np.full((1, 1, 3), 77, np.uint8), "PNG"),
    "4 x 4000": encode(scene(4000, 4)),
    "4000 x 4": encode(scene(4, 4000)),
}

# blob, part of the reason for quarantine
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty file"),
    "text": (b"not an image, whatever it is called", "not an image of a known format"),
    "zeros": (bytes(3000), "not an image of a known format"),
    "postscript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n9 9 moveto\n",
        "not an image of a",
    ),
    "jpeg cut": (JPEG[:-200], "truncated JPEG"),
    "jpeg without its end": (JPEG[:-2], "truncated JPEG"),
    "jpeg cut, but with an end": (JPEG[:1500] + b"\xff\xd9", "data end"),
    "jpeg cmyk cut, but with an end": (encode(IMAGE.convert("CMYK"))[:2500] + b"\xff\xd9", "data end"),
    "jpeg without intervals": (encode(IMAGE, restart_marker_blocks=1)[:1900] + b"\xff\xd9", "restart intervals"),
    "jpeg without data": (crafted.bombs(2000)["jpeg without data"], "too few data"),
    "jpeg higher than its data": (crafted.jpeg_size(JPEG, height=180), "data end"),
    "jpeg wider than its data": (crafted.jpeg_size(JPEG, width=500), "data end"),
    "jpeg 12-bit": (crafted.jpeg_size(JPEG, bits=12), "12-bit JPEG"),
    "jpeg lossless": (crafted.jpeg_size(JPEG, marker=0xC3), "decoding failed"),
    "jpeg with several starts": (JPEG[:2] + JPEG, "damaged JPEG"),
    "jpeg of two frames": (JPEG[: JPEG.index(b"\xff\xda")] + JPEG[JPEG.index(b"\xff\xc0") :], "more than one frame"),
    "jpeg with a marker in its data": (JPEG[:1500] + b"\xff\x45" + JPEG[1502:], "marker 45"),
    "jpeg of endless scans": (scans(200), "more than 100 scans"),
    "png cut": (PNG[:-3000], "truncated PNG"),
    "png without its end": (PNG[:-12], "truncated PNG"),
    "png damaged": (PNG[:5000] + b"!" + PNG[5001:], "checksum of 'IDAT'"),
    "png damaged in its header": (PNG[:19] + b"\7" + PNG[20:], "checksum of 'IHDR'"),
    "png of too few rows": (crafted.png((120, 91, 8, 2, 0), ROWS), "missing rows"),
    "png of too few rows, palette": (crafted.png((360, 91, 8, 3, 0), ROWS, (b"PLTE", bytes(768))), "missing rows"),
    "png of too few rows, interlaced": (crafted.png((120, 91, 8, 2, 1), ROWS), "missing rows|decoding failed"),
    "png of no sort": (crafted.png((120, 90, 8, 5, 0), ROWS), "colour type 5"),
    "gif cut": (encode(IMAGE, "GIF")[:-2000], "decoding failed"),
    "webp cut": (encode(IMAGE, "WEBP")[:-100], "truncated WebP"),
    "bmp cut": (encode(IMAGE, "BMP")[:-3000], "decoding failed"),
    "tiff cut": (encode(IMAGE.copy(), "TIFF")[:-3000], "decoding failed"),
    "tiff of floats": (encode(GREY.astype(np.float32), "TIFF"), "mode F"),
    "tiff 12-bit": (crafted.grey_tiff(120, 90, 12, bytes(180 * 90)), "12-bit grey"),
    "tiff 16-bit, white is zero": (crafted.grey_tiff(9, 9, 16, bytes(162), white_is_zero=True), "white is zero"),
    **{f"bomb: {name}": (blob, "pixels|too few data") for name, blob in crafted.bombs().items()},
}


@pytest.fixture(scope="module")
def alone() -> Decoder:
    return Decoder(SIDE, 1, 2)


@pytest.mark.parametrize("name", GOOD)
def test_awkward_images_are_decoded(alone: Decoder, name: str) -> None:
    given = GOOD[name]
    blob, expected = given if isinstance(given, tuple) else (given, Image.open(io.BytesIO(given)))
    decoded = alone([blob])
    assert decoded.reasons == [None]
    assert decoded.size_B2.tolist() == [[expected.height, expected.width]]
    if min(expected.size) >= 4:  # tiny images: Pillow's rounding of crops to whole pixels matters
        assert_close(decoded.canvas_BSSC[0], reference(expected, SIDE))


@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_quarantined_with_a_reason(alone: Decoder, name: str) -> None:
    blob, expected = BAD[name]
    decoded = alone([blob])
    reason = decoded.reasons[0]
    assert decoded.ok_B.tolist() == [False]
    assert reason is not None
    assert any(part in reason for part in expected.split("|"))
    assert len(reason) <= 150
    assert reason.isprintable()
    assert not decoded.canvas_BSSC.any()


@pytest.mark.parametrize("kind", [kind for kind in kinds(IMAGE) if not kind.startswith("tiff")])
@pytest.mark.parametrize("share", slow_after(2, [0.8, 0.1, 0.4, 0.97]))
def test_truncated_files_are_quarantined(
    alone: Decoder, kind: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as set by some libraries
    blob = kinds(IMAGE)[kind]
    if kind == "mpo":  # only the first frame counts
        blob = blob[: blob.index(b"\xff\xd9") + 2]
    decoded = alone([blob[: int(len(blob) * share)]])
    assert decoded.ok_B.tolist() == [False]
    assert decoded.reasons[0]
    assert not decoded.canvas_BSSC.any()


BATCH, MOST = 32, 26  # of the 32 images in a batch, 26 are damaged


def damaged(blob: bytes, rng: random.Random) -> bytes:
    """A file after some edits, cut in a third of the cases; a PNG mostly with checksums of what it has then."""
    made = spoilt(blob, rng)
    if rng.random() < 0.3:
        made = made[: rng.randrange(len(made) + 1)]
    return crafted.with_checksums(made) if made[:4] == b"\x89PNG" and rng.random() < 0.7 else made


@pytest.mark.parametrize(
    ("count", "seed", "orientation"),
    [(400, 7, "ignore"), (200, 8, "apply"), pytest.param(10_000, 9, "ignore", marks=pytest.mark.slow)],
)
def test_damaged_files_alone_and_among_good_ones(count: int, seed: int, orientation: str) -> None:
    rng = random.Random(seed)
    alone, mixed = (Decoder(SIDE, batch, 2, orientation=orientation) for batch in (1, BATCH))
    good = list(kinds(Image.fromarray(scene(52, 70))).values())
    blobs = [*good, *(damaged(good[i % len(good)], rng) for i in range(count))]
    expected = [alone([blob]) for blob in blobs]
    assert all(decoded.ok_B[0] for decoded in expected[: len(good)])
    order = rng.sample(range(len(good), len(blobs)), count)
    for start in range(0, count, MOST):
        part = order[start : start + MOST] + rng.choices(range(len(good)), k=BATCH - MOST)
        rng.shuffle(part)
        assert_each_is_as_alone(mixed([blobs[i] for i in part]), [expected[i] for i in part])
    quarantined = [decoded.reasons[0] for decoded in expected if decoded.reasons[0] is not None]
    assert 0.4 * count < len(quarantined) < 0.9 * count  # else the damage is too small or too large for the test
    assert all(reason.isprintable() and len(reason) <= 150 and " at 0x" not in reason for reason in quarantined)


def assert_each_is_as_alone(decoded: Decoded, expected: list[Decoded]) -> None:
    assert decoded.reasons == [one.reasons[0] for one in expected]
    assert decoded.ok_B.tolist() == [reason is None for reason in decoded.reasons]
    assert torch.equal(decoded.canvas_BSSC, torch.cat([one.canvas_BSSC for one in expected]))
    assert np.array_equal(decoded.size_B2, np.concatenate([one.size_B2 for one in expected]))


ALLOWED = 50_000  # kB that images of 30,000 x 30,000 pixels may add to the peak memory; decoded, one takes 2.7 GB

CODE = """
import json, resource, sys
from tests.pipelines import crafted
from tests.pipelines.conftest import encode, scene
from substyle.pipelines.decode import Decoder

made = crafted.bombs()
decoder = Decoder(64, 16, 2)
decoder([encode(scene(90, 120)), encode(scene(90, 120), "PNG"), encode(scene(90, 120), "WEBP")])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
reasons = decoder(list(made.values())).reasons
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"kB": after - before, "reasons": dict(zip(made, reasons))}))
"""


def test_bombs_take_no_memory() -> None:
    root = Path(__file__).parents[2]
    # a cluster of Ray that another test holds keeps the current folder out of the path
    env = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", CODE], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert all(answer["reasons"].values())
    assert answer["kB"] < ALLOWED

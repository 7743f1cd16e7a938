"""Many damaged files: none crashes or fails a batch, none depends on other images."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from tests.fuzz.test_confined import spoilt
from tests.pipelines.conftest import encode, scene
from tests.pipelines.crafted import with_checksums

from substyle.pipelines.decode import Decoded, Decoder

# pytest resets the product's warning filters
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")

SIDE, BATCH, BAD = 64, 32, 26  # 26 of the 32 images in a batch are damaged


def seeds() -> list[bytes]:
    """One small valid image of every format."""
    image = Image.fromarray(scene(52, 70))
    grey, several = image.convert("L"), {"save_all": True, "append_images": [Image.new("RGB", image.size, "teal")]}
    turned = Image.Exif()
    turned[0x0112] = 6
    return [
        encode(image),
        encode(image, progressive=True),
        encode(image, restart_marker_blocks=2, subsampling=0),
        encode(grey, exif=turned, comment=b"a comment"),
        encode(image.convert("CMYK")),
        encode(image.copy(), "MPO", **several),
        encode(image, "PNG"),
        encode(image.convert("RGBA"), "PNG", exif=turned),
        encode(image.convert("P"), "PNG", transparency=7),
        encode(np.asarray(grey).astype(np.uint16) * 257, "PNG"),
        encode(image.copy(), "GIF", **several),
        encode(image, "WEBP"),
        encode(image.copy(), "WEBP", lossless=True, **several),
        encode(image, "BMP"),
        encode(image.copy(), "TIFF", compression="tiff_lzw"),
        encode(image.convert("CMYK"), "TIFF", compression="tiff_adobe_deflate"),
        encode(image.convert("1"), "TIFF", compression="group4"),
    ]


def damaged(blob: bytes, rng: random.Random) -> bytes:
    """A file after some edits, cut in a third of the cases; a PNG mostly with checksums of what it has then."""
    made = spoilt(blob, rng)
    if rng.random() < 0.3:
        made = made[: rng.randrange(len(made) + 1)]
    return with_checksums(made) if made[:4] == b"\x89PNG" and rng.random() < 0.7 else made


@pytest.mark.parametrize(
    ("count", "seed", "orientation"),
    [(400, 7, "ignore"), (200, 8, "apply"), pytest.param(10_000, 9, "ignore", marks=pytest.mark.slow)],
)
def test_damaged_files_alone_and_among_good_ones(count: int, seed: int, orientation: str) -> None:
    rng = random.Random(seed)
    alone, mixed = (Decoder(SIDE, batch, 2, orientation=orientation) for batch in (1, BATCH))
    good = seeds()
    blobs = [*good, *(damaged(good[i % len(good)], rng) for i in range(count))]
    expected = [alone([blob]) for blob in blobs]
    assert all(decoded.ok_B[0] for decoded in expected[: len(good)])
    order = rng.sample(range(len(good), len(blobs)), count)
    for start in range(0, count, BAD):
        part = order[start : start + BAD] + rng.choices(range(len(good)), k=BATCH - BAD)
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

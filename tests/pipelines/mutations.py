"""Damaged image files: seeded mutations of small images of every format."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image
from tests.pipelines.conftest import encode, scene
from tests.pipelines.crafted import with_checksums

EXTREMES = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)

Mutation = Callable[[bytes, np.random.Generator], bytes]


def seeds() -> dict[str, bytes]:
    """One small valid image of every format, by name."""
    image = Image.fromarray(scene(52, 70))
    grey, more = image.convert("L"), [Image.new("RGB", image.size, "teal")]
    fresh = {
        "save_all": True,
        "append_images": [more[0].copy()],
    }  # Pillow carries settings of one format over to the next
    made = {
        "jpeg": encode(image),
        "jpeg progressive": encode(image, progressive=True),
        "jpeg restarts": encode(image, restart_marker_blocks=2, subsampling=0),
        "jpeg grey exif": encode(grey, exif=exif(6), comment=b"a comment"),
        "jpeg cmyk": encode(image.convert("CMYK")),
        "mpo": encode(image, "MPO", save_all=True, append_images=more),
        "png": encode(image, "PNG"),
        "png rgba": encode(image.convert("RGBA"), "PNG", exif=exif(3)),
        "png palette": encode(image.convert("P"), "PNG", transparency=7),
        "png 16-bit": encode(np.asarray(grey).astype(np.uint16) * 257, "PNG"),
        "png animated": encode(image, "PNG", save_all=True, append_images=more),
        "gif animated": encode(image, "GIF", save_all=True, append_images=more),
        "webp": encode(image, "WEBP"),
        "webp lossless animated": encode(image, "WEBP", save_all=True, append_images=more, lossless=True),
        "bmp": encode(image, "BMP"),
        "bmp palette": encode(image.convert("P"), "BMP"),
        "tiff": encode(image.copy(), "TIFF", **fresh),
        "tiff lzw": encode(image, "TIFF", compression="tiff_lzw"),
        "tiff deflate": encode(image.convert("CMYK"), "TIFF", compression="tiff_adobe_deflate"),
        "tiff jpeg": encode(image, "TIFF", compression="jpeg"),
        "tiff 1-bit": encode(image.convert("1"), "TIFF", compression="group4"),
    }
    return made


def exif(orientation: int) -> Image.Exif:
    """EXIF data with an orientation."""
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def mutated(count: int, seed: int = 0) -> list[tuple[str, bytes]]:
    """``count`` damaged files and descriptions of the damage, reproducible by seed."""
    originals = seeds()
    names, rng = sorted(originals), np.random.default_rng(seed)
    made = []
    for i in range(count):
        name = names[i % len(names)]
        blob = originals[name]
        done = [name]
        for _ in range(int(rng.integers(1, 4))):
            mutation = MUTATIONS[int(rng.integers(len(MUTATIONS)))]
            blob = mutation(blob, rng)
            done.append(mutation.__name__.strip("_"))
        if blob[:8] == originals["png"][:8] and rng.random() < 0.7:  # else checksums shield the rest of the decoder
            blob = with_checksums(blob)
        made.append((f"{i}: {', '.join(done)}", blob))
    return made


def _cut(blob: bytes, rng: np.random.Generator) -> bytes:
    return blob[: int(rng.integers(len(blob) + 1))]


def _flip_bytes(blob: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(blob)
    for at in rng.integers(0, max(len(data), 1), int(rng.choice([1, 2, 5, 20]))).tolist():
        if at < len(data):
            data[at] = int(rng.integers(256))
    return bytes(data)


def _flip_bit(blob: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(blob)
    if data:
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    return bytes(data)


def _flip_header(blob: bytes, rng: np.random.Generator) -> bytes:
    return _flip_bytes(blob[:64], rng) + blob[64:]


def _extreme(blob: bytes, rng: np.random.Generator) -> bytes:
    """Set a field of 1, 2 or 4 bytes near the start to an unusual value."""
    width = int(rng.choice([1, 2, 4]))
    at = int(rng.integers(2, min(max(len(blob), 3), int(rng.choice([64, 1000])))))
    value = int(rng.choice(EXTREMES)) & (256**width - 1)
    order = "big" if rng.random() < 0.5 else "little"
    return blob[:at] + value.to_bytes(width, order) + blob[at + width :]  # type: ignore[arg-type]


def _dimensions(blob: bytes, rng: np.random.Generator) -> bytes:
    """Change the width and height, found as 70 and 52."""
    for old in (70, 52):
        new = int(rng.choice([*EXTREMES, old + 1, old - 1, old * 2, 30_000]))
        for width in (2, 4):
            for order in ("big", "little"):
                value = new & (256**width - 1)
                if rng.random() < 0.7:
                    blob = blob.replace(old.to_bytes(width, order), value.to_bytes(width, order), 1)  # type: ignore[arg-type]
    return blob


def _insert(blob: bytes, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(len(blob) + 1))
    return blob[:at] + rng.bytes(int(rng.choice([1, 2, 16, 300]))) + blob[at:]


def _remove(blob: bytes, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(len(blob) + 1))
    return blob[:at] + blob[at + int(rng.choice([1, 2, 16, 300])) :]


def _repeat(blob: bytes, rng: np.random.Generator) -> bytes:
    a, b = sorted(rng.integers(0, len(blob) + 1, 2).tolist())
    return blob[:b] + blob[a:b] + blob[b:]


def _fill(blob: bytes, rng: np.random.Generator) -> bytes:
    at, length = int(rng.integers(len(blob) + 1)), int(rng.choice([4, 64, 512]))
    gap = blob[at : at + length]
    return blob[:at] + bytes([int(rng.choice([0, 255]))]) * len(gap) + blob[at + length :]


def _splice(blob: bytes, rng: np.random.Generator) -> bytes:
    """Join the start of this file and the end of another."""
    other = list(_SPLICED.values())[int(rng.integers(len(_SPLICED)))]
    return _cut(blob, rng) + other[int(rng.integers(len(other))) :]


def _trail(blob: bytes, rng: np.random.Generator) -> bytes:
    return blob + rng.bytes(int(rng.choice([1, 100, 3000])))


def _end_early(blob: bytes, rng: np.random.Generator) -> bytes:
    """Truncate, but keep the end, so that the file looks intact."""
    return _cut(blob, rng) + blob[-int(rng.choice([2, 12])) :]


_SPLICED = seeds()
MUTATIONS: tuple[Mutation, ...] = (
    *(_cut, _flip_bytes, _flip_bit, _flip_header, _extreme, _extreme, _dimensions),
    *(_insert, _remove, _repeat, _fill, _splice, _trail, _end_early),
)

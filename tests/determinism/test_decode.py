"""A canvas depends only on the image's bytes: not on the batch, the threads or earlier failures."""

from __future__ import annotations

import io
from functools import lru_cache

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.determinism.canvases import Picture

from substyle.pipelines.decode import Decoded, Decoder

SIDE = 64


def encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


@lru_cache(maxsize=1)
def pool() -> tuple[bytes, ...]:
    scenes = [Image.fromarray(Picture("scene", i).canvas(97 + 30 * i)) for i in range(4)]
    photographs = [Image.fromarray(Picture("photograph", i).canvas(100 + i)) for i in range(3)]
    good = [encode(picture, "JPEG", quality=70 + 5 * i) for i, picture in enumerate((*scenes, *photographs))]
    good += [
        encode(scenes[0], "JPEG", quality=95, subsampling=0),
        encode(scenes[1], "JPEG", progressive=True),
        encode(scenes[2].convert("L"), "JPEG"),
        encode(scenes[0].resize((1, 1)), "JPEG"),
        encode(scenes[0].resize((3, 500)), "JPEG"),
        encode(scenes[1].resize((301, 77)), "PNG"),
        encode(scenes[3], "BMP"),
    ]
    for_pillow = [
        encode(scenes[0].convert("CMYK"), "JPEG"),
        encode(scenes[1].convert("RGBA"), "PNG"),
        encode(scenes[2].convert("P"), "GIF"),
        encode(scenes[0].convert("I;16"), "PNG"),
        encode(scenes[2], "WEBP"),
    ]
    whole = bytearray(good[0])
    middle = len(whole) // 2
    damaged = []
    for i in range(6):  # some decode to other pixels, some fail
        spoilt = bytearray(good[i % len(good)])
        at = len(spoilt) // 2 + 7 * i
        spoilt[at : at + 3] = bytes((0xFF, 0xD9 if i % 2 else 0x03, 0x5A))
        damaged.append(bytes(spoilt))
    # end marker, but half of the image is missing
    damaged += [bytes(whole[:middle]) + b"\xff\xd9", bytes(whole[:middle]), good[12][:300], b"", b"no image"]
    return (*good, *for_pillow, *damaged)


@lru_cache(maxsize=6)
def decoder(batch: int, threads: int) -> Decoder:
    """Decoders shared by the examples of a test, including the state after failures."""
    return Decoder(SIDE, batch, threads)


@lru_cache(maxsize=256)
def alone(blob: bytes) -> tuple[object, ...]:
    return facts(Decoder(SIDE, 1, 1)([blob]), 0)


def facts(decoded: Decoded, i: int) -> tuple[object, ...]:
    pixels = decoded.canvas_BSSC[i].numpy().tobytes()
    return pixels, bool(decoded.ok_B[i]), decoded.reasons[i], decoded.size_B2[i].tolist()


def check(blobs: list[bytes], batch: int, threads: int) -> None:
    made = decoder(batch, threads)
    for start in range(0, len(blobs), batch):
        some = blobs[start : start + batch]
        decoded = made(some)
        for i, blob in enumerate(some):
            assert facts(decoded, i) == alone(blob), (start + i, decoded.reasons[i])


def lists(blobs: tuple[bytes, ...]) -> st.SearchStrategy[list[bytes]]:
    return st.lists(st.integers(0, len(blobs) - 1), min_size=1, max_size=12).map(lambda some: [blobs[i] for i in some])


@settings(max_examples=30, derandomize=True, deadline=None, database=None)
@given(blobs=lists(pool()), batch=st.sampled_from((1, 5, 12)), threads=st.sampled_from((1, 2)))
def test_canvases_in_any_company(blobs: list[bytes], batch: int, threads: int) -> None:
    check(blobs, batch, threads)

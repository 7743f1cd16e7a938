"""Thousands of damaged files: none crashes or fails a batch, none depends on other images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tests.pipelines.conftest import encode, scene
from tests.pipelines.mutations import mutated, seeds

from substyle.pipelines.decode import Decoded, Decoder

# pytest resets the product's warning filters
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")

SIDE, BATCH, BAD = 64, 32, 26  # 26 of the 32 images in a batch are damaged


@pytest.mark.parametrize(
    ("count", "seed", "orientation"),
    [(500, 7, "ignore"), (300, 8, "apply"), pytest.param(10_000, 9, "ignore", marks=pytest.mark.slow)],
)
def test_damaged_files_alone_and_among_good_ones(count: int, seed: int, orientation: str) -> None:
    rng = np.random.default_rng(seed)
    alone, mixed = (Decoder(SIDE, batch, 2, orientation=orientation) for batch in (1, BATCH))
    good = list(seeds().values())
    bad = [blob for _, blob in mutated(count, seed)]
    blobs = good + bad
    expected = [alone([blob]) for blob in blobs]
    assert all(decoded.ok_B[0] for decoded in expected[: len(good)])
    order = (len(good) + rng.permutation(count)).tolist()
    for start in range(0, count, BAD):
        part = order[start : start + BAD] + rng.integers(0, len(good), BATCH - BAD).tolist()
        part = [part[i] for i in rng.permutation(len(part))]
        assert_each_is_as_alone(mixed([blobs[i] for i in part]), [expected[i] for i in part])
    quarantined = [decoded.reasons[0] for decoded in expected if decoded.reasons[0] is not None]
    assert 0.5 * count < len(quarantined) < 0.9 * count  # else the damage is too small or too large for the test
    assert all(reason.isprintable() and len(reason) <= 150 and " at 0x" not in reason for reason in quarantined)


def assert_each_is_as_alone(decoded: Decoded, expected: list[Decoded]) -> None:
    assert decoded.reasons == [one.reasons[0] for one in expected]
    assert decoded.ok_B.tolist() == [reason is None for reason in decoded.reasons]
    assert torch.equal(decoded.canvas_BSSC, torch.cat([one.canvas_BSSC for one in expected]))
    assert np.array_equal(decoded.size_B2, np.concatenate([one.size_B2 for one in expected]))


def test_mutations_are_the_same_for_the_same_seed() -> None:
    assert mutated(40, 3) == mutated(40, 3)
    assert mutated(40, 3) != mutated(40, 4)
    assert mutated(30, 3) == mutated(40, 3)[:30]


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("JPEG", {}), ("JPEG", {"restart_marker_rows": 1}), ("JPEG", {"progressive": True}), ("WEBP", {})],
)
def test_changed_bytes_in_picture_data(kind: str, options: dict[str, bool]) -> None:
    """Detection of one changed byte: PNG has checksums, JPEG and WebP have none.

    In coded data of a JPEG, about 1 % of changed bytes are detected. Most change a small part of the image slightly,
        some everything up to the next restart marker; libjpeg would warn about at most 20 % of the changed images.
    """
    rng = np.random.default_rng(5)
    blob = encode(Image.fromarray(scene(90, 120)), kind, **options)
    start = {"PNG": blob.find(b"IDAT"), "JPEG": blob.find(b"\xff\xda") + 14, "WEBP": 60}[kind]
    decoder = Decoder(SIDE, 64, 2)
    found = 0
    for _ in range(4):
        damaged = []
        for at in rng.integers(start, len(blob) - 16, 64).tolist():
            data = bytearray(blob)
            data[at] ^= int(rng.integers(1, 256))
            damaged.append(bytes(data))
        found += int((~decoder(damaged).ok_B).sum())
    assert found == 256 if kind == "PNG" else found < 64

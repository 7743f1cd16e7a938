"""Thousands of damaged files: none crashes or fails a batch, none depends on other images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
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

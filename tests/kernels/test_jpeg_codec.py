"""JPEG compression: torch bit for bit against libjpeg through Pillow, Triton bit for bit against torch."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import slow_after
from tests.kernels.conftest import Place

from substyle.kernels import jpeg_codec

QUALITIES = np.array([1, 7, 10, 15, 18, 49, 50, 75, 95, 100], np.int32)


def pictures(height: int, width: int) -> torch.Tensor:
    """Smooth colours with increasing grain, noise, black, white and saturated colours."""
    rng = np.random.default_rng(height)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = np.stack([127 + 90 * np.sin(9 * x + i) + 30 * np.cos(20 * y * (1 + x) + i) for i in range(3)], -1)
    made = [waves + rng.normal(0, grain, waves.shape) for grain in (0, 3, 12, 60)]
    made += [rng.integers(0, 256, waves.shape), np.zeros(waves.shape), np.full(waves.shape, 255)]
    made += [rng.integers(0, 2, waves.shape) * 255, np.full(waves.shape, 128), waves[..., ::-1]]
    return torch.from_numpy(np.clip(made, 0, 255).astype(np.uint8))


def through_a_file(picture: np.ndarray, quality: int, chroma: str = "4:2:0") -> np.ndarray:  # type: ignore[type-arg]
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality, subsampling=chroma)
    return np.asarray(Image.open(file).convert("RGB"))


@pytest.mark.parametrize("size", [(32, 32), (33, 50), (17, 8), (1, 1), (1, 40), (40, 1)])
def test_the_pixels_of_libjpeg(size: tuple[int, int]) -> None:
    canvas = pictures(*size)
    for turn in range(3):  # each image at several qualities
        quality = np.roll(QUALITIES, turn)
        made = jpeg_codec.compressed_reference(canvas, quality)
        assert made.dtype == torch.uint8
        for i, q in enumerate(quality.tolist()):
            np.testing.assert_array_equal(made[i].numpy(), through_a_file(canvas[i].numpy(), q), err_msg=f"{i}, {q}")


def test_no_pictures() -> None:
    for shape in ((0, 8, 8, 3), (2, 0, 8, 3)):
        assert jpeg_codec.compressed(torch.zeros(shape, dtype=torch.uint8), np.ones(shape[0], np.int32)).shape == shape


def test_qualities_are_cut_as_libjpeg_cuts_them() -> None:
    tables = jpeg_codec.tables(np.array([-3, 0, 1, 50, 100, 400], np.int32))
    assert np.array_equal(tables[0], tables[2])
    assert np.array_equal(tables[1], tables[2])
    assert np.array_equal(tables[4], tables[5])
    assert np.array_equal(tables[3, 0], jpeg_codec.LUMA_TABLE)
    assert tables.min() == 1
    assert tables.max() == 255


GRAINY, EXTREME = {2: 10, 4: 100}, {7: 100, 9: 1}  # quality by picture; of quality 100: noise


@pytest.mark.parametrize(
    ("size", "some"),
    slow_after(1, [((0, 0), GRAINY), ((33, 50), EXTREME), ((1, 1), EXTREME), ((5, 4), GRAINY), ((40, 1), GRAINY)]),
)
@pytest.mark.parametrize("whole", [False, True])
def test_triton(place: Place, size: tuple[int, int], some: dict[int, int], whole: bool) -> None:
    """Whole and partial units, programs that end within an image, and chroma of one, two and three columns."""
    height, width = size if any(size) else (place.large, place.large + 27)
    canvas, quality = pictures(height, width)[list(some)], np.array(list(some.values()), np.int32)
    code = place.load("jpeg_codec_triton").compressed
    made = code(canvas.to(place.device), jpeg_codec.tables(quality), whole_chroma=whole)
    assert torch.equal(made.cpu(), jpeg_codec.compressed_reference(canvas, quality, whole_chroma=whole))


@pytest.mark.parametrize("size", [(64, 48), (33, 50), (1, 1), (40, 1), (7, 5)])
def test_whole_chroma(size: tuple[int, int]) -> None:
    canvas = pictures(*size)
    made = jpeg_codec.compressed(canvas, QUALITIES, whole_chroma=True)
    for i, q in enumerate(QUALITIES.tolist()):
        np.testing.assert_array_equal(made[i].numpy(), through_a_file(canvas[i].numpy(), q, "4:4:4"), err_msg=f"{i}")

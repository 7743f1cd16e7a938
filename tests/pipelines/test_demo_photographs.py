from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from substyle.kernels.errors import ConfigError
from substyle.pipelines import demo_photographs
from substyle.pipelines.sources import FolderSource


def test_regions_of_the_splits_do_not_touch() -> None:
    # the picture says where a crop comes from: red is x, green is y
    width, height = 600, 400
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x // 3, y // 3, (x % 3) * 3 + y % 3], axis=2).astype(np.uint8)
    taken = np.zeros((height, width), dtype=int)
    edges = {"train": (0, 330), "val": (330, 420), "test": (420, 600)}
    for split, _, crop in demo_photographs._crops(Image.fromarray(pixels), np.random.default_rng(0)):
        part = np.array(crop).astype(int)
        left = part[0, 0, 0] * 3 + part[0, 0, 2] // 3
        top = part[0, 0, 1] * 3 + part[0, 0, 2] % 3
        taken[top : top + crop.height, left : left + crop.width] += 1
        low, high = edges[split]
        assert low <= left
        assert left + crop.width <= high
    assert taken.max() == 1


def test_the_folder_is_a_source_with_splits(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    count = demo_photographs.write(tmp_path / "photographs")
    source = FolderSource(tmp_path / "photographs")
    assert len(source.records) == count >= 200
    assert len(source.class_names) == 16
    assert {record.split for record in source.records} == {"train", "val", "test"}
    sizes = {Image.open(path).size for path in (tmp_path / "photographs").rglob("*.jpg")}
    assert len(sizes) > 20
    with pytest.raises(ConfigError, match="empty or new"):
        demo_photographs.write(tmp_path / "photographs")

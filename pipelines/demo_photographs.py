"""Photographs for a first run, with no download: crops of the pictures that scikit-image and scikit-learn ship.

``python -m substyle.pipelines.demo_photographs FOLDER`` writes ``FOLDER/<split>/<photograph>/<number>.jpg``. A crop's
class is its photograph. Crops do not overlap, and those for testing come from a region of their own, the right-hand
part, so that no probe can be right by having seen the same pixels.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image

from substyle.kernels.errors import ConfigError

# package: files that are photographs of something (no charts, masks or synthetic pictures)
PHOTOGRAPHS = {
    "skimage.data": (
        *(
            "astronaut.png",
            "brick.png",
            "camera.png",
            "chelsea.png",
            "coffee.png",
            "coins.png",
            "grass.png",
            "gravel.png",
        ),
        *("hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg"),
    ),
    "sklearn.datasets.images": ("china.jpg", "flower.jpg"),
}
TEST_SHARE, VAL_SHARE = 0.3, 0.15  # of a photograph's width, from its right edge
SIDES = (72, 88, 104)  # px, shorter side of a crop: photographs of varied size
CROPS = {"train": 8, "val": 2, "test": 4}  # at most, for each photograph
QUALITY = 92  # of the JPEG files


def write(folder: Path, *, seed: int = 0) -> int:
    """Write the crops; returns how many. Raises ConfigError when the folder is not empty."""
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError("FOLDER", str(folder), "an empty or new folder")
    rng = np.random.default_rng(seed)
    count = 0
    for package, names in PHOTOGRAPHS.items():
        place = Path(next(iter(import_module(package).__path__)))
        for name in names:
            with Image.open(place / name) as opened:
                photograph = opened.convert("RGB")
            for split, number, crop in _crops(photograph, rng):
                target = folder / split / Path(name).stem
                target.mkdir(parents=True, exist_ok=True)
                crop.save(target / f"{number:02d}.jpg", quality=QUALITY)
                count += 1
    return count


def _crops(photograph: Image.Image, rng: np.random.Generator) -> Iterator[tuple[str, int, Image.Image]]:
    """(split, number, crop): each split's region is cut into a grid of cells, one crop in a cell."""
    width, height = photograph.size
    edges = {
        "train": (0, round(width * (1 - TEST_SHARE - VAL_SHARE))),
        "val": (round(width * (1 - TEST_SHARE - VAL_SHARE)), round(width * (1 - TEST_SHARE))),
        "test": (round(width * (1 - TEST_SHARE)), width),
    }
    for split, (left, right) in edges.items():
        cell_w, cell_h = _cell(right - left, height, CROPS[split])
        columns, rows = (right - left) // cell_w, height // cell_h
        cells = [(column, row) for row in range(rows) for column in range(columns)]
        rng.shuffle(cells)
        for number, (column, row) in enumerate(sorted(cells[: CROPS[split]])):
            side = int(rng.choice([s for s in SIDES if s <= min(cell_w, cell_h)] or [min(cell_w, cell_h)]))
            wide = min(cell_w, round(side * float(rng.uniform(1.0, 1.5))))
            x = left + column * cell_w + int(rng.integers(0, cell_w - wide + 1))
            y = row * cell_h + int(rng.integers(0, cell_h - side + 1))
            yield split, number, photograph.crop((x, y, x + wide, y + side))


def _cell(width: int, height: int, wanted: int) -> tuple[int, int]:
    """Width and height of cells, the largest (up to 160 px) of which enough fit."""
    for side in range(160, 47, -4):
        if (width // side) * (height // side) >= wanted:
            return side, side
    return min(width, 48), min(height, 48)


def main() -> int:
    """The command."""
    if len(sys.argv) != 2:
        print("usage: python -m substyle.pipelines.demo_photographs FOLDER", file=sys.stderr)
        return 2
    try:
        count = write(Path(sys.argv[1]))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{sys.argv[1]}: {count} photographs")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Photographs without a download: crops of images shipped with Python packages, for the demo and for gates.

``python -m substyle.pipelines.packaged_photographs FOLDER`` writes ``FOLDER/<split>/<photograph>/<number>.jpg``. The
class of a crop is its photograph. Names after FOLDER, such as ``brick grass gravel``, select photographs.

Splits share no pixels: the right part of a photograph is for testing; the left part is halved into training above and
validation below. Crops of one split may overlap, and all crops of a photograph show one scene, so they are not
independent: intervals of the class accuracy should resample photographs, not crops.

Licences: see `skimage.data` for scikit-image's images, most of which are CC0 or public domain. Grace Hopper (US Navy)
is in the public domain. China (Daniel Büchele) and flower (vultilion) are CC BY 2.0.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from substyle import files
from substyle.engine import cache
from substyle.errors import ConfigError

# by package: photographs (no charts, masks or drawings) of at least 300 px in height and width
PHOTOGRAPHS = {
    "skimage": (
        "data/astronaut.png",
        "data/brick.png",
        "data/camera.png",
        "data/chelsea.png",
        "data/coffee.png",
        "data/coins.png",
        "data/grass.png",
        "data/gravel.png",
        "data/hubble_deep_field.jpg",
        "data/ihc.png",
        "data/moon.png",
        "data/motorcycle_left.png",
        "data/retina.jpg",
        "data/rocket.jpg",
    ),
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
    "matplotlib": ("mpl-data/sample_data/grace_hopper.jpg",),
}
CROPS = {"train": 7, "val": 3, "test": 6}  # per photograph
TEST_SHARE = 0.4  # of a photograph's width
SMALLEST = 150  # px, minimum shorter side of a crop: a canvas of 224 px enlarges it 1.7 times
SHORTEST = 0.7  # minimum shorter side, as a share of the largest that fits all regions of a photograph
LONGEST = 1.5  # maximum ratio of longer to shorter side
QUALITY = 92  # of the JPEG files
# Steps of a quasirandom sequence in the unit square: powers of the plastic number's inverse.
# Source: M. Roberts, "The unreasonable effectiveness of quasirandom sequences" (2018), R2.
STEPS_2 = np.array([0.7548776662466927, 0.5698402909980532])


class Rectangle(NamedTuple):
    """Part of a photograph in px, ``right`` and ``bottom`` excluded, as in `PIL.Image.Image.crop`."""

    left: int
    top: int
    right: int
    bottom: int


def paths() -> list[Path]:
    """Paths of the photographs. Raises ModuleNotFoundError if a package is not installed."""
    return [_folder(package) / name for package, names in PHOTOGRAPHS.items() for name in names]


def _folder(package: str) -> Path:
    spec = find_spec(package)  # does not import the package
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"no package {package}", name=package)
    return Path(spec.submodule_search_locations[0])


def regions(width: int, height: int) -> dict[str, Rectangle]:
    """The region of a photograph for each split; width and height in px."""
    border = width - max(SMALLEST, round(TEST_SHARE * width))
    half = height // 2
    return {
        "train": Rectangle(0, 0, border, half),
        "val": Rectangle(0, half, border, height),
        "test": Rectangle(border, 0, width, height),
    }


def rectangles(width: int, height: int, rng: np.random.Generator) -> list[tuple[str, Rectangle]]:
    """Draw the split and rectangle of each crop of a photograph; width and height in px, at least 300.

    Sides have the same distribution in all splits, so crops are enlarged alike. Positions spread evenly over a region.
    """
    parts = regions(width, height)
    room = min(min(part.right - part.left, part.bottom - part.top) for part in parts.values())
    drawn = []
    for split, part in parts.items():
        space_2 = np.array([part.right - part.left, part.bottom - part.top])
        start_2 = rng.random(2)
        for number in range(CROPS[split]):
            side = int(rng.integers(max(SMALLEST, round(SHORTEST * room)), room, endpoint=True))
            size_2 = np.minimum(space_2, rng.permutation([side, round(side * rng.uniform(1, LONGEST))]))
            place_2 = np.rint((start_2 + number * STEPS_2) % 1 * (space_2 - size_2)).astype(int)
            left, top = int(part.left + place_2[0]), int(part.top + place_2[1])
            drawn.append((split, Rectangle(left, top, left + int(size_2[0]), top + int(size_2[1]))))
    return drawn


def write(folder: Path, names: Sequence[str] = (), *, seed: int = 0) -> int:
    """Write the crops of some photographs (default: all) and return their number.

    Raises:
        ConfigError: the folder is not empty, or an unknown photograph.
    """
    known = [path.stem for path in paths()]
    for name in names:
        if name not in known:
            raise ConfigError("PHOTOGRAPH", name, ", ".join(known))
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError("FOLDER", str(folder), "an empty or new folder")
    rng = np.random.default_rng(seed)
    count = 0
    for path in paths():
        with Image.open(path) as opened:
            photograph = opened.convert("RGB")
        drawn = rectangles(*photograph.size, rng)  # also of those left out: crops do not depend on the selection
        for number, (split, rectangle) in enumerate(drawn if not names or path.stem in names else ()):
            target = folder / split / path.stem
            target.mkdir(parents=True, exist_ok=True)
            photograph.crop(rectangle).save(target / f"{number:02d}.jpg", quality=QUALITY)
            count += 1
    return count


def ensure(folder: Path, names: Sequence[str] = ()) -> None:
    """Write the crops, unless the folder has them; replace others, also of another version of this module or `SOURCES`.

    The folder appears when it is complete. Raises ConfigError if it holds other files, or as `write`.
    """
    code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    made_from = cache.key({"code": code, "names": sorted(names), **cache.versions(*SOURCES)})
    stamp = folder / STAMP
    if stamp.is_file() and stamp.read_text() == made_from:
        return
    if folder.exists() and not stamp.is_file() and any(folder.iterdir()):
        raise ConfigError("photographs", f"{folder}, which holds other files", "an empty or new folder, or --images")
    with files.replacing_folder(folder) as new:
        write(new, names)
        files.write(new / STAMP, made_from)


STAMP = ".substyle-photographs"  # file in a folder of `ensure`: what its crops were made from
# distributions whose versions determine crops and `canvases`
SOURCES = ("scikit-image", "scikit-learn", "matplotlib", "pillow", "numpy")
NARROWEST = 0.5  # minimum side of a canvas's crop, as a share of the shorter side


def canvases(count: int, side: int) -> tuple[NDArray[np.uint8], list[str]]:
    """Square crops of the photographs in turn, the same on every machine. A larger count begins with a smaller one.

    Args:
        count: N, the number of crops.
        side: S in px.

    Returns:
        canvases (N, S, S, 3) uint8, and a unique name for each.
    """
    canvas_NSSC, names = _cropped(count, side)
    return canvas_NSSC.copy(), list(names)


@lru_cache(maxsize=4)  # gates, quantisation and every random network take the same; decoding takes 0.2 s
def _cropped(count: int, side: int) -> tuple[NDArray[np.uint8], list[str]]:
    draw_N3 = np.random.default_rng(0).random((count, 3))
    canvas_NSSC = np.empty((count, side, side, 3), np.uint8)
    names = [""] * count
    sources = paths()
    for i, path in enumerate(sources):
        with Image.open(path) as opened:
            photograph = opened.convert("RGB")
        for n in range(i, count, len(sources)):
            crop = round(min(photograph.size) * (NARROWEST + (1 - NARROWEST) * draw_N3[n, 0]))
            left, top = ((length - crop) * at for length, at in zip(photograph.size, draw_N3[n, 1:], strict=True))
            box = (left, top, left + crop, top + crop)
            canvas_NSSC[n] = np.asarray(photograph.resize((side, side), Image.Resampling.BICUBIC, box))
            names[n] = f"{path.stem}/{n // len(sources)}"
    return canvas_NSSC, names


def fixed_canvases(side: int) -> NDArray[np.uint8]:
    """A photograph, the same in grey, black, and its colours at full saturation. Shape: (4, S, S, 3) uint8."""
    photograph = _cropped(1, side)[0][0]
    grey = np.repeat(np.rint(photograph.mean(axis=2, keepdims=True)).astype(np.uint8), 3, axis=2)
    return np.stack(
        [photograph, grey, np.zeros_like(photograph), np.where(photograph > 127, np.uint8(255), np.uint8(0))]
    )


def main() -> int:
    """Entry point of the command."""
    if len(sys.argv) < 2:
        print("usage: python -m substyle.pipelines.packaged_photographs FOLDER [PHOTOGRAPH ...]", file=sys.stderr)
        return 2
    try:
        ensure(Path(sys.argv[1]), sys.argv[2:])
    except ConfigError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

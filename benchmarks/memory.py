"""Peak memory of an embedding run, and whether it grows with the number of photographs.

    python -m benchmarks.memory [--count 5000] [--out benchmarks/results/memory.json]

Embeds photographs of 0.2 to 24 megapixels with the cheapest backbone while sampling the memory of the process. Some
files only Pillow can decode, and some are damaged. After the first shard everything is allocated: memory must then stay
within 1.5 times its level. A few distinct files are linked under many names, since memory does not depend on content.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.harness import document, parser, write
from substyle.engine.config import BackboneChoice, EmbedConfig, Settings
from substyle.engine.embedding.plan import EmbedPlan
from substyle.engine.embedding.prepare import PixelPipeline
from substyle.engine.embedding.run import embed
from substyle.engine.store import journal
from substyle.pipelines.sources import FolderSource
from substyle.pipelines.storage import LocalPlace

NAME = "memory"
QUESTION = "how much memory does an embedding run take, and does it grow with the number of photographs?"
TARGET = 1.5  # peak memory after the first shard over the level at its end

# height, width in px, kind, files per hundred; "damaged" is truncated, "broken" has no Huffman tables
SIZES = (
    *((375, 500, "JPEG", 50), (500, 333, "progressive", 6), (1000, 1000, "JPEG", 16), (1600, 2400, "JPEG", 12)),
    *((3000, 4000, "JPEG", 6), (4000, 6000, "JPEG", 2), (800, 1200, "CMYK", 2), (1000, 1400, "RGBA", 3)),
    *((375, 500, "damaged", 2), (375, 500, "broken", 1)),
)
BATCH = 32
SAMPLE_SECONDS = 0.02
MB = 1_000_000


def write_photographs(folder: Path, count: int) -> float:
    """Write ``count`` files to a folder in random order and return their mean size in megapixels."""
    originals = folder.with_name("originals")
    originals.mkdir()
    for i, (height, width, kind, _) in enumerate(SIZES):
        (originals / str(i)).write_bytes(_file(height, width, kind))
    shares = np.array([share for *_, share in SIZES], np.float64)
    drawn = np.random.default_rng(0).choice(len(SIZES), count, p=shares / shares.sum()).tolist()
    folder.mkdir()
    for n, i in enumerate(drawn):
        os.link(originals / str(i), folder / f"{n:06d}.{'png' if SIZES[i][2] == 'RGBA' else 'jpg'}")
    return float(np.mean([SIZES[i][0] * SIZES[i][1] for i in drawn])) / 1e6


def _file(height: int, width: int, kind: str) -> bytes:
    """Encode smooth colours with grain, which compress like a photograph."""
    rng = np.random.default_rng(height * width)
    cells = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    smooth = np.asarray(cells.resize((width, height), Image.Resampling.BICUBIC))
    grain = np.tile(rng.normal(0, 5, (256, 256, 1)), (-(-height // 256), -(-width // 256), 1))[:height, :width]
    image, out = Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)), io.BytesIO()
    if kind == "RGBA":
        image.convert("RGBA").save(out, "PNG", compress_level=1)
    else:
        mode = "CMYK" if kind == "CMYK" else "RGB"
        image.convert(mode).save(out, "JPEG", quality=90, progressive=kind == "progressive")
    blob = out.getvalue()
    if kind == "damaged":
        return blob[: len(blob) // 2]
    return blob.replace(b"\xff\xc4", b"\xff\xfe") if kind == "broken" else blob


def resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MB


def measure(count: int, shard_rows: int) -> dict[str, Any]:
    """Embed ``count`` photographs and report the memory used, in MB."""
    first: list[float] = []  # until a shard is finished
    later: list[float] = []
    stop = threading.Event()

    def sample(finished: Path) -> None:
        while not stop.wait(SAMPLE_SECONDS):
            done = bool(later) or (finished.is_dir() and any(finished.iterdir()))
            (later if done else first).append(resident())

    with tempfile.TemporaryDirectory(prefix="substyle-memory-") as place:
        folder, store = Path(place) / "photographs", Path(place) / "s.zarr"
        megapixels = write_photographs(folder, count)
        pipeline = PixelPipeline(Settings(0, 224, ("identity", "grayscale")), EmbedConfig(BATCH, shard_rows=shard_rows))
        plan = EmbedPlan(FolderSource(folder), LocalPlace(store), pipeline)
        before = resident()
        thread = threading.Thread(target=sample, args=(store / journal.FOLDER,), daemon=True)
        thread.start()
        try:
            summary = embed(plan, [BackboneChoice("control:pixels")], quiet=True)
        finally:
            stop.set()
            thread.join()
    if not first or len(later) < 2:
        raise SystemExit(f"too few samples from {count} photographs in shards of {shard_rows}: increase --count")
    return {
        **{"photographs": count, "mean_megapixels": megapixels},
        "largest_megapixels": max(height * width for height, width, *_ in SIZES) / 1e6,
        **{"quarantined": len(summary.quarantined), "batch": BATCH, "shard_rows": shard_rows, "shards": summary.shards},
        **{"before_mb": before, "first_shard_peak_mb": max(first), "level_mb": later[0], "peak_mb": max(later)},
        **{"end_mb": later[-1], "ratio": max(later) / later[0], "target": TARGET},
    }


def main() -> int:
    """Run the command line; return 1 if the ratio exceeds its target."""
    command = parser(NAME, __doc__)
    command.add_argument("--count", type=int, default=5000, help="number of photographs (5000)")
    command.add_argument("--shard-rows", type=int, default=512, help="photographs per shard, a power of two (512)")
    options = command.parse_args()
    measured = measure(options.count, options.shard_rows)
    write(options.out, document(NAME, QUESTION, memory=measured))
    print("\n".join(f"{name}: {value:,.6g}" for name, value in measured.items()))
    return 0 if measured["ratio"] <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())

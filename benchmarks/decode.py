"""How many photographs a second become canvases, against plain decoding and against other libraries?

Decode, resize so that the shorter side is 8/7 of 224, crop the centre: from encoded bytes in memory to uint8 canvases.
Ours checks each file and quarantines what is broken. Peers take the same bytes on as many threads as we have. The
ceiling is DALI's decoder alone. Photographs come from SUBSTYLE_PHOTOGRAPHS; the row says how large they are. Those of a
given size are packaged photographs, enlarged, with the noise of a sensor, as JPEG files of quality 90.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks import photographs
from benchmarks.harness import CEILING, OURS, Row, interleave
from benchmarks.networks import CORES
from benchmarks.peers import decode_plain
from substyle.pipelines import packaged_photographs
from substyle.pipelines.decode import Decoder

NAME = "decode"
QUESTION = "how many photographs a second become canvases?"
BATCH, SIDE = 32, 224


def run(quick: bool) -> list[Row]:
    """Rows for batches as the engine runs them, for a photograph at a time, and for photographs of three sizes."""
    torch.set_num_threads(CORES)
    batches = 2 if quick else 8
    blobs = [record.read() for record in photographs.records(batches * BATCH)]
    rows = [_row("batches of 32", blobs, BATCH, quick), _row("one at a time", blobs[:BATCH], 1, quick)]
    for width, height, count in ((500, 375, 64), (4000, 3000, 8), (6000, 4000, 8)):
        title = f"photographs of {width * height / 1e6:.1f} megapixels"
        rows.append(_row(title, _enlarged(width, height, 2 if quick else count), BATCH, quick))
    return rows


def _enlarged(width: int, height: int, count: int) -> list[bytes]:
    canvas_NSSC, _ = packaged_photographs.canvases(count, SIDE)
    rng = np.random.default_rng(0)
    noise = rng.integers(-6, 7, (height, width, 3), dtype=np.int16)
    blobs = []
    for canvas in canvas_NSSC:
        large = Image.fromarray(canvas).resize((width, height), Image.Resampling.BICUBIC)
        noisy = np.clip(np.asarray(large, np.int16) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(file := io.BytesIO(), "JPEG", quality=90)
        blobs.append(file.getvalue())
    return blobs


def _row(title: str, blobs: Sequence[bytes], batch: int, quick: bool) -> Row:
    parts = [blobs[i : i + batch] for i in range(0, len(blobs), batch)]
    decoder = Decoder(SIDE, batch, CORES)
    decoded = [decoder(part) for part in parts]
    size_N2 = np.concatenate([part.size_B2 for part in decoded])
    dali = _decode_alone(batch)

    def ceiling() -> None:
        for part in parts:
            dali.run(blob=[np.frombuffer(blob, np.uint8) for blob in part])

    contenders: dict[str, Callable[[], object]] = {OURS: lambda: [decoder(part) for part in parts], CEILING: ceiling}
    if batch > 1:
        pool = ThreadPoolExecutor(CORES)
        for name, work in decode_plain.ALL.items():
            contenders[name] = lambda work=work: _threaded(pool, work, blobs)
    facts = {
        "median_height": int(np.median(size_N2[:, 0])),
        "median_width": int(np.median(size_N2[:, 1])),
        "ok": int(sum(part.ok_B.sum() for part in decoded)),
    }
    timings = interleave(contenders, repeats=3 if quick else 11)
    name = f"decode, resize, crop to {SIDE}, {title}; ceiling: DALI's decoder alone"
    return Row(name, "images", len(blobs), timings, facts=facts, headline=title == "batches of 32")


def _threaded(pool: ThreadPoolExecutor, work: Callable[[bytes, int], NDArray[Any]], blobs: Sequence[bytes]) -> None:
    torch.set_num_threads(1)  # the photographs are what is done side by side
    list(pool.map(lambda blob: work(blob, SIDE), blobs))
    torch.set_num_threads(CORES)


def _decode_alone(batch: int) -> Any:  # noqa: ANN401 - DALI ships no types
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import Pipeline

    pipeline = Pipeline(batch, CORES, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        blob = fn.external_source(name="blob", dtype=types.UINT8, ndim=1)
        pipeline.set_outputs(fn.decoders.image(blob, device="cpu", output_type=types.RGB))
    pipeline.build()
    return pipeline

"""Time of each of the 31 transformations of the default suite, of all together, and of each of the other suites.

``ours`` is what an embedding run does with a batch of 32 canvases of 224 pixels: draw parameters, transform, and check
that each variant is distinct. ``us_per_image`` is that time per image, ``of_all`` its share of the sum over all rows.
Peers process single pictures, on as many threads, with parameters in the same ranges; the plain script uses NumPy,
Pillow and OpenCV. The ceiling is a memory copy of the batch for pointwise transformations, and the
compiled network alone for styles.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import photographs
from benchmarks.harness import CEILING, OURS, Row, interleave
from benchmarks.networks import CORES
from benchmarks.peers import plain_transforms
from benchmarks.peers.transforms import ALBUMENTATIONS, LIBRARIES, STYLES, published
from substyle.engine.store import manifest
from substyle.engine.style_transfer.networks import StyleNetwork, networks_for
from substyle.pipelines.decode import Decoder
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import suite, suites
from substyle.pipelines.variants import VariantMaker, distinct, load_all

NAME = "transforms"
QUESTION = "how long does each of the 31 transformations take, and all of them together?"
BATCH, SIDE = 32, 224
POINTWISE = ("gaussian_noise", "impulse_noise", "shot_noise", "hue_shift", "grayscale", "channel_permute",
             "brightness", "low_contrast", "saturate", "inverted_lines")  # fmt: skip
_PLAIN = "plain script"


def run(quick: bool) -> list[Row]:
    """Measure each transformation, all without styles, the styles, and all; then distinctness and thumbnails."""
    torch.set_num_threads(CORES)
    load_all()
    names = suite("substance31")
    styles = tuple(name for name in names if base.get(name).made_by == "network")
    others = tuple(name for name in names if name not in styles)
    bench = _Bench(quick)
    rows = [bench.row(name, (name,)) for name in names]
    seconds = [row.timings[OURS].median for row in rows]
    for row, spent in zip(rows, seconds, strict=True):
        row.facts |= {"us_per_image": 1e6 * spent / BATCH, "of_all": spent / sum(seconds)}
        row.headline = False
    together = [bench.row(f"all {len(others)} without styles", others), bench.row("the five styles", styles)]
    together.append(bench.row(f"all {len(names)}", names))
    for row, part in zip(together, (others, styles, names), strict=True):
        alone = sum(spent for name, spent in zip(names, seconds, strict=True) if name in part)
        row.facts |= {
            "ms_per_image": 1e3 * row.timings[OURS].median / BATCH,
            "sum_of_rows_ms_per_image": 1e3 * alone / BATCH,
        }
    further = dict.fromkeys(name for each in suites() for name in suite(each) if name not in names)
    more = [bench.row(name, (name,)) for name in further]
    for row in more:
        row.facts |= {"us_per_image": 1e6 * row.timings[OURS].median / BATCH}
        row.headline = False
    return [*rows, *together, *more, *bench.beside()]


class _Bench:
    """The batch to transform, and the measurements on it."""

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        self.repeats = 3 if quick else 15
        self.some = 4 if quick else BATCH  # pictures per peer; the time is scaled to a batch
        records = photographs.records(BATCH)
        decoded = Decoder(SIDE, BATCH, CORES)([record.read() for record in records])
        self.keys = [f"{i}/{record.key}" for i, record in enumerate(records)]
        self.canvas_BSSC = decoded.canvas_BSSC
        self.pool = ThreadPoolExecutor(CORES)

    def row(self, title: str, names: Sequence[str]) -> Row:
        styles = [name for name in names if base.get(name).made_by == "network"]
        networks = networks_for(names, side=SIDE, threads=CORES)
        maker = VariantMaker(names, side=SIDE, seed=0, batch=BATCH, threads=CORES, networks=networks)

        def ours() -> None:
            for _ in maker(self.canvas_BSSC, self.keys):
                pass

        contenders: dict[str, Callable[[], object]] = {OURS: ours}
        if styles == list(names):
            (network,) = networks.values()
            assert isinstance(network, StyleNetwork)
            pieces = [[self.canvas_BSSC[i : i + 1].numpy()] for i in range(BATCH)]
            contenders[CEILING] = lambda: list(network.graph.run(pieces))
            if len(styles) > 1:
                others = published(styles, SIDE, CORES)
                contenders[STYLES] = lambda: others(self.canvas_BSSC)
        elif len(names) == 1 and names[0] in POINTWISE:
            contenders[CEILING] = self.canvas_BSSC.clone
        contenders |= self._peers(names)
        facts = {"made_by": base.get(names[0]).made_by} if len(names) == 1 else {}
        return Row(title, "images", BATCH, interleave(contenders, repeats=self.repeats), facts=facts)

    def _peers(self, names: Sequence[str]) -> dict[str, Callable[[], object]]:
        peers: dict[str, Callable[[], object]] = {}
        made = [name for name in names if name in plain_transforms.ALL]
        if made and len(made) == len(names) and names[0] != "identity":
            peers[_PLAIN] = lambda: self._timed([plain_transforms.ALL[name] for name in made])
        if len(names) == 1:
            for library, works in LIBRARIES.items():
                if names[0] in works:
                    planar = library == "torchvision"
                    peers[library] = lambda work=works[names[0]], planar=planar: self._timed([work], planar=planar)
        elif len(made) == len(names):  # one library, not the fastest for each transformation
            several = {**plain_transforms.ALL, **ALBUMENTATIONS}
            peers["Albumentations, else plain script"] = lambda: self._timed([several[name] for name in made])
        return peers

    def _timed(self, works: Sequence[Callable[[Any, np.random.Generator], Any]], *, planar: bool = False) -> float:
        """Return seconds for a batch, one picture per task on all cores."""
        pictures: list[Any] = list(self.canvas_BSSC[: self.some].numpy())
        if planar:
            pictures = [torch.from_numpy(picture).permute(2, 0, 1).contiguous() for picture in pictures]

        def one(i: int) -> None:
            rng = np.random.default_rng(i)
            for work in works:
                work(pictures[i], rng)

        torch.set_num_threads(1)  # the parallelism is over pictures
        began = time.perf_counter()
        list(self.pool.map(one, range(len(pictures))))
        spent = time.perf_counter() - began
        torch.set_num_threads(CORES)
        return spent * BATCH / len(pictures)

    def beside(self) -> list[Row]:
        """Measure the distinctness check of a variant and the thumbnails of canvases."""
        other = self.canvas_BSSC.flip(2).contiguous()
        small: Mapping[str, Callable[[], object]] = {
            OURS: lambda: manifest.as_hex(manifest.shrunk(self.canvas_BSSC).numpy()),
            CEILING: self.canvas_BSSC.clone,
        }
        same: Mapping[str, Callable[[], object]] = {
            OURS: lambda: distinct(self.canvas_BSSC, other),
            "NumPy, mean of absolute differences": lambda: _mean_difference(self.canvas_BSSC.numpy(), other.numpy()),
        }
        return [
            Row(name, "images", BATCH, interleave(contenders, repeats=3 * self.repeats), headline=False)
            for name, contenders in (("distinctness of one variant", same), ("thumbnails", small))
        ]


def _mean_difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.bool_]:
    differences = np.abs(a.astype(np.int16) - b).mean(axis=(1, 2, 3))
    return np.asarray(differences >= 1)

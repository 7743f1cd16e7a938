"""Do embeddings depend on the batch, on other photographs, or on how often a run was interrupted?

    python -m benchmarks.invariance [--quick] [--out benchmarks/results/invariance.json]

The same photographs are embedded several times: in batches of other sizes, beside other photographs, by another number
of threads, and in two runs of which the second goes on with the first. Rows are compared byte by byte with those of one
run with the default batch.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import photographs
from benchmarks.harness import document, parser, write
from substyle.engine.config import EmbedConfig
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table
from substyle.engine.study.api import embed

NAME = "invariance"
QUESTION = "do embeddings depend on the batch, on other photographs, or on interruptions?"
SUITE = "identity,gaussian_blur,jpeg,swirl,dot_halftone,style_wave"
BACKBONES = ("package:clip_vit_b16", "package:mobilenet_v2", "package:efficientnet_lite0")
CONTROLS = ("control:pixels", "control:statistics")
COUNT, OTHERS = 40, 24  # photographs, and those beside them
Rows = dict[tuple[str, str], NDArray[Any]]  # by key and transformation


def rows_of(store: EmbeddingStore, name: str) -> Rows:
    """Embeddings of a store as they are stored."""
    table = load_table(store, name)
    x_TND = np.asarray(table.x_TND)
    return {(key, t): x_TND[i, n] for i, t in enumerate(table.transformations) for n, key in enumerate(table.keys)}


def compared(first: Rows, other: Rows) -> dict[str, Any]:
    """How many rows of the first are byte-equal in another run, and the largest difference relative to the norm."""
    differences = [
        float(np.linalg.norm(row - other[place]) / max(np.linalg.norm(row), 1e-30))
        for place, row in ((place, row.astype(np.float64)) for place, row in first.items())
    ]
    equal = sum(row.tobytes() == other[place].tobytes() for place, row in first.items())
    return {"rows": len(first), "equal": equal, "largest_difference": max(differences)}


def runs(folder: Path, more: Path, place: Path, name: str) -> Iterator[tuple[str, EmbeddingStore]]:
    """Embed the same photographs in several ways; the first is the default."""

    def made(what: str, images: Path = folder, limit: int = 0, **settings: Any) -> EmbeddingStore:  # noqa: ANN401
        config, store = EmbedConfig(**settings), place / f"{what.replace(' ', '-')}.zarr"
        return embed(images, store, [name], transformations=SUITE, config=config, limit=limit)

    yield "default", made("default")
    for batch in (1, 7):
        yield f"batches of {batch}", made(f"batches of {batch}", batch=batch)
    yield "one thread", made("one thread", threads=1)
    yield "beside other photographs", made("beside other photographs", more)
    made("in two runs", limit=COUNT // 3)
    yield "in two runs", made("in two runs")


def measure(names: list[str]) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="substyle-bench-") as temporary:
        place = Path(temporary)
        folder, more = place / "some", place / "more"
        for path, count in ((folder, COUNT), (more, COUNT + OTHERS)):
            path.mkdir()
            for i, record in enumerate(photographs.records(count)):  # others lie between them
                (path / f"{i % COUNT:02d}-{i // COUNT}{Path(record.key).suffix}").write_bytes(record.read())
        for name in names:
            (place / name.replace(":", "-")).mkdir()
            first: Rows = {}
            for what, store in runs(folder, more, place / name.replace(":", "-"), name):
                rows = rows_of(store, name)
                if what == "default":
                    first = rows
                else:
                    yield {"backbone": name, "run": what, **compared(first, rows)}


def main() -> int:
    """Embed, write the result, and return 1 if a row differs."""
    command = parser(NAME, __doc__)
    command.add_argument("--quick", action="store_true", help="one backbone and a control")
    options = command.parse_args()
    rows = []
    for row in measure([BACKBONES[1], CONTROLS[1]] if options.quick else [*BACKBONES, *CONTROLS]):
        print("{equal:,} of {rows:,} rows equal, {largest_difference:.1e}  {backbone}, {run}".format(**row), flush=True)
        rows.append(row)
    write(options.out, document(NAME, QUESTION, quick=options.quick, rows=rows))
    return int(any(row["equal"] < row["rows"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())

"""Damaged Parquet and Arrow files, opened in a separate process, because a reader may crash.

``python table_fuzz.py FOLDER FIRST LAST`` prints the outcome of each file.
"""

from __future__ import annotations

import logging
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from substyle.errors import SubstyleError
from substyle.pipelines.sources import TableSource

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
ROWS = 8


def table() -> pa.Table:
    images = pa.array([{"bytes": bytes([i]) * (60 + i), "path": "a"} for i in range(ROWS)], IMAGE)
    return pa.table({"image": images, "label": pa.array([i % 3 for i in range(ROWS)]), "split": ["train"] * ROWS})


def stream(path: Path) -> None:
    with pa.ipc.new_stream(path, table().schema) as file:
        file.write_table(table(), max_chunksize=3)


def arrow_file(path: Path) -> None:
    with pa.ipc.new_file(path, table().schema) as file:
        file.write_table(table(), max_chunksize=3)


def plain(path: Path) -> None:
    pq.write_table(table(), path, row_group_size=4, compression="none", use_dictionary=False)


def packed(path: Path) -> None:
    pq.write_table(table(), path, row_group_size=4)


FORMS: list[tuple[str, Callable[[Path], None]]] = [
    ("a.arrow", stream), ("b.arrow", arrow_file), ("a.parquet", plain), ("b.parquet", packed),
]  # fmt: skip


def damaged(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        at, kind = rng.randrange(len(changed)), rng.random()
        if kind < 0.7:
            changed[at] = rng.choice([0, 255, 128, 127, rng.randrange(256)])
        elif kind < 0.8 and len(changed) > 100:
            del changed[max(at, 1) :]
        else:
            word = rng.choice([b"\xff" * 8, bytes(8), b"\xff\xff\xff\x7f" * 2, rng.randbytes(8)])
            changed[at : at + 8] = word[: len(changed) - at]
    return bytes(changed)


def became(path: Path) -> str:
    """Outcome of opening a source: ``refused``, ``whole``, or ``partly`` if some rows are unreadable."""
    try:
        source = TableSource(path)
    except SubstyleError:
        return "refused"
    failed = 0
    for record in source.records:
        try:
            record.read()
        except OSError:
            failed += 1
    return "partly" if failed or len(source.records) < ROWS else "whole"


def main(folder: Path, first: int, last: int) -> Counter[str]:
    logging.disable(logging.CRITICAL)
    found: Counter[str] = Counter()
    for name, write in FORMS:
        path = folder / name
        write(path)
        data = path.read_bytes()
        assert became(path) == "whole"
        for number in range(first, last):
            path.write_bytes(damaged(data, random.Random(number)))
            found[became(path)] += 1
    return found


if __name__ == "__main__":
    print(dict(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))

"""The manifest: which image stands in which row. Immutable Parquet segments under `images.parquet/`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from substyle.engine.store.files import write_durably
from substyle.engine.table import SPLITS, UNLABELLED
from substyle.kernels.errors import SubstyleError

FOLDER = "images.parquet"
_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("key", pa.string()),
        ("label", pa.int32()),
        ("class_name", pa.string()),
        ("split", pa.string()),
    ]
)


@dataclass(frozen=True)
class Manifest:
    """Rows of a store that hold an image (rows between segments are padding and are not listed).

    Attributes:
        row_N: ascending rows; keys, label_N, split_N stand beside them (as in `EmbeddingTable`).
        class_names: indexed by label; classes of later segments come after those of earlier ones.
    """

    row_N: NDArray[np.int64]
    keys: tuple[str, ...]
    label_N: NDArray[np.int64]
    class_names: tuple[str, ...]
    split_N: NDArray[np.int8]

    @property
    def rows(self) -> int:
        """Number of rows, padding included."""
        return int(self.row_N[-1]) + 1 if len(self.row_N) else 0

    def between(self, start: int, stop: int) -> slice:
        """The slice of images whose rows lie in [start, stop)."""
        first, last = np.searchsorted(self.row_N, [start, stop])
        return slice(int(first), int(last))


def read(store: Path) -> Manifest:
    """All segments of a store's manifest. Raises SubstyleError when there is none or one cannot be read."""
    paths = sorted((store / FOLDER).glob("segment-*.parquet"))
    if not paths:
        raise SubstyleError(f"{store}: no manifest ({FOLDER}/segment-*.parquet) is there")
    try:
        table = pa.concat_tables([pq.read_table(path, schema=_SCHEMA) for path in paths])
    except (pa.ArrowInvalid, OSError) as error:
        raise SubstyleError(f"{store}: the manifest cannot be read: {error}") from error
    labels = table["label"].to_numpy().astype(np.int64)
    names: dict[int, str] = {}
    for label, name in zip(labels.tolist(), table["class_name"].to_pylist(), strict=True):
        if label != UNLABELLED:
            names.setdefault(label, name)
    return Manifest(
        row_N=table["row"].to_numpy(),
        keys=tuple(table["key"].to_pylist()),
        label_N=labels,
        class_names=tuple(names[i] for i in sorted(names)),
        split_N=np.array([SPLITS.index(name) for name in table["split"].to_pylist()], dtype=np.int8),
    )


def append(
    store: Path,
    *,
    first_row: int,
    keys: Sequence[str],
    label_N: NDArray[np.int64],
    class_names: Sequence[str],
    split_N: NDArray[np.int8],
) -> None:
    """Write one more segment whose images stand in rows first_row, first_row + 1, …"""
    folder = store / FOLDER
    folder.mkdir(exist_ok=True)
    table = pa.table(
        {
            "row": np.arange(first_row, first_row + len(keys), dtype=np.int64),
            "key": list(keys),
            "label": label_N.astype(np.int32),
            "class_name": [class_names[i] if i != UNLABELLED else None for i in label_N],
            "split": [SPLITS[code] for code in split_N],
        },
        schema=_SCHEMA,
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    count = len(list(folder.glob("segment-*.parquet")))
    write_durably(folder / f"segment-{count:05d}.parquet", buffer.getvalue())

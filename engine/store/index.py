"""The journal's index: a row for every record, without checksums and images, as columns.

It answers what is finished, for a million records in about a second, and never reads what was noted of images.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from substyle.engine.store.record import Record, summed

DETAILS = re.compile(r"records-[0-9a-f]{16}\.parquet")
SCHEMA = pa.schema(
    [
        ("id", pa.uint64()),
        ("details", pa.string()),  # the file that holds the record itself; empty where it stands alone
        ("shard", pa.int64()),
        ("backbone", pa.string()),
        ("transformations", pa.string()),  # a list in JSON: few different ones, so that a column holds their numbers
        ("sums", pa.uint64()),
        ("seconds", pa.float64()),
    ]
)


def rows(records: Iterable[tuple[int, Record]], details: str) -> pa.Table:
    """Rows of records by identity, all of which one file holds."""
    some = list(records)
    columns = {
        "id": pa.array([number for number, _ in some], pa.uint64()),
        "details": [details] * len(some),
        "shard": [record.shard for _, record in some],
        "backbone": [record.backbone for _, record in some],
        "transformations": [json.dumps(list(record.checksums)) for _, record in some],
        "sums": pa.array([summed(record.checksums) for _, record in some], pa.uint64()),
        "seconds": [float(record.seconds) for _, record in some],
    }
    return pa.table(columns, schema=SCHEMA)


def encode(table: pa.Table) -> bytes:
    """Rows as a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def decode(data: bytes) -> pa.Table:
    """Rows of a Parquet file. Raises ValueError or ArrowException when it is none of these."""
    table = pq.read_table(io.BytesIO(data), schema=SCHEMA)
    if any(column.null_count for column in table.columns):
        raise ValueError("a column lacks values")
    if len(table) and pc.min(table["shard"]).as_py() < 0:
        raise ValueError("a shard below 0")
    for text in table["transformations"].unique().to_pylist():
        _names(text)
    for name in table["details"].unique().to_pylist():
        if not DETAILS.fullmatch(name):
            raise ValueError(f"not a file of details: {name[:100]}")
    return table


def together(tables: Sequence[pa.Table]) -> pa.Table:
    """Rows of several tables. Of a file of details, whose rows every table has whole or not at all, the first ones."""
    seen, fresh = pa.array([], pa.string()), [SCHEMA.empty_table()]
    for table in tables:
        fresh.append(table.filter(pc.invert(pc.is_in(table["details"], seen))))
        seen = pa.concat_arrays([seen, table["details"].unique()])
    return pa.concat_tables(fresh)


def by_details(table: pa.Table) -> dict[str, pa.Table]:
    """Rows of a segment by the file of details that holds them, in their order."""
    names = table["details"].unique().to_pylist()
    code_R = pc.index_in(table["details"], pa.array(names, pa.string())).to_numpy()
    order_R = np.argsort(code_R, kind="stable")
    ends = np.searchsorted(code_R[order_R], np.arange(len(names)), side="right").tolist()
    ordered = table.take(order_R)
    return {name: ordered.slice(a, b - a) for name, a, b in zip(names, [0, *ends], ends, strict=False)}


def _names(text: str) -> tuple[str, ...]:
    names = json.loads(text)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"not a list of transformations: {text[:100]}")
    return tuple(names)


@dataclass(frozen=True)
class Index:
    """Records R of a journal, each once, in the order of (shard, backbone, identity).

    Attributes:
        shard_R: shards; seconds_R: their wall times.
        backbone_R: positions in ``backbones``, slugs of backbones.
        made_R: positions in ``made``, the transformations of a record.
        sums_R: one number for all checksums of a record, which changes with any of them.
    """

    shard_R: NDArray[np.int64]
    backbone_R: NDArray[np.int32]
    made_R: NDArray[np.int32]
    sums_R: NDArray[np.uint64]
    seconds_R: NDArray[np.float64]
    backbones: tuple[str, ...]
    made: tuple[tuple[str, ...], ...]

    @classmethod
    def of_tables(cls, tables: Sequence[pa.Table]) -> Index:
        """The index of some rows. A record that stands in several of them is one record."""
        table = pa.concat_tables([SCHEMA.empty_table(), *tables]).combine_chunks()
        backbone_R, backbones = _coded(table["backbone"])
        made_R, made = _coded(table["transformations"])
        number_R, shard_R = table["id"].to_numpy(), table["shard"].to_numpy()
        order_R = np.lexsort((number_R, backbone_R, shard_R))
        number_R, shard_R, backbone_R = number_R[order_R], shard_R[order_R], backbone_R[order_R]
        first_R = np.ones(len(order_R), np.bool_)
        first_R[1:] = (np.diff(shard_R) != 0) | (np.diff(backbone_R) != 0) | (number_R[1:] != number_R[:-1])
        order_R = order_R[first_R]
        return cls(
            shard_R=shard_R[first_R],
            backbone_R=backbone_R[first_R],
            made_R=made_R[order_R],
            sums_R=table["sums"].to_numpy()[order_R],
            seconds_R=table["seconds"].to_numpy()[order_R],
            backbones=backbones,
            made=tuple(map(_names, made)),
        )

    def __len__(self) -> int:
        return len(self.shard_R)

    def of(self, slugs: Iterable[str]) -> Index:
        """The records of some backbones alone."""
        wanted = set(slugs)
        kept_R = np.array([slug in wanted for slug in self.backbones], np.bool_)[self.backbone_R]
        return Index(
            shard_R=self.shard_R[kept_R],
            backbone_R=self.backbone_R[kept_R],
            made_R=self.made_R[kept_R],
            sums_R=self.sums_R[kept_R],
            seconds_R=self.seconds_R[kept_R],
            backbones=self.backbones,
            made=self.made,
        )

    def finished(self, slug: str, names: Sequence[str], shards: int) -> NDArray[np.bool_]:
        """Which transformations of a backbone are finished in which shards. Shape: (shards, T) for T names."""
        done_ST = np.zeros((shards, len(names)), np.bool_)
        if slug not in self.backbones:
            return done_ST
        mine_R = (self.backbone_R == self.backbones.index(slug)) & (self.shard_R < shards)
        for number, made in self._sets:
            columns_K = [t for t, name in enumerate(names) if name in made]
            shard_K = self.shard_R[mine_R & (self.made_R == number)]
            done_ST[shard_K[:, None], columns_K] = True
        return done_ST

    @cached_property
    def _sets(self) -> list[tuple[int, frozenset[str]]]:
        return [(number, frozenset(self.made[number])) for number in np.unique(self.made_R).tolist()]

    def chunks(self) -> Iterator[tuple[int, str, str]]:
        """(shard, slug of the backbone, transformation) of every chunk that is finished, one after the other."""
        columns = (self.shard_R.tolist(), self.backbone_R.tolist(), self.made_R.tolist())
        for shard, backbone, made in zip(*columns, strict=True):
            for name in self.made[made]:
                yield shard, self.backbones[backbone], name


def _coded(column: pa.ChunkedArray) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """A column of texts as positions in its sorted different texts."""
    coded = pa.chunked_array([column.combine_chunks()]).dictionary_encode().combine_chunks()
    if isinstance(coded, pa.ChunkedArray):
        coded = coded.chunk(0)
    texts = coded.dictionary.to_pylist()
    order = sorted(range(len(texts)), key=texts.__getitem__)
    place = np.empty(len(texts), np.int32)
    place[order] = np.arange(len(texts), dtype=np.int32)
    return place[coded.indices.to_numpy()], tuple(texts[i] for i in order)

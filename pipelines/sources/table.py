"""Photographs in Parquet files and in Hugging Face data sets."""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from dataclasses import replace

from substyle.kernels.errors import ConfigError
from substyle.pipelines.sources.arrow_rows import ARROW_ERRORS, ArrowRows
from substyle.pipelines.sources.base import Records, Understood
from substyle.pipelines.sources.column_names import no_label, says_splits
from substyle.pipelines.sources.config import SourceConfig
from substyle.pipelines.sources.hub import Columns, table_files
from substyle.pipelines.sources.names import Names, read_names, split_text, splits_of_files
from substyle.pipelines.sources.parquet_rows import Blocks, ParquetRows
from substyle.pipelines.sources.patterns import Shard
from substyle.pipelines.sources.text import MAX_TEXT, LeftOut, label_text, words


class TableSource:
    """Images in a column of Parquet files, or of a Hugging Face data set.

    What the user names is a file, a folder, a pattern (see `patterns.shards`), or a folder that ``save_to_disk`` wrote:
    a ``Dataset`` or a ``DatasetDict``, whose parts are splits. Otherwise splits come from a column, or from the files'
    paths if each names one. Images are a binary column, or a struct with a field ``bytes``. Labels are text, or
    numbers, which have the names that a ``ClassLabel`` gives them, in its order; a negative number is no label. Columns
    are found under their usual names (see `column_names`), or as the configuration says.

    A key is ``<file>/<row>``, such as ``data/train-00000-of-00002.parquet/000000017``, or the value of
    ``config.path_column``. Rows are read in the order of keys: with ids in another order than that of the rows, a row
    group is decoded for every image.

    A file that cannot be read is left out and named, as are rows without a key or with one that is there already; a row
    without bytes fails when it is read.

    Raises:
        ConfigError: nothing there, no column that fits, or no image.
    """

    def __init__(self, root: str | os.PathLike[str], config: SourceConfig | None = None) -> None:
        config = (config or SourceConfig()).of_kind("parquet")
        self.root, self.options = str(root), config.options()
        left_out = LeftOut(self.root)
        found = table_files(self.root, left_out)
        splits = splits_of_files([shard.name for shard in found])
        readable = read_names(config.names)
        self._files: list[ArrowRows | ParquetRows] = []
        self._keys: list[str] = []
        self._labels: list[str | None] = []
        self._splits: list[str | None] = []
        self._splits_from: dict[str, None] = {}
        self._file, self._row = array("l"), array("q")
        self._known: set[str] = set()
        blocks = Blocks()
        for number, shard in enumerate(found):
            try:
                file = (
                    ParquetRows(shard.path, config, blocks)
                    if _is_parquet(shard.path)
                    else ArrowRows(shard.path, config)
                )
            except ARROW_ERRORS as error:
                left_out.add(shard.name, f"cannot be read: {words(error)}")
                continue
            if file.damage:
                left_out.add(shard.name, f"cannot be read after row {file.rows}: {file.damage}")
            self._add(shard, file, splits[number] if splits else None, readable, left_out)
        del self._known
        self.refused = left_out.tell()
        if not self._keys:
            raise ConfigError("images", self.root, f"files with rows of images{left_out.first()}")
        if all(file.lacking >= file.rows for file in self._files):
            raise ConfigError(
                "images",
                self.root,
                "rows that hold the bytes of images; these hold none (paths alone are not followed)",
            )
        given = self._splits if any(self._splits) else None
        self.understood = Understood(
            left_out,
            splits_from=" and ".join(self._splits_from) if given else "",
            columns=_chosen([file.columns for file in self._files]),
            remarks=() if any(file.columns.label for file in self._files) else no_label(self._files[0].columns.unused),
        )
        self.records = Records(self._keys, self._labels, given, self._read, self._mark, readable.order())
        del self._keys, self._labels, self._splits
        self.class_names = self.records.class_names

    def _add(
        self,
        shard: Shard,
        file: ArrowRows | ParquetRows,
        split: str | None,
        readable: Names,
        left_out: LeftOut,
    ) -> None:
        number, columns = len(self._files), file.columns
        self._files.append(file)
        nothing: list[object] = [None] * file.rows
        labels = file.values.get(columns.label or "", nothing)
        keys = file.values.get(columns.key or "", nothing)
        splits = file.values.get(columns.split or "", nothing)
        if columns.maybe_split and not says_splits(splits):
            file.columns = columns = replace(columns, split=None)
        if columns.split or split:
            self._splits_from["its column" if columns.split else "the names of the files"] = None
        file.values = {}
        for row, (label, key, said) in enumerate(zip(labels, keys, splits, strict=True)):
            where = f"{shard.name}/{row:09d}"
            name = where
            if columns.key is not None:
                name = str(key) if key is not None else ""
                if not name or len(name) > MAX_TEXT or name in self._known:
                    left_out.add(where, f"has no id, or one that is there already ({name!r}), and was left out")
                    continue
                self._known.add(name)
            try:
                self._labels.append(_label(label, columns.classes, readable))
            except ValueError as error:
                left_out.note(where, f"has {error} and stays without one")
                self._labels.append(None)
            self._keys.append(name)
            self._splits.append(split_text(said, f"of {where}") if columns.split else split)
            self._file.append(number)
            self._row.append(row)

    def _read(self, place: int) -> bytes:
        return self._files[self._file[place]].read(self._row[place])

    def _mark(self, place: int) -> int:
        return self._files[self._file[place]].mark(self._row[place])


def _chosen(files: Sequence[Columns]) -> dict[str, str]:
    """The column for each purpose; all of them if files differ."""
    chosen = {
        what: " or ".join(dict.fromkeys(name for file in files if (name := getattr(file, what))))
        for what in ("image", "label", "split", "key")
    }
    return {what: name for what, name in chosen.items() if name}


def _is_parquet(path: str) -> bool:
    """Whether a file is Parquet, as its name or else its first bytes say."""
    if path.lower().endswith((".parquet", ".arrow")):
        return path.lower().endswith(".parquet")
    with open(path, "rb") as file:
        return file.read(4) == b"PAR1"


def _label(value: object, classes: tuple[str, ...] | None, readable: Names) -> str | None:
    if isinstance(value, int) and classes is not None:
        if value < 0:
            return None
        if value >= len(classes):
            raise ValueError(f"the label {value} of {len(classes)} classes")
        return readable.of_numbered(value, classes[value])
    return readable.of(label_text(value))

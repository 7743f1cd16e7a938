"""Source of image files listed in a CSV file."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from substyle.errors import ConfigError
from substyle.pipelines.sources.base import (
    MAX_TEXT,
    LeftOut,
    Records,
    SourceConfig,
    Understood,
    label_text,
    register_source,
    shown,
)
from substyle.pipelines.sources.files import FileBelow
from substyle.pipelines.sources.labels import (
    LABEL_COLUMNS,
    MAYBE_SPLIT_COLUMNS,
    MISSING,
    PATH_COLUMNS,
    SPLIT_COLUMNS,
    find,
    no_label,
    read_names,
    says_splits,
    split_text,
)

LIST_KINDS = (".csv", ".tsv", ".tab")
MAX_LINE = 1 << 20  # characters


@register_source(
    "list", options=("path_column", "label_column", "split_column", "names"), endings=LIST_KINDS, position=1
)
class ListSource:
    """Images listed in a CSV (``.csv``) or tab-separated (``.tsv``, ``.tab``) file in UTF-8 with a header.

    Paths are relative to the list's folder; columns of labels and splits are optional. A label such as ``NA`` (see
    `labels.MISSING`) is none. Columns are found by their usual
    names (see `labels`) or named in the configuration. A key is the path without ``.`` parts and double slashes.
    Absolute paths, paths with ``..`` and repeated lines are skipped with a warning. A missing file and a link that
    leaves the folder fail when read.

    Raises:
        ConfigError: no such file, not a list, a missing column, a path with two labels or splits, or no images.
    """

    def __init__(self, root: str | os.PathLike[str], config: SourceConfig | None = None) -> None:
        config = (config or SourceConfig()).of_kind("list")
        self.root, self.options = str(root), config.options()
        folder = os.path.realpath(os.path.dirname(self.root) or ".")
        readable = read_names(config.names)
        left_out = LeftOut(self.root)
        lines: dict[str, tuple[str | None, str | None, int]] = {}
        columns = _columns(Path(root), config)
        for number, path, label, split in _lines(Path(root), columns):
            key = _key(path)
            if key is None:
                left_out.add(path, f"on line {number} is not inside the list's folder; skipped")
                continue
            try:
                named = label_text(label)
            except ValueError as error:
                left_out.note(path, f"on line {number} has {error}; left unlabelled")
                named = None
            if named in MISSING:
                left_out.note(path, f"on line {number} has label {named}; left unlabelled")
                named = None
            entry = readable.of(named), split_text(split, f"on line {number} of {self.root}")
            *before, first = lines.setdefault(key, (*entry, number))
            if tuple(before) != entry:
                raise ConfigError(f"lines {first} and {number} of {self.root}", path, "one label and split per path")
            if first != number:
                left_out.add(path, f"on line {number} repeats line {first}; skipped")
        self.refused = left_out.tell()
        if not lines:
            raise ConfigError("images", self.root, f"a list of images; this one has none{left_out.first()}")
        names = list(lines)
        splits = [split for _, split, _ in lines.values()]
        given = splits if any(splits) else None
        self.understood = Understood(
            left_out,
            splits_from="its column" if given else "",
            columns=columns.chosen(),
            remarks=() if columns.label is not None else no_label(columns.unused),
        )
        labels = [label for label, _, _ in lines.values()]
        self.records = Records(names, labels, given, FileBelow.each(folder, names), readable.order())
        self.class_names = self.records.class_names


def _key(path: str) -> str | None:
    """The path as a key, None if it is not allowed."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or "\0" in path or not parts or len(path) > MAX_TEXT:
        return None
    return "/".join(parts)


@dataclass(frozen=True)
class _Columns:
    """Column names of a list, and the indices of path, label and split."""

    header: tuple[str, ...]
    path: int
    label: int | None
    split: int | None

    def chosen(self) -> dict[str, str]:
        """Column name by purpose."""
        places = {"path": self.path, "label": self.label, "split": self.split}
        return {what: self.header[place] for what, place in places.items() if place is not None}

    @property
    def unused(self) -> list[str]:
        """Names of the other columns."""
        return [name for i, name in enumerate(self.header) if name and i not in (self.path, self.label, self.split)]


def _columns(path: Path, config: SourceConfig) -> _Columns:
    """Find the columns of a list. Raises ConfigError if the paths or a requested column are missing."""
    _, fields = next(_rows(path))
    header = [name.strip() for name in fields]

    def place(field: str, usual: Sequence[str]) -> int | None:
        asked = getattr(config, field)
        name = (asked if asked in header else None) if asked else find(header, usual)
        if name is None and (asked or field == "path_column"):
            raise ConfigError(
                f"source.{field}",
                asked or "nothing",
                f"a column of {path}: {', '.join(map(shown, header[:20])) or 'it has none'}",
            )
        if name is not None and header.count(name) > 1:
            raise ConfigError(f"header of {path}", f"{name} {header.count(name)} times", "each column once")
        return None if name is None else header.index(name)

    where = place("path_column", PATH_COLUMNS)
    assert where is not None
    found = _Columns(tuple(header), where, place("label_column", LABEL_COLUMNS), place("split_column", SPLIT_COLUMNS))
    maybe = find(header, MAYBE_SPLIT_COLUMNS) if found.split is None else None
    if maybe is not None:
        guess = replace(found, split=header.index(maybe))
        if says_splits(split for _, _, _, split in _lines(path, guess)):
            return guess
    return found


def _lines(path: Path, columns: _Columns) -> Iterator[tuple[int, str, str | None, str | None]]:
    """(line number, path, label, split) of each line after the header."""
    rows = _rows(path)
    next(rows)
    for number, row in rows:
        if not row:
            continue
        if len(row) > len(columns.header):
            raise ConfigError(
                f"line {number} of {path}",
                f"{len(row)} fields",
                f"at most {len(columns.header)}, the number of columns",
            )
        values = [
            row[i] if i is not None and i < len(row) else None for i in (columns.path, columns.label, columns.split)
        ]
        yield number, values[0] or "", values[1], values[2]


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of each line; an empty file yields one line without fields."""
    delimiter = "," if path.suffix.lower() == ".csv" else "\t"
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(_short(file), delimiter=delimiter, strict=True)
            yield 0, next(reader, [])
            for row in reader:
                number = reader.line_num
                yield number, row
    except OSError as error:
        raise ConfigError("images", str(path), f"a readable list ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError("images", str(path), f"a list in UTF-8 (after line {number}: {error.reason})") from error
    except csv.Error as error:
        raise ConfigError("images", str(path), f"a valid {path.suffix} file (after line {number}: {error})") from error


def _short(file: TextIO) -> Iterator[str]:
    """The lines of a file, bounded in length."""
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise csv.Error(f"line of {MAX_LINE} or more characters")
        yield line

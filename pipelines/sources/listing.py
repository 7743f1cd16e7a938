"""Photographs that a CSV or TSV file lists."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from substyle.kernels.errors import ConfigError
from substyle.pipelines.sources.base import Records
from substyle.pipelines.sources.config import SourceConfig
from substyle.pipelines.sources.files import read_below
from substyle.pipelines.sources.names import read_names, split_text
from substyle.pipelines.sources.text import MAX_TEXT, LeftOut, label_text, shown

LIST_KINDS = (".csv", ".tsv", ".tab")
MAX_LINE = 1 << 20  # characters
PATH_COLUMNS = ("path", "file_name")  # the second is what Hugging Face's metadata.csv calls it


class ListSource:
    """Images that a list names: a CSV file, or one with tabs (``.tsv``, ``.tab``), in UTF-8, columns in its first line.

    Columns: ``path`` (or ``file_name``), relative to the list's folder; ``label`` and ``split`` if there are. A key is
    the path, without ``.`` and double slashes. Absolute paths and paths with ``..`` are left out and named; a link that
    leaves the folder fails when it is read, as does a file that is not there. A line that says again what an earlier
    one said is left out.

    Raises:
        ConfigError: no such file, not such a list, a column that is asked for and is not there, a path with two labels
            or splits, or no image at all.
    """

    def __init__(self, root: str | os.PathLike[str], config: SourceConfig | None = None) -> None:
        config = (config or SourceConfig()).of_kind("list")
        self.root, self.options = str(root), config.options()
        self._folder = os.path.realpath(os.path.dirname(self.root) or ".")
        readable = read_names(config.names)
        left_out = LeftOut(self.root)
        lines: dict[str, tuple[str | None, str | None, int]] = {}
        for number, path, label, split in _lines(Path(root), config):
            key = _key(path)
            if key is None:
                left_out.add(path, f"on line {number} is no path inside the list's folder and was left out")
                continue
            try:
                named = label_text(label)
            except ValueError as error:
                left_out.note(path, f"on line {number} has {error} and stays without one")
                named = None
            said = readable.of(named), split_text(split, f"on line {number} of {self.root}")
            *before, first = lines.setdefault(key, (*said, number))
            if tuple(before) != said:
                raise ConfigError(
                    f"lines {first} and {number} of {self.root}", path, "the same label and split for the same path"
                )
            if first != number:
                left_out.add(path, f"on line {number} stands on line {first} already")
        self.refused = left_out.tell()
        if not lines:
            raise ConfigError("images", self.root, f"a list that names images; this one names none{left_out.first()}")
        self._names = list(lines)
        splits = [split for _, split, _ in lines.values()]
        given = splits if any(splits) else None
        self.records = Records(self._names, [label for label, _, _ in lines.values()], given, self._read)
        self.class_names = self.records.class_names

    def _read(self, place: int) -> bytes:
        return read_below(self._folder, self._names[place])


def _key(path: str) -> str | None:
    """The path as a key, None for one that is refused."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or "\0" in path or not parts or len(path) > MAX_TEXT:
        return None
    return "/".join(parts)


def _lines(path: Path, config: SourceConfig) -> Iterator[tuple[int, str, str | None, str | None]]:
    """(line number, path, label, split) of each line."""
    delimiter = "," if path.suffix.lower() == ".csv" else "\t"
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(_short(file), delimiter=delimiter, strict=True)
            header = [name.strip() for name in next(reader, [])]
            at = _columns(header, config, path)
            for row in reader:
                number = reader.line_num
                if not row:
                    continue
                if len(row) > len(header):
                    raise ConfigError(
                        f"line {number} of {path}", f"{len(row)} fields", f"{len(header)}, as the first line has them"
                    )
                values = [row[i] if i is not None and i < len(row) else None for i in at]
                yield number, values[0] or "", values[1], values[2]
    except OSError as error:
        raise ConfigError("images", str(path), f"a list that can be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError("images", str(path), f"a list in UTF-8 (after line {number}: {error.reason})") from error
    except csv.Error as error:
        raise ConfigError("images", str(path), f"a list of {path.suffix} (after line {number}: {error})") from error


def _short(file: TextIO) -> Iterator[str]:
    """The lines of a file, none of them endless."""
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise csv.Error(f"a line of {MAX_LINE} characters or more")
        yield line


def _columns(header: Sequence[str], config: SourceConfig, path: Path) -> tuple[int | None, int | None, int | None]:
    """Where path, label and split stand in a line."""
    found: list[int | None] = []
    for field, usual in (("path_column", PATH_COLUMNS), ("label_column", ("label",)), ("split_column", ("split",))):
        asked = getattr(config, field)
        known = [name for name in ((asked,) if asked else usual) if name in header]
        if not known and (asked or field == "path_column"):
            raise ConfigError(
                f"source.{field}",
                asked or "nothing",
                f"a column of {path}, whose first line has: {', '.join(map(shown, header[:20])) or 'nothing'}",
            )
        found.append(header.index(known[0]) if known else None)
    return found[0], found[1], found[2]

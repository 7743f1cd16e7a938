"""A directory of results: rows in files whose paths follow from their content. Each file may be anybody's."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from substyle import files
from substyle.engine.extensions.site.row import FOLDER, Row, rows_of
from substyle.engine.stages.results import read_results
from substyle.engine.store.files import writing
from substyle.engine.study.outputs import RESULTS, require_current
from substyle.errors import ConfigError, SubstyleError
from substyle.files import is_litter
from substyle.pipelines.validation import brief

MAX_BYTES = 1 << 20  # of a file; a row of 160 transformations has a tenth
MAX_FILES = 100_000
_LEVELS = (*3 * (re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}"),), re.compile(r"[0-9a-f]{16}\.json"))


@dataclass(frozen=True)
class Contents:
    """Rows of a directory, and files that are none with the reason; both by path."""

    rows: dict[str, Row]
    bad: dict[str, str]


def read_directory(root: Path, field: str = "DIR") -> Contents:
    """Read and check all rows of a directory of results.

    Raises:
        ConfigError: it has no folder ``results``, or too many files.
        UnsafeFileError: that folder is a link.
    """
    if not files.inside(root, FOLDER).is_dir():
        raise ConfigError(field, str(root), f"a directory of results: a folder with {FOLDER}/")
    rows: dict[str, Row] = {}
    bad: dict[str, str] = {}
    for name, problem in _listed(root / FOLDER, FOLDER, 0):
        if len(rows) + len(bad) == MAX_FILES:
            raise ConfigError(field, str(root), f"at most {MAX_FILES:,} files")
        try:
            if problem:
                raise SubstyleError(problem)
            rows[name] = _read(root, name)
        except (SubstyleError, OSError) as error:
            bad[name] = str(error)
    return Contents(rows, bad)


def _listed(folder: Path, path: str, level: int) -> Iterator[tuple[str, str]]:
    """(path, problem) of all that is in a folder; the problem of a file with the name of a row is empty."""
    try:
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
    except OSError as error:
        yield path, f"cannot be read: {error.strerror or error}"
        return
    last = level == len(_LEVELS) - 1
    for entry in entries:
        name = f"{path}/{entry.name}"
        if entry.is_symlink():
            yield name, "a link"
        elif is_litter(entry.name):
            continue
        elif not _LEVELS[level].fullmatch(entry.name):
            yield name, "not a name of a directory of results, <backbone>/<suite>/<data>/<stamp>.json"
        elif last or not entry.is_dir(follow_symlinks=False):
            kind = "file" if last else "folder"
            yield name, "" if last and entry.is_file(follow_symlinks=False) else f"not a {kind}"
        else:
            yield from _listed(folder / entry.name, name, level + 1)


def _read(root: Path, name: str) -> Row:
    """Read a row.

    Raises:
        SubstyleError: too large, not JSON, not of the schema, another checksum or path; or a link.
        OSError: it cannot be read.
    """
    with files.open_inside(root, name) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise SubstyleError(f"larger than {MAX_BYTES:,} bytes")
    try:
        row = Row.model_validate(json.loads(data, parse_constant=_refused, parse_float=_finite))
    except ValidationError as error:
        raise SubstyleError(f"not a row: {brief(error)[:300]}") from error
    except (ValueError, RecursionError) as error:
        raise SubstyleError(f"not JSON ({str(error)[:100]})") from error
    if row.sum() != row.checksum:
        raise SubstyleError(f"edited: the checksum is {row.checksum}, of its content {row.sum()}")
    if row.path != name:
        raise SubstyleError(f"content of {row.path}")
    return row


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number of JSON")


def _finite(text: str) -> float:
    return number if math.isfinite(number := float(text)) else _refused(text)


def rows_of_run(run: Path) -> list[Row]:
    """Rows of a run: its output folder, or a results.json.

    Raises:
        StaleError: the results are outdated or were edited.
        SubstyleError: they are missing or invalid.
    """
    path = run / RESULTS if run.is_dir() else run
    results = read_results(path)
    require_current(path.parent, results)
    return rows_of(results)


@dataclass(frozen=True)
class Added:
    """Paths of rows: added, already there, and refused, with the reason."""

    added: list[str]
    unchanged: list[str]
    refused: dict[str, str]


def add_rows(rows: Iterable[Row], root: Path) -> Added:
    """Write rows to a directory of results, which is created if missing. Existing files are never changed.

    A row with the stamp and the numbers of an existing one is unchanged, whatever its names, note and versions.

    Raises:
        StoreError: the disk is full or not writable, or a file has the name of a folder.
        UnsafeFileError: a folder on the way is a link.
    """
    done = Added([], [], {})
    for row in rows:
        path, text = files.inside(root, row.path), row.text().encode()
        if len(text) > MAX_BYTES:
            done.refused[row.path] = f"larger than {MAX_BYTES:,} bytes"
            continue
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() and files.write_new(path, text):
                done.added.append(row.path)
                continue
        try:
            same = _read(root, row.path).numbers() == row.numbers()
            problem = "" if same else "other numbers for the same stamp are there"
        except (SubstyleError, OSError) as error:
            problem = f"an invalid file is there: {error}"
        if problem:
            done.refused[row.path] = problem
        else:
            done.unchanged.append(row.path)
    return done

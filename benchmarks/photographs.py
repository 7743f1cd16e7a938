"""Photographs for the benchmarks: the folder in SUBSTYLE_PHOTOGRAPHS, else crops of those shipped with packages."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path

from substyle.pipelines import packaged_photographs
from substyle.pipelines.sources import FolderSource, ImageRecord


@cache
def folder() -> Path:
    named = os.environ.get("SUBSTYLE_PHOTOGRAPHS")
    if named:
        return Path(named)
    made = Path(tempfile.mkdtemp(prefix="substyle-photographs-"))
    packaged_photographs.write(made)
    return made


def records(count: int) -> list[ImageRecord]:
    """Return the first ``count`` photographs, repeating those of a smaller folder."""
    there = FolderSource(folder()).records
    return [there[i % len(there)] for i in range(count)]


def write(folder: Path, count: int) -> Path:
    """Write the first ``count`` photographs to a new folder."""
    folder.mkdir()
    for i, record in enumerate(records(count)):
        (folder / f"{i:05d}{Path(record.key).suffix}").write_bytes(record.read())
    return folder

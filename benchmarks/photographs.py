"""Real photographs for the benchmarks: the user's folder (SUBSTYLE_PHOTOGRAPHS), else crops of those packages ship."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path

from substyle.pipelines import packaged_photographs
from substyle.pipelines.sources import FolderSource, ImageRecord


@cache
def folder() -> Path:
    """A folder of photographs."""
    named = os.environ.get("SUBSTYLE_PHOTOGRAPHS")
    if named:
        return Path(named)
    made = Path(tempfile.mkdtemp(prefix="substyle-photographs-"))
    packaged_photographs.write(made)
    return made


def records(count: int) -> list[ImageRecord]:
    """The first ``count`` photographs; a smaller folder is gone through again."""
    there = FolderSource(folder()).records
    return [there[i % len(there)] for i in range(count)]

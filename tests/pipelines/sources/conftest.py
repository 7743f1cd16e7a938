"""Files that the tests of sources open, and what a source says of them."""

from __future__ import annotations

from pathlib import Path

from substyle.pipelines.sources import Source


def fill(root: Path, *names: str) -> Path:
    """Write files, each of which contains its name."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def described(source: Source) -> dict[str, tuple[str | None, str | None, bytes]]:
    """Class, split and content of each photograph by its key."""
    names = source.class_names
    return {r.key: (None if r.label is None else names[r.label], r.split, r.read()) for r in source.records}

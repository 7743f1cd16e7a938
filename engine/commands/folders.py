"""Where results go when ``--out`` is left out."""

from __future__ import annotations

from pathlib import Path

from substyle.engine import outputs
from substyle.engine.store.embeddings import EmbeddingStore


def default_out(name: str) -> Path:
    """``runs/<name>``, or ``runs/<name>-results`` where that is a folder of something else: photographs, or a store."""
    out = Path("runs") / name
    if out.is_dir() and any(out.iterdir()) and outputs.claimed(out) is None:
        return out.with_name(f"{name}-results")
    return out


def out_of(store: EmbeddingStore) -> Path:
    """Where results of a store go: to those of the run that made it, else to a folder named after it."""
    if isinstance(store.path, Path):
        path = store.path.resolve()
        return path.parent if outputs.claimed(path.parent) is not None else default_out(path.stem)
    return default_out(store.path.stem)

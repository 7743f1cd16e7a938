"""Where results go when ``--out`` is left out, and where they must not go."""

from __future__ import annotations

from pathlib import Path

from substyle.engine.runner import RESULTS, STORE
from substyle.engine.store.embeddings import EmbeddingStore
from substyle.kernels.errors import ConfigError
from substyle.pipelines.places import is_remote

RUN = "substyle.json"  # what `run` leaves in its folder of results
_OURS = (RUN, RESULTS, STORE, "probes", "analysis")


def default_out(name: str) -> Path:
    """``runs/<name>``, or ``runs/<name>-results`` where that is a folder of something else: photographs, or a store."""
    out = Path("runs") / name
    if out.is_dir() and any(out.iterdir()) and not any((out / part).exists() for part in _OURS):
        return out.with_name(f"{name}-results")
    return out


def out_of(store: EmbeddingStore) -> Path:
    """Where results of a store go: to those of the run that made it, else to a folder named after it."""
    if isinstance(store.path, Path):
        path = store.path.resolve()
        return path.parent if (path.parent / RUN).is_file() else default_out(path.stem)
    return default_out(store.path.stem)


def require_outside(out: Path, images: Path | str | None) -> None:
    """Raise ConfigError for results in the folder of the photographs: the next run would take their pictures too."""
    if images is None or is_remote(images):
        return
    if Path(images).is_dir() and out.resolve().is_relative_to(Path(images).resolve()):
        raise ConfigError("--out", str(out), f"a folder outside {images}, which holds the photographs")

"""Opening Zarr groups and arrays; damaged metadata are named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zarr

from substyle.engine.store.errors import StoreError
from substyle.engine.store.files import naming
from substyle.engine.store.layout import METADATA
from substyle.pipelines.places import Place


def zarr_store(path: Place) -> Any:  # noqa: ANN401 (zarr's StoreLike)
    """What Zarr takes for a place that it reads."""
    if isinstance(path, Path):
        return str(path)
    from zarr.storage import ObjectStore

    return ObjectStore(path.rooted(), read_only=True)


def root(path: Place) -> zarr.Group:
    """The group of a whole store. Raises StoreError when its metadata are missing or damaged."""
    with _named(path):
        if not (path / METADATA).exists():
            raise StoreError(f"{path / METADATA}: is missing (run substyle verify)")
        # what a group holds is asked of the disk, never of a summary in its metadata
        return zarr.open_group(zarr_store(path), mode="r", zarr_format=3, use_consolidated=False)


def array(store: Place, parent: zarr.Group, name: str) -> zarr.Array[Any]:
    """An array of a store. Raises StoreError when it is not there, no array, or damaged."""
    with _named(store / name):
        member = parent[name]
    if not isinstance(member, zarr.Array):
        raise StoreError(f"{store}: {name} is not an array (run substyle verify)")
    return member


@contextmanager
def _named(path: Place) -> Iterator[None]:
    """Turn what zarr raises for metadata that it cannot use into a StoreError that names their file."""
    try:
        with naming(path):
            yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise StoreError(f"{path / METADATA}: cannot be read: {error!r} (run substyle verify)") from error

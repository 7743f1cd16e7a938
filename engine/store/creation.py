"""Making a store so that others see it whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from substyle.engine.store import form, lock, nodes
from substyle.engine.store.errors import StoreError
from substyle.engine.store.files import clear_temporary, flush, temporary_name, write_durably, writing
from substyle.engine.store.layout import ARRAYS, METADATA, SCHEMA, StoreSettings
from substyle.kernels.errors import ConfigError
from substyle.pipelines.objects import ObjectPlace
from substyle.pipelines.places import Place, is_remote


def create(
    path: Place, settings: StoreSettings, *, calibration: Sequence[str] = (), options: Mapping[str, str] | None = None
) -> None:
    """Make an empty store. On a disk: under a temporary name beside the path, then renamed.

    Args:
        calibration: keys of the images that gates and recalibrations use, for as long as the store lives.
        options: how to open the source, beside its path.

    Raises:
        ConfigError: a path without a name.
        StoreError: something is there already, or the folder cannot be written.
    """
    if not path.name:
        raise ConfigError("store", str(path), "a path that ends in a name, such as runs/photographs.zarr")
    header = {"schema": SCHEMA, **vars(replace(settings, source=_absolute(settings.source)))}
    attributes: dict[str, Any] = {
        "substyle": header,
        "source_options": dict(options or {}),
        "calibration": list(calibration),
    }
    with writing(path):
        if isinstance(path, ObjectPlace):
            _put(path, form.seal(attributes))
        else:
            _make_folder(path, form.seal(attributes))


def _make_folder(path: Path, attributes: dict[str, Any]) -> None:
    temporary = temporary_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_temporary(path.parent, path.name)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise StoreError(f"{path}: is there already and is not empty")
    try:
        # not as `nodes.write` does: the folder appears as a whole, and what fails is said of the store
        for folder, metadata in ((temporary, attributes), (temporary / ARRAYS, {})):
            folder.mkdir()
            (folder / METADATA).write_bytes(nodes.group(metadata))
            flush(folder / METADATA)
        flush(temporary / ARRAYS)
        flush(temporary)
        os.rename(temporary, path)  # fails where another process was quicker
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    flush(path.parent)


def _put(path: ObjectPlace, attributes: dict[str, Any]) -> None:
    """The store is there when its header is, which is put last and only where none is."""
    _require_empty(path)  # before anything is written there
    with lock.mutex(path):
        _require_empty(path)
        (path / ARRAYS / METADATA).put(nodes.group({}))
        write_durably(path / METADATA, nodes.group(attributes))


def _require_empty(path: ObjectPlace) -> None:
    # what a process has put that was killed here, or that is at it now
    ours = {path / ARRAYS / METADATA, path / lock.MUTEX}
    if any(found not in ours for found, _ in path.walk()):
        raise StoreError(f"{path}: is there already and is not empty")


def _absolute(source: str) -> str:
    """A store may be used from another folder than it was made in; addresses with a scheme stay as they are."""
    return source if is_remote(source) or not source else os.path.abspath(source)

"""Making a store so that others see it whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from substyle.engine.store import lock, nodes
from substyle.engine.store.errors import StoreError
from substyle.engine.store.files import clear_temporary, flush, temporary_name, write_durably, writing
from substyle.engine.store.header import Header
from substyle.engine.store.layout import ARRAYS, HEADER, METADATA, StoreSettings
from substyle.kernels.errors import ConfigError
from substyle.pipelines.objects import ObjectPlace
from substyle.pipelines.places import Place


def create(path: Place, settings: StoreSettings, *, calibration: Sequence[str] = ()) -> None:
    """Make an empty store. On a disk: under a temporary name beside the path, then renamed.

    Args:
        calibration: keys of the images that gates and recalibrations use, for as long as the store lives.

    Raises:
        ConfigError: a path without a name.
        StoreError: something is there already, or the folder cannot be written.
    """
    if not path.name:
        raise ConfigError("store", str(path), "a path that ends in a name, such as runs/photographs.zarr")
    header = Header.new(settings, calibration)
    with writing(path):
        if isinstance(path, ObjectPlace):
            _put(path, header)
        else:
            _make_folder(path, header)


def attributes(header: Header) -> dict[str, object]:
    """What the root group tells other readers of the store; nothing here is read back."""
    return {"substyle": vars(header.settings)}


def _make_folder(path: Path, header: Header) -> None:
    temporary = temporary_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_temporary(path.parent, path.name)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise StoreError(f"{path}: is there already and is not empty")
    try:
        # not as `nodes.write` does: the folder appears as a whole, and what fails is said of the store
        (temporary / ARRAYS).mkdir(parents=True)
        for file, data in (
            (temporary / ARRAYS / METADATA, nodes.group({})),
            (temporary / METADATA, nodes.group(attributes(header))),
            (temporary / HEADER, header.encode()),
        ):
            file.write_bytes(data)
            flush(file)
        flush(temporary / ARRAYS)
        flush(temporary)
        os.rename(temporary, path)  # fails where another process was quicker
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    flush(path.parent)


def _put(path: ObjectPlace, header: Header) -> None:
    """The store is there when its header is, which is put last and only where none is."""
    _require_empty(path)  # before anything is written there
    with lock.mutex(path):
        _require_empty(path)
        (path / ARRAYS / METADATA).put(nodes.group({}))
        (path / METADATA).put(nodes.group(attributes(header)))
        write_durably(path / HEADER, header.encode())


def _require_empty(path: ObjectPlace) -> None:
    # what a process has put that was killed here, or that is at it now
    ours = {path / ARRAYS / METADATA, path / METADATA, path / lock.MUTEX}
    if any(found not in ours for found, _ in path.walk()):
        raise StoreError(f"{path}: is there already and is not empty")

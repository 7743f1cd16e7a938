"""Making a store so that others see it whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import zarr

from substyle.engine.store import form
from substyle.engine.store.errors import StoreError
from substyle.engine.store.files import clear_temporary, flush, temporary_name, writing
from substyle.engine.store.layout import ARRAYS, METADATA, SCHEMA, StoreSettings
from substyle.kernels.errors import ConfigError


def create(
    path: Path, settings: StoreSettings, *, calibration: Sequence[str] = (), options: Mapping[str, str] | None = None
) -> None:
    """Make an empty store under a temporary name beside the path and rename it.

    Args:
        calibration: keys of the images that gates and recalibrations use, for as long as the store lives.
        options: how to open the source, beside its path.

    Raises:
        ConfigError: a path without a name.
        StoreError: something is there already, or the folder cannot be written.
    """
    if not path.name:
        raise ConfigError("store", str(path), "a path that ends in a name, such as runs/photographs.zarr")
    temporary = temporary_name(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_temporary(path.parent, path.name)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise StoreError(f"{path}: is there already and is not empty")
        try:
            header = {"schema": SCHEMA, **vars(replace(settings, source=_absolute(settings.source)))}
            attributes: dict[str, Any] = {
                "substyle": header,
                "source_options": dict(options or {}),
                "calibration": list(calibration),
            }
            group = zarr.open_group(str(temporary), mode="w", zarr_format=3, attributes=form.seal(attributes))
            group.create_group(ARRAYS)
            for file in (temporary / METADATA, temporary / ARRAYS / METADATA, temporary / ARRAYS, temporary):
                flush(file)
            os.rename(temporary, path)  # fails where another process was quicker
        except BaseException:
            # after an interrupt a thread of Zarr's may still be writing there: what stays, the next run clears
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        flush(path.parent)


def _absolute(source: str) -> str:
    """A store may be used from another folder than it was made in; addresses with a scheme stay as they are."""
    return source if "://" in source or not source else os.path.abspath(source)

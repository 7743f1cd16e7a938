"""The header of a store, ``substyle.json``: its UUID, its settings, the images that calibrate it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from substyle.engine.schema import build
from substyle.engine.store.errors import StoreError
from substyle.engine.store.files import digest
from substyle.engine.store.layout import HEADER, METADATA, SCHEMA, StoreSettings
from substyle.kernels.errors import ConfigError
from substyle.pipelines.places import Place

_OLDER = "embed the photographs again into a new store"


@dataclass(frozen=True)
class Header:
    """What is fixed when a store is made.

    Attributes:
        uuid: identifies the store wherever it is moved or copied to.
        settings: see `StoreSettings`.
        calibration: keys of the images that gates and recalibrations use.
    """

    uuid: str
    settings: StoreSettings
    calibration: tuple[str, ...] = ()

    @staticmethod
    def new(settings: StoreSettings, calibration: Sequence[str] = ()) -> Header:
        """The header of a new store, with a UUID of its own."""
        return Header(str(uuid.uuid4()), settings, tuple(calibration))

    def encode(self) -> bytes:
        """The file's content; it carries a digest of itself."""
        content: dict[str, Any] = {
            "kind": "store",
            "schema": SCHEMA,
            "uuid": self.uuid,
            "settings": vars(self.settings),
            "calibration": list(self.calibration),
        }
        return json.dumps({**content, "digest": _digest(content)}, indent=1).encode()


def exists(store: Place) -> bool:
    """Whether a store is at this place."""
    return (store / HEADER).is_file()


def read(store: Place) -> Header:
    """The header of the store at a place.

    Raises:
        StoreError: there is no store, its header is damaged, or it has another schema.
    """
    path = store / HEADER
    try:
        if not path.is_file():
            raise StoreError(_absent(store))
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict) or content.get("kind") != "store":
            raise StoreError(f"{store}: not a store ({HEADER} describes something else)")
        if content.get("schema") != SCHEMA:
            raise StoreError(f"{store}: schema {content.get('schema')}; this version reads {SCHEMA}: {_OLDER}")
        found = content.pop("digest", None)
        if found != _digest(content):
            raise StoreError(f"{path}: checksum mismatch; restore the file from a copy of the store")
        settings = build(StoreSettings, content["settings"])
        return Header(str(content["uuid"]), settings, tuple(map(str, content["calibration"])))
    except (ValueError, KeyError, TypeError, RecursionError, ConfigError) as error:
        raise StoreError(f"{path}: damaged header: {error!r}; restore the file from a copy of the store") from error
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror or error}") from error


def _absent(store: Place) -> str:
    """Why there is no store, in words."""
    metadata = store / METADATA
    if not metadata.is_file():
        return f"{store}: no store is there"
    try:
        older = json.loads(metadata.read_bytes())["attributes"]["substyle"]["schema"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"{store}: a Zarr group, but not a substyle store ({HEADER} is missing)"
    return f"{store}: schema {older}; this version reads {SCHEMA}: {_OLDER}"


def _digest(content: dict[str, Any]) -> str:
    return digest(json.dumps(content, sort_keys=True).encode())

"""Header and catalog of a store: settings, backbones and transformations.

It is the store's own record, in immutable files ``catalog/<backbone>-<digest>.json``. Zarr attributes show the same to
other readers and may be changed by them: nothing here is read from there.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from substyle.engine.store.files import digest, listed, make_folder, read_named, write_durably
from substyle.engine.store.layout import HEADER, METADATA, SCHEMA, BackboneEntry, StoreError, StoreSettings, slug
from substyle.kernels.errors import ConfigError
from substyle.pipelines.storage import Place, at_once
from substyle.pipelines.validation import require_bounded

FOLDER = "catalog"
FILE = re.compile(r".+-[0-9a-f]{16}\.json")
_ROLES = ("train", "held_out")


@dataclass(frozen=True)
class Definition:
    """A transformation as an array holds it: its definition in plain JSON, and the hash of what decides its pixels."""

    definition: dict[str, Any]
    hash: str

    @property
    def name(self) -> str:
        """The transformation's name."""
        return str(self.definition["name"])

    @property
    def identity(self) -> str:
        """What decides its pixels, and what probes take it for: hash, coarse class and role."""
        return f"{self.hash} {self.definition['coarse']} {self.definition['role']}"


@dataclass(frozen=True)
class Catalog:
    """What all files of a catalog say together.

    Attributes:
        backbones: by slug, in the order of their names.
        transformations: by slug of the backbone, then by name.
    """

    backbones: dict[str, BackboneEntry]
    transformations: dict[str, dict[str, Definition]]


def files(store: Place) -> list[Place]:
    """The files of a store's catalog, in order."""
    return listed(store / FOLDER, ".json")


def read(store: Place, paths: list[Place] | None = None) -> Catalog:
    """The catalog of a store.

    Args:
        paths: its files, where they are known already.

    Raises:
        StoreError: a file is damaged, or two files contradict each other.
    """
    backbones: dict[str, BackboneEntry] = {}
    transformations: dict[str, dict[str, Definition]] = {}
    paths = files(store) if paths is None else paths
    for path, (entry, found) in zip(paths, at_once(read_file, paths), strict=True):
        known = backbones.setdefault(entry.slug, entry)
        there = transformations.setdefault(entry.slug, {})
        if differences(known.facts, entry.facts) or any(
            there.get(name, definition).identity != definition.identity for name, definition in found.items()
        ):
            raise StoreError(f"{path}: contradicts another file of the catalog (run substyle verify)")
        there |= found
    ordered = dict(sorted(backbones.items(), key=lambda pair: pair[1].name))
    return Catalog(ordered, transformations)


def write(store: Place, facts: Mapping[str, Any], found: Mapping[str, Definition]) -> None:
    """Add a file that names a backbone and some of its transformations."""
    content = {
        "backbone": dict(facts),
        "transformations": [{"definition": d.definition, "hash": d.hash} for _, d in sorted(found.items())],
    }
    data = json.dumps(content, sort_keys=True).encode()
    make_folder(store / FOLDER)
    write_durably(store / FOLDER / f"{slug(str(facts['name']))}-{digest(data)}.json", data)


def read_file(path: Place) -> tuple[BackboneEntry, dict[str, Definition]]:
    """One file of the catalog. Raises StoreError where it is damaged."""
    try:
        content = json.loads(read_named(path))
        facts = content["backbone"]
        name, dim, spec, runtime = (facts[key] for key in ("name", "dim", "spec", "runtime"))
        rate = facts.get("rate")
        good = isinstance(name, str) and type(dim) is int and dim > 0
        good = good and isinstance(spec["weights_hash"], str) and {"name", "precision"} <= runtime.keys()
        good = good and (rate is None or (isinstance(rate, int | float) and rate > 0))
        found = {}
        for row in content["transformations"]:
            made = Definition(row["definition"], row["hash"])
            good = good and isinstance(made.definition["name"], str) and isinstance(made.definition["coarse"], str)
            good = good and made.definition["role"] in _ROLES and isinstance(made.hash, str)
            found[made.name] = made
        if not good or path.name.rpartition("-")[0] != slug(name):
            raise ValueError("not the entry of a backbone")
        return BackboneEntry(name, slug(name), dim, facts), found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path}: damaged catalog file: {error!r} (run substyle verify)") from error


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In what two makings of one backbone differ, in words; embeddings of both cannot stand in one array."""

    def identity(facts: Mapping[str, Any]) -> dict[str, Any]:
        spec, runtime = facts["spec"], facts["runtime"]
        return {
            "dim": facts["dim"],
            "weights": spec["weights_hash"],
            "code": spec.get("code", ""),  # of a plug-in that makes the backbone
            "runtime": runtime["name"],
            "device": runtime.get("device", "cpu"),
            "precision": runtime["precision"],
            "float32_layers": runtime.get("float32_layers", 0),
            "unquantised_layers": runtime.get("unquantised_layers", 0),
            "between": runtime.get("between", "bf16"),  # of products in 8 bits
        }

    old, new = identity(there), identity(now)
    return [f"{key} {old[key]} there, {new[key]} now" for key in old if old[key] != new[key]]


def remedy(there: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """How a run asks for the device and the runtime that a backbone was made with; "" where they are the same."""
    old, new = there["runtime"], now["runtime"]
    device = old.get("device", "cpu")
    if (old["name"], device) == (new["name"], new.get("device", "cpu")) or old["name"] == "imported":
        return ""
    runtime = re.split(r"[._]", old["name"])[0]  # torch.compile is made by torch, tensorrt_rtx asked for as tensorrt
    return f' (go on with device = "{device}" and runtime = "{runtime}", or take another store)'


# The header of a store, ``substyle.json``: its UUID, its settings, the images that calibrate it.

_OLDER = "embed the photographs again into a new store"


@dataclass(frozen=True)
class StoreHeader:
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
    def new(settings: StoreSettings, calibration: Sequence[str] = ()) -> StoreHeader:
        """The header of a new store, with a UUID of its own."""
        return StoreHeader(str(uuid.uuid4()), settings, tuple(calibration))

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


def read_header(store: Place) -> StoreHeader:
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
        require_bounded(content["settings"])
        settings = StoreSettings(**content["settings"])
        return StoreHeader(str(content["uuid"]), settings, tuple(map(str, content["calibration"])))
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

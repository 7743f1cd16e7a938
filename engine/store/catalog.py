"""Header and catalog of a store: settings, backbones and transformations.

The catalog consists of immutable files ``catalog/<backbone>-<digest>.json``. Zarr attributes show the same facts to
other readers, which may change them, and are never read back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from substyle.engine.store.files import digest, make_folder, read_named, write_once
from substyle.engine.store.layout import (
    HEADER,
    METADATA,
    SCHEMA,
    BackboneEntry,
    StoreError,
    StoreSettings,
    changes,
    is_array_name,
    network_identity,
    slug,
)
from substyle.kernels.errors import ConfigError
from substyle.pipelines.storage import Place, at_once
from substyle.pipelines.validation import require_bounded

FOLDER = "catalog"
_ROLES = ("train", "held_out")


@dataclass(frozen=True)
class Definition:
    """A transformation of an array: its definition in plain JSON, and a hash of everything that affects its pixels."""

    definition: dict[str, Any]
    hash: str

    @property
    def name(self) -> str:
        """The transformation's name."""
        return str(self.definition["name"])

    @property
    def identity(self) -> str:
        """Hash, coarse class and role: what affects its pixels and its use in probes."""
        return f"{self.hash} {self.definition['coarse']} {self.definition['role']}"


@dataclass(frozen=True)
class Catalog:
    """Merged content of all catalog files.

    Attributes:
        backbones: by slug, ordered by name.
        transformations: by slug of the backbone, then by name.
    """

    backbones: dict[str, BackboneEntry]
    transformations: dict[str, dict[str, Definition]]

    def chunk(self, store: Place, slug: str, transformation: str, shard: int) -> Place:
        """Return the file or object of one shard's chunk, also for an unknown backbone."""
        entry = self.backbones.get(slug) or BackboneEntry(slug, slug, 0, {"spec": {}})
        return entry.chunk(store, transformation, shard)


def files(store: Place) -> list[Place]:
    """List the files of a store's catalog in order."""
    return (store / FOLDER).files(".json")


def read(paths: Sequence[Place]) -> Catalog:
    """Merge catalog files. Raises StoreError if a file is damaged, or two files contradict each other."""
    backbones: dict[str, BackboneEntry] = {}
    transformations: dict[str, dict[str, Definition]] = {}
    for path, (entry, found) in zip(paths, at_once(read_file, paths), strict=True):
        known = backbones.setdefault(entry.slug, entry)
        merged = transformations.setdefault(entry.slug, {})
        if differences(known.facts, entry.facts) or any(
            merged.get(name, definition).identity != definition.identity for name, definition in found.items()
        ):
            raise StoreError(f"{path}: contradicts another catalog file; run substyle verify")
        merged |= found
    ordered = dict(sorted(backbones.items(), key=lambda pair: pair[1].name))
    return Catalog(ordered, transformations)


def write(store: Place, facts: Mapping[str, Any], found: Mapping[str, Definition]) -> None:
    """Add a catalog file for a backbone and some of its transformations."""
    content = {
        "backbone": dict(facts),
        "transformations": [{"definition": d.definition, "hash": d.hash} for _, d in sorted(found.items())],
    }
    data = json.dumps(content, sort_keys=True).encode()
    make_folder(store / FOLDER)
    write_once(store / FOLDER / f"{slug(str(facts['name']))}-{digest(data)}.json", data)


def read_file(path: Place) -> tuple[BackboneEntry, dict[str, Definition]]:
    """Read one catalog file. Raises StoreError if it is damaged."""
    try:
        content = json.loads(read_named(path))
        facts = content["backbone"]
        name, dim, spec, runtime = (facts[key] for key in ("name", "dim", "spec", "runtime"))
        rate = facts.get("rate")
        good = isinstance(name, str) and type(dim) is int and dim > 0
        tokens = spec.get("tokens", 0)
        good = good and type(tokens) is int and tokens >= 0 and dim % max(tokens, 1) == 0
        good = good and isinstance(spec["weights_hash"], str) and {"name", "precision"} <= runtime.keys()
        good = good and (rate is None or (isinstance(rate, int | float) and rate > 0))
        found = {}
        for row in content["transformations"]:
            made = Definition(row["definition"], row["hash"])
            good = good and is_array_name(made.definition["name"]) and isinstance(made.definition["coarse"], str)
            good = good and made.definition["role"] in _ROLES and isinstance(made.hash, str)
            found[made.name] = made
        if not good or path.name.rpartition("-")[0] != slug(name):
            raise ValueError("not the entry of a backbone")
        return BackboneEntry(name, slug(name), dim, facts), found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path}: damaged catalog file: {repr(error)[:300]}; run substyle verify") from error


DECODED_JPEG = "decoded_jpeg"  # digest of the canvas of a JPEG file on a GPU


def differences(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe the differences that prevent embeddings with both facts of a backbone from sharing an array."""

    def identity(facts: Mapping[str, Any]) -> dict[str, Any]:
        runtime = facts["runtime"]
        return {
            "dim": facts["dim"],
            **network_identity(facts["spec"]),
            "runtime": runtime["name"],
            "device": runtime.get("device", "cpu"),
            "precision": runtime["precision"],
            "float32_layers": runtime.get("float32_layers", 0),
            "unquantised_layers": runtime.get("unquantised_layers", 0),
            "between": runtime.get("between", "bf16"),  # of products in 8 bits
            "computed_with": runtime.get("computed_with", facts["name"]),  # other layers, in one pass
            DECODED_JPEG: runtime.get(DECODED_JPEG, ""),
        }

    old, new = identity(stored), identity(now)
    return changes(old, new, "in the store")


def remedy(stored: Mapping[str, Any], now: Mapping[str, Any], changed: Sequence[str]) -> str:
    """Advise how to select the backbone's original device and runtime; "" if they are the same.

    Args:
        changed: what differs, as of `layout.changes`.
    """
    if any(change.startswith(f"{field} ") for change in changed for field in network_identity({})):
        return " (this is another network: use another store for it, or the weights and code of the store)"
    old, new = stored["runtime"], now["runtime"]
    device = old.get("device", "cpu")
    if old["name"] == "derived":
        return " (run substyle adapt with --adapter, which derives its embeddings from those of its backbone)"
    if (old["name"], device) == (new["name"], new.get("device", "cpu")) or old["name"] == "imported":
        if old.get(DECODED_JPEG, "") != new.get(DECODED_JPEG, ""):
            return " (this GPU decodes JPEG files to other pixels: perhaps one of the two has no hardware JPEG engine)"
        return ""
    runtime = re.split(r"[._]", old["name"])[0]  # torch.compile is selected as torch, tensorrt_rtx as tensorrt
    return f' (set device = "{device}" and runtime = "{runtime}", or use another store)'


_OLDER = "embed the photographs again into a new store"


@dataclass(frozen=True)
class StoreHeader:
    """Header of a store, ``substyle.json``, fixed at creation.

    Attributes:
        uuid: identifies the store when it is moved or copied.
        settings: see `StoreSettings`.
        calibration: keys of the images that gates use.
    """

    uuid: str
    settings: StoreSettings
    calibration: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """Encode the file's content, with its own digest."""
        content: dict[str, Any] = {
            "kind": "store",
            "schema": SCHEMA,
            "uuid": self.uuid,
            "settings": vars(self.settings),
            "calibration": list(self.calibration),
        }
        return json.dumps({**content, "digest": _digest(content)}, indent=1).encode()


def exists(store: Path | Place) -> bool:
    """Return whether a store exists at this place."""
    return (store / HEADER).is_file()


def read_header(store: Path | Place) -> StoreHeader:
    """Read the header of a store.

    Raises:
        StoreError: no store exists, its header is damaged, or its schema version is not supported.
    """
    path = store / HEADER
    try:
        if not path.is_file():
            raise StoreError(_absent(store))
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict) or content.get("kind") != "store":
            run = isinstance(content, dict) and content.get("kind") == "results"
            its = (
                f"the results of a run, whose store is {content.get('store')}"
                if run
                else f"{HEADER} is of another kind"
            )
            raise StoreError(f"{store}: not a store ({its})")
        if content.get("schema") != SCHEMA:
            raise StoreError(f"{store}: schema {content.get('schema')}; this version reads {SCHEMA}: {_OLDER}")
        found = content.pop("digest", None)
        if found != _digest(content):
            raise StoreError(f"{path}: checksum mismatch; restore the file from a copy of the store")
        require_bounded(content["settings"])
        settings = StoreSettings(**content["settings"])
        return StoreHeader(str(content["uuid"]), settings, tuple(map(str, content["calibration"])))
    except (ValueError, KeyError, TypeError, RecursionError, ConfigError) as error:
        raise StoreError(f"{path}: damaged header: {repr(error)[:300]}; restore it from a copy of the store") from error
    except OSError as error:
        raise StoreError(f"{path}: cannot read: {error.strerror or error}") from error


def _absent(store: Path | Place) -> str:
    """The error message for a missing store."""
    metadata = store / METADATA
    if not metadata.is_file():
        return f"{store}: no store found"
    try:
        older = json.loads(metadata.read_bytes())["attributes"]["substyle"]["schema"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"{store}: a Zarr group, but not a substyle store ({HEADER} is missing)"
    return f"{store}: schema {older}; this version reads {SCHEMA}: {_OLDER}"


def _digest(content: dict[str, Any]) -> str:
    return digest(json.dumps(content, sort_keys=True).encode())

"""The catalog of a store: which backbones and transformations it holds, and how they were made.

It is the store's own record, in immutable files ``catalog/<backbone>-<digest>.json``. Zarr attributes show the same to
other readers and may be changed by them: nothing here is read from there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from substyle.engine.store.errors import StoreError
from substyle.engine.store.files import digest, listed, make_folder, read_named, write_durably
from substyle.engine.store.layout import BackboneEntry, slug
from substyle.pipelines.places import Place, at_once

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

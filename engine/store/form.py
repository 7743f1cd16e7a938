"""What a store, a backbone's group and a transformation's array must say of themselves to be believed.

Attributes carry a digest of themselves, so that whatever changes them later is found before it is used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import zarr

from substyle.engine.store import nodes
from substyle.engine.store.errors import StoreError
from substyle.engine.store.files import digest
from substyle.engine.store.layout import METADATA, BackboneEntry, StoreSettings, slug
from substyle.pipelines.places import Place

DIGEST = "digest"
_MEASURED = "rate"  # of a backbone: a time, which another process that makes the same group measures otherwise
_ROLES = ("train", "held_out")


def seal(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes in plain JSON with a digest of themselves."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(attributes)))
    return {**plain, DIGEST: _digest(plain)}


def unseal(attributes: Mapping[str, Any], member: Place) -> dict[str, Any]:
    """Attributes without their digest. Raises StoreError when they are not what was written."""
    plain = {key: value for key, value in attributes.items() if key != DIGEST}
    if attributes.get(DIGEST) != _digest(plain):
        raise StoreError(f"{member / METADATA}: its attributes are not what was written (run substyle verify)")
    return plain


def _digest(attributes: Mapping[str, Any]) -> str:
    fixed = {key: value for key, value in attributes.items() if key != _MEASURED}
    return digest(json.dumps(fixed, sort_keys=True).encode())


def backbone(attributes: Mapping[str, Any], group: Place) -> BackboneEntry:
    """The backbone that a group's attributes tell of. Raises StoreError where they do not."""
    facts = unseal(attributes, group)
    name, dim, spec, runtime, rate = (facts.get(key) for key in ("name", "dim", "spec", "runtime", _MEASURED))
    good = isinstance(name, str) and slug(name) == group.name and type(dim) is int and dim > 0
    good = good and isinstance(spec, dict) and isinstance(spec.get("weights_hash"), str)
    good = good and isinstance(runtime, dict) and {"name", "precision"} <= runtime.keys()
    good = good and (rate is None or (isinstance(rate, int | float) and rate > 0))
    if not good:
        raise StoreError(f"{group / METADATA}: is not the group of a backbone (run substyle verify)")
    return BackboneEntry(str(name), group.name, int(str(dim)), facts)


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In what two makings of one backbone differ, in words; embeddings of both cannot stand in one array."""

    def identity(facts: Mapping[str, Any]) -> dict[str, Any]:
        spec, runtime = facts["spec"], facts["runtime"]
        return {
            "dim": facts["dim"],
            "weights": spec["weights_hash"],
            "code": spec.get("code", ""),
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


def transformation(attributes: Mapping[str, Any], array: Place) -> tuple[dict[str, Any], str]:
    """(definition, its hash) of the transformation that an array holds. Raises StoreError where it does not say."""
    facts = unseal(attributes, array)
    definition, definition_hash = facts.get("definition"), facts.get("definition_hash")
    told: dict[str, Any] = definition if isinstance(definition, dict) else {}
    good = told.get("name") == array.name and isinstance(told.get("coarse"), str) and told.get("role") in _ROLES
    if not good or not isinstance(definition_hash, str):
        raise StoreError(f"{array / METADATA}: does not say which transformation it holds (run substyle verify)")
    return told, definition_hash


def require_layout(array: zarr.Array[Any], settings: StoreSettings, dim: int, path: Place) -> None:
    """Raise StoreError unless an array is laid out as this engine does it: (N, D) numbers in bare chunks (R, D)."""
    there = json.loads(json.dumps(array.metadata.to_dict()))
    pairs = {
        "width": (array.shape[1:], (dim,)),
        "chunks": (array.chunks, (settings.shard_rows, dim)),
        "type": (str(array.dtype), settings.dtype),
        "codecs": (there["codecs"], nodes.CODECS),
        "names of chunks": (there["chunk_key_encoding"], nodes.CHUNK_NAMES),
        "fill value": (str(array.fill_value), "nan"),
    }
    for what, (found, wanted) in pairs.items():
        if found != wanted:
            raise StoreError(f"{path / METADATA}: {what} {found}, not {wanted} (run substyle verify)")

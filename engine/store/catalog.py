"""Header and catalog of a store: settings, backbones and transformations.

The catalog consists of immutable files ``catalog/<backbone>-<digest>.json``. Zarr attributes show the same facts to
other readers, which may change them, and are never read back.
"""

from __future__ import annotations

import json
import math
import re
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.backbones.spec import EXECUTED
from substyle.engine.store.files import digest, read_named, write_durably, write_once
from substyle.engine.store.layout import (
    HEADER,
    SCHEMA,
    SKETCH,
    ArrayEntry,
    BackboneEntry,
    StoreError,
    StoreSettings,
    changes,
    is_array_name,
    network_changes,
    network_facts,
    network_identity,
    slug,
)
from substyle.engine.words import of_today
from substyle.errors import ConfigError
from substyle.pipelines.storage import Place, at_once
from substyle.pipelines.validation import require_bounded

FOLDER = "catalog"
PIXELS_DIGEST = r"(gpu\.)?[0-9a-f]{16}"
ROUNDED = 1e-4  # share of values that other processors and libraries may round to the next level
_ROLES = ("train", "held_out")


@dataclass(frozen=True)
class Definition:
    """A transformation of an array: its definition in plain JSON, and what it does to fixed pictures.

    Attributes:
        pixels: digests of its pixels on fixed pictures, one for each processor or set of libraries that made others,
            see `pixels_digest`; empty if unknown, as of stores of earlier versions and of real transformations.
        pictures: these pixels, uint8; of a definition that was read, they are in `pictures_file`.
    """

    definition: dict[str, Any]
    pixels: tuple[str, ...] = ()
    pictures: NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The transformation's name."""
        return str(self.definition["name"])

    @property
    def declared(self) -> str:
        """Digest of the definition without kind and role, which do not affect pixels; 16 hex digits."""
        left_out = ("kind", "role", "assets", "code")  # the latter of earlier versions
        return _digest({key: value for key, value in self.definition.items() if key not in left_out})

    @property
    def assets(self) -> str:
        """Digest of the assets that are drawn from; "" if there are none, or of an earlier version."""
        return str(self.definition.get("assets", ""))

    @property
    def hash(self) -> str:
        """What affects its pixels: digests of the definition, its assets, and what it does to fixed pictures."""
        return "-".join((self.declared, *([f"assets.{self.assets}"] if self.assets else []), *self.pixels))

    @property
    def identity(self) -> str:
        """Definition, assets, kind and role. A store holds no embeddings of other pixels under one of these."""
        return " ".join((*self.use, *filter(None, [self.assets])))

    @property
    def use(self) -> tuple[str, str, str]:
        """Digest of the definition, kind and role."""
        return self.declared, str(self.definition["kind"]), str(self.definition["role"])

    def difference(self, now: Definition, store: Place) -> str:
        """Describe how a transformation of this name differs now from that of a store; "" if it does not.

        Other processors and libraries may round pixels differently: by one level, and few of them. Pixels of a CPU and
        of a GPU are not compared.
        """
        if self.use != now.use:
            return "another definition"
        if self.assets and now.assets and self.assets != now.assets:
            return "other assets"
        alike = [each for each in self.pixels if now.pixels and _device(each) == _device(now.pixels[0])]
        if not alike or {*alike} & {*now.pixels}:
            return ""
        read = [] if now.pictures is None else [read_pictures(store, now, each) for each in alike]
        if now.pictures is None or all(pictures is None for pictures in read):
            return "other pixels"
        known = [pictures for pictures in read if pictures is not None]
        levels = np.abs(np.stack(known).astype(np.int16) - now.pictures)
        share = float((levels > 0).mean(axis=tuple(range(1, levels.ndim))).max())
        if levels.max() <= 1 and share <= ROUNDED:  # of all that are known, or small steps would add up
            return ""
        return f"other pixels: {100 * share:.2g} % of the values, by up to {levels.max()}"


@dataclass(frozen=True)
class Catalog:
    """Merged content of all catalog files.

    Attributes:
        backbones: by slug, ordered by name.
        transformations: by slug of the backbone, then by name.
        arrays: by slug of the backbone.
    """

    backbones: dict[str, BackboneEntry]
    transformations: dict[str, dict[str, Definition]]
    arrays: dict[str, list[ArrayEntry]]

    def array(self, slug: str, transformation: str) -> ArrayEntry:
        """Return the array of a backbone's transformation. Raises StoreError if there is none."""
        for array in self.arrays.get(slug, ()):
            if transformation in array.transformations:
                return array
        raise StoreError(f"{slug}: no array of {transformation}")


def pixels_digest(pictures: NDArray[np.uint8], *, on_gpu: bool = False) -> str:
    """Digest of the shape and values of pictures; 16 hex digits, of a GPU after ``gpu.``."""
    found = digest(repr(pictures.shape).encode() + np.ascontiguousarray(pictures).tobytes())
    return f"gpu.{found}" if on_gpu else found


def _device(pixels: str) -> str:
    return pixels.rpartition(".")[0]


def pictures_file(store: Place, name: str, digest: str) -> Place:
    """Path of the reference pictures of a transformation, compressed by zlib."""
    return store / FOLDER / f"{name}-{digest}.pictures"


def read_pictures(store: Place, like: Definition, known: str) -> NDArray[np.uint8] | None:
    """Read the pictures of a definition with a digest; None if they are missing, damaged or of another shape."""
    assert like.pictures is not None
    try:
        packed, shape = pictures_file(store, like.name, known).read_bytes(), like.pictures.shape
        data = zlib.decompressobj().decompress(packed, math.prod(shape) + 1)
        pictures = np.frombuffer(data, np.uint8).reshape(shape)
    except (OSError, ValueError, zlib.error):
        return None
    return pictures if pixels_digest(pictures, on_gpu=bool(_device(known))) == known else None


def files(store: Place) -> list[Place]:
    """List the files of a store's catalog in order."""
    return (store / FOLDER).files(".json")


def read(paths: Sequence[Place]) -> Catalog:
    """Read a catalog. Raises StoreError if a file is damaged, or two files contradict each other."""
    found = merged(paths)
    transformations = {}
    for backbone, made in found.transformations.items():  # those whose array was in a file that is damaged are lost
        there = {name for array in found.arrays[backbone] for name in array.transformations}
        transformations[backbone] = {name: each for name, each in made.items() if name in there}
    return replace(found, transformations=transformations)


def lowest_cosine(facts: Mapping[str, Any]) -> float:
    """Return the lowest cosine with float32 that a backbone's gate and spot check have found; 1 without a gate."""
    gate = facts.get("gate")
    gates = (gate, gate.get("spot")) if isinstance(gate, dict) else ()
    found = [each.get("cosine_min") for each in gates if isinstance(each, dict)]
    return min((float(cosine) for cosine in found if isinstance(cosine, (int, float))), default=1.0)


def merged(paths: Sequence[Place]) -> Catalog:
    """`read` with transformations that have no array, as those of schema 3."""
    backbones: dict[str, BackboneEntry] = {}
    transformations: dict[str, dict[str, Definition]] = {}
    arrays: dict[str, list[ArrayEntry]] = {}
    for path, (entry, found, array) in zip(paths, at_once(read_file, paths), strict=True):
        if entry.facts["spec"].get("tokens"):
            print(f"{path}: {entry.name} is left out: its tokens are of an earlier version", file=sys.stderr)
            continue
        known = backbones.setdefault(entry.slug, entry)
        newer, older = entry.facts, known.facts
        if SKETCH in older["spec"] or SKETCH not in newer["spec"]:  # else known is of an earlier version
            newer, older = older, newer
        executed = sorted({each for facts in (newer, older) for each in executions(facts)})
        runtime = {**newer["runtime"], **({EXECUTED: ", ".join(executed)} if executed else {})}
        gate = min(entry.facts, known.facts, key=lowest_cosine).get("gate")  # some embeddings passed no more than this
        backbones[entry.slug] = replace(known, facts={**newer, "runtime": runtime, "gate": gate})
        merged = transformations.setdefault(entry.slug, {})
        if _identity(known.facts) != _identity(entry.facts):
            raise StoreError(f"{path}: contradicts another catalog file; run substyle verify")
        others = {name for other in arrays.setdefault(entry.slug, []) for name in other.transformations}
        if array is not None and array not in arrays[entry.slug]:
            if others & {*array.transformations}:
                raise StoreError(f"{path}: contradicts another catalog file; run substyle verify")
            arrays[entry.slug].append(array)
        for name, definition in found.items():
            before = merged.setdefault(name, definition)
            if before.use != definition.use or len({before.assets, definition.assets} - {""}) > 1:
                raise StoreError(f"{path}: contradicts another catalog file; run substyle verify")
            fuller = before if before.assets else definition
            merged[name] = replace(fuller, pixels=tuple(sorted({*before.pixels, *definition.pixels})))
    ordered = dict(sorted(backbones.items(), key=lambda pair: pair[1].name))
    return Catalog(ordered, transformations, arrays)


def write(store: Place, facts: Mapping[str, Any], found: Sequence[Definition], *, array: bool) -> None:
    """Add a catalog file for a backbone and some of its transformations.

    Args:
        array: whether these are, in this order, the transformations of a new array.
    """
    content = {
        "backbone": dict(facts),
        "array": array,
        "transformations": [{"definition": made.definition, "pixels": list(made.pixels)} for made in found],
    }
    data = json.dumps(content, sort_keys=True).encode()
    for made in found:
        if made.pictures is not None:  # first: pixels that the catalog names can be compared
            path = pictures_file(store, made.name, made.pixels[0])
            if not path.is_file():
                write_durably(path, zlib.compress(made.pictures.tobytes()))
    write_once(store / FOLDER / f"{slug(str(facts['name']))}-{digest(data)}.json", data)


def read_file(path: Place) -> tuple[BackboneEntry, dict[str, Definition], ArrayEntry | None]:
    """Read a catalog file: a backbone, transformations, and the array that they are. Raises StoreError if damaged."""
    try:
        content = json.loads(read_named(path))
        facts = content["backbone"]
        name, dim, spec, runtime = (facts[key] for key in ("name", "dim", "spec", "runtime"))
        rate = facts.get("rate")
        if tuned := spec.get("finetuned"):
            tuned["objective"] = of_today(str(tuned["objective"]))
        good = isinstance(name, str) and type(dim) is int and dim > 0
        good = good and np.asarray(spec.get(SKETCH) or (), np.float64).ndim <= 2
        good = good and isinstance(spec["weights_hash"], str) and {"name", "precision"} <= runtime.keys()
        good = good and (rate is None or (isinstance(rate, int | float) and rate > 0))
        found = {}
        for row in content["transformations"]:
            # kinds were called coarse in earlier versions
            described = {"kind" if key == "coarse" else key: each for key, each in row["definition"].items()}
            made = Definition(described, tuple(row.get("pixels", ())))
            good = good and is_array_name(made.definition["name"]) and isinstance(made.definition["kind"], str)
            good = good and made.definition["role"] in _ROLES
            good = good and all(re.fullmatch(PIXELS_DIGEST, each) for each in made.pixels)
            found[made.name] = made
        if not good or path.name.rpartition("-")[0] != slug(name):
            raise ValueError("not the entry of a backbone")
        entry = BackboneEntry(name, slug(name), dim, facts)
        return (
            entry,
            found,
            ArrayEntry(entry.slug, dim, tuple(found)) if content.get("array") is True and found else None,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path}: damaged catalog file: {repr(error)[:300]}; run substyle verify") from error


def executions(facts: Mapping[str, Any]) -> list[str]:
    """Precisions that a backbone was executed in, on different processors; empty if unknown."""
    return [each for each in str(facts["runtime"].get(EXECUTED, "")).split(", ") if each]


DECODED_JPEG = "decoded_jpeg"  # digest of the canvas of a JPEG file on a GPU


def differences(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe the differences that prevent embeddings with both facts of a backbone from sharing an array."""
    where = "in the store"
    found = changes(_identity(stored), _identity(now), where)
    return found or network_changes(network_facts(stored["spec"]), network_facts(now["spec"]), where)


def _identity(facts: Mapping[str, Any]) -> dict[str, Any]:
    runtime = facts["runtime"]
    return {
        **network_identity(facts["spec"]),
        "dim": facts["dim"],
        "runtime": runtime["name"],
        "device": runtime.get("device", "cpu"),
        "precision": runtime["precision"],
        "float32_layers": runtime.get("float32_layers", 0),
        "unquantised_layers": runtime.get("unquantised_layers", 0),
        "between": runtime.get("between", "bf16"),  # of products in 8 bits
        "computed_with": runtime.get("computed_with", facts["name"]),  # other layers, in one pass
        DECODED_JPEG: runtime.get(DECODED_JPEG, ""),
    }


def remedy(stored: Mapping[str, Any], now: Mapping[str, Any], changed: Sequence[str]) -> str:
    """Advise how to select the backbone's original device and runtime; "" if they are the same.

    Args:
        changed: what differs, as of `layout.changes`.
    """
    networks = tuple(f"{name} " for name in (*network_identity({}), "embeddings"))
    if any(change.startswith(networks) for change in changed):
        return " (this is another network: use another store for it, or the weights and code of the store)"
    old, new = stored["runtime"], now["runtime"]
    device = old.get("device", "cpu")
    if old["name"] == "derived":
        return " (its embeddings are derived from those of another backbone in the store, not embedded)"
    if (old["name"], device) == (new["name"], new.get("device", "cpu")) or old["name"] == "imported":
        if old.get(DECODED_JPEG, "") != new.get(DECODED_JPEG, ""):
            return " (this GPU decodes JPEG files to other pixels: perhaps one of the two has no hardware JPEG engine)"
        return ""
    runtime = re.split(r"[._]", old["name"])[0]  # torch.compile is selected as torch, tensorrt_rtx as tensorrt
    return f' (set device = "{device}" and runtime = "{runtime}", or use another store)'


IMPORTED = 3  # schema that `import` converts
_OLDER = "embed the photographs again into a new store"
_IMPORT = "convert it with substyle import OLD.zarr --store NEW.zarr, which keeps its embeddings"


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


def read_header(store: Path | Place, schema: int = SCHEMA) -> StoreHeader:
    """Read the header of a store.

    Raises:
        StoreError: no store exists, its header is damaged, or its schema version is not supported.
    """
    path = store / HEADER
    try:
        if not path.is_file():
            raise StoreError(f"{store}: no store found ({HEADER} is missing)")
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict) or content.get("kind") != "store":
            run = isinstance(content, dict) and content.get("kind") == "results"
            its = (
                f"the results of a run, whose store is {content.get('store')}"
                if run
                else f"{HEADER} is of another kind"
            )
            raise StoreError(f"{store}: not a store ({its})")
        if (found := content.get("schema")) != schema:
            how = _IMPORT if found == IMPORTED else _OLDER
            raise StoreError(f"{store}: schema {found}; this version reads {schema}: {how}")
        if content.pop("digest", None) != _digest(content):
            raise StoreError(f"{path}: checksum mismatch; restore the file from a copy of the store")
        require_bounded(content["settings"])
        settings = StoreSettings(**content["settings"])
        return StoreHeader(str(content["uuid"]), settings, tuple(map(str, content["calibration"])))
    except (ValueError, KeyError, TypeError, RecursionError, ConfigError) as error:
        raise StoreError(f"{path}: damaged header: {repr(error)[:300]}; restore it from a copy of the store") from error
    except OSError as error:
        raise StoreError(f"{path}: cannot read: {error.strerror or error}") from error


def _digest(content: dict[str, Any]) -> str:
    return digest(json.dumps(content, sort_keys=True).encode())

"""What `verify` found damaged, kept in ``damage.json`` until `embed` has repaired it.

`verify` changes nothing else in a store: run twice, it finds the same. Readers refuse backbones that it names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from substyle.engine.store import compaction
from substyle.engine.store.errors import StoreError
from substyle.engine.store.files import remove, write_durably, writing
from substyle.pipelines.objects import ObjectPlace
from substyle.pipelines.places import Place

NAME = "damage.json"


@dataclass(frozen=True)
class Damage:
    """Damaged parts of a store.

    Attributes:
        chunks: transformations by (shard, slug of the backbone) that must be embedded again.
        files: damaged files of journal and catalog, relative to the store; what they say is lost.
        metadata: ``zarr.json`` files to be written again.
    """

    chunks: Mapping[tuple[int, str], set[str]] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    metadata: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.chunks or self.files or self.metadata)


def read(store: Place) -> Damage | None:
    """What is noted of a store; None where nothing is. Raises StoreError when the note itself is damaged."""
    path = store / NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
        chunks = {(int(shard), str(slug)): {str(name) for name in names} for shard, slug, names in content["chunks"]}
        return Damage(chunks, tuple(map(str, content["files"])), tuple(map(str, content["metadata"])))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{path}: cannot be read: {error!r}; run substyle verify, which writes it again") from error


def write(store: Place, found: Damage) -> None:
    """Note what is damaged, in place of what was noted before. Raises StoreError where it cannot be written."""
    content = {
        "chunks": [[shard, slug, sorted(names)] for (shard, slug), names in sorted(found.chunks.items())],
        "files": list(found.files),
        "metadata": list(found.metadata),
    }
    data = json.dumps(content, indent=1).encode()
    path = store / NAME
    if isinstance(path, ObjectPlace):
        with writing(path):
            path.put(data)
    else:
        write_durably(path, data)


def clear(store: Place) -> None:
    """Forget what was noted."""
    with writing(store / NAME):
        remove(store / NAME)


def require_none(store: Place, slug: str) -> None:
    """Raise StoreError where `verify` found chunks of a backbone, or files of the store, damaged."""
    found = read(store)
    if found is not None and (found.files or found.metadata or any(there == slug for _, there in found.chunks)):
        raise StoreError(f"{store}: verify found damage that is not repaired yet ({NAME}); run embed, which repairs it")


def repair(store: Place, found: Damage) -> None:
    """Take damaged chunks and records out of the journal and remove damaged files; the caller owns the store."""
    inside = [store / name for name in found.files]
    for path in inside:
        if path.parent.name == "catalog":
            remove(path)
    compaction.withdraw(store, found.chunks, [path for path in inside if path.parent.name != "catalog"])

"""What a store lacks: shards with something to do, and how many embeddings that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from substyle.engine.store.embeddings import EmbeddingStore
from substyle.engine.store.layout import BackboneEntry
from substyle.engine.store.lock import Part
from substyle.engine.store.manifest import Manifest

Lacking = Sequence[Sequence[str]]  # for each backbone of a run the transformations that a shard lacks


@dataclass(frozen=True)
class Todo:
    """The shards of a part of a store that lack something.

    Attributes:
        images: photographs of the store; shards: of the store.
        lacking: by number of the shard, in order; a shard that has everything is not there.
        sizes: photographs of these shards.
        total: embeddings that the part has when it is finished; done: those it has.
    """

    images: int
    shards: int
    lacking: Mapping[int, Lacking]
    sizes: Mapping[int, int]
    total: int
    done: int

    def embeddings(self, shard: int) -> int:
        """How many a shard lacks."""
        return self.sizes[shard] * sum(map(len, self.lacking[shard]))


def todo(store: EmbeddingStore, entries: Sequence[BackboneEntry], names: Sequence[str], part: Part) -> Todo:
    """What is to do until every backbone has the transformations ``names`` of all shards of a part."""
    finished, manifest = store.finished(), store.manifest()
    lacking: dict[int, Lacking] = {}
    sizes: dict[int, int] = {}
    total = done = 0
    shards = store.shards()
    for number in filter(part.does, range(shards)):
        size = len(images_of(manifest, number, store.settings.shard_rows))
        some = [[name for name in names if name not in finished.get((number, entry.slug), set())] for entry in entries]
        missing = sum(map(len, some))
        total += size * len(names) * len(entries)
        done += size * (len(names) * len(entries) - missing)
        if missing:
            lacking[number], sizes[number] = some, size
    return Todo(len(manifest.keys), shards, lacking, sizes, total, done)


def images_of(manifest: Manifest, shard: int, rows: int) -> range:
    """The images of a shard of so many rows, as positions in the manifest."""
    part = manifest.between(shard * rows, (shard + 1) * rows)
    return range(part.start, part.stop)

"""Whether the metadata of a store's groups and arrays are what this engine writes."""

from __future__ import annotations

from dataclasses import dataclass, field

from substyle.engine.store.embeddings import EmbeddingStore
from substyle.engine.store.errors import StoreError
from substyle.engine.store.layout import ARRAYS, METADATA, members
from substyle.pipelines.places import Place


@dataclass
class Known:
    """Rows of the arrays that can be used, by (slug of the backbone, transformation), and what is wrong elsewhere."""

    arrays: dict[tuple[str, str], int] = field(default_factory=dict)
    problems: dict[Place, str] = field(default_factory=dict)


def check(store: EmbeddingStore) -> Known:
    """Look at the metadata of all backbones and transformations."""
    known = Known()
    for slug in members(store.path / ARRAYS):
        path = store.path / ARRAYS / slug
        try:
            entry = store.entry_of(slug)
        except StoreError as error:
            known.problems[path / METADATA] = str(error)
            continue
        for transformation in members(path):
            try:
                store.definition_of(entry, transformation)
                known.arrays[slug, transformation] = int(store.array_of(entry, transformation).shape[0])
            except StoreError as error:
                known.problems[path / transformation / METADATA] = str(error)
    return known

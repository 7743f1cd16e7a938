"""Stores of an output folder, such as those of other photographs embedded by the backbones of a study."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from substyle import files
from substyle.engine.config import EmbedConfig, Study
from substyle.engine.embedding.derived import derive
from substyle.engine.embedding.plan import EmbedPlan
from substyle.engine.embedding.prepare import PixelPipeline
from substyle.engine.embedding.run import embed_compiled
from substyle.engine.stages.stage import Elsewhere, Run
from substyle.engine.stages.stamp import Stamp
from substyle.engine.store import catalog
from substyle.engine.store.files import writing
from substyle.engine.store.layout import HEADER, TEST, DifferentError
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import open_table
from substyle.files import remove
from substyle.pipelines.sources import ImageRecord, Source, describe, kind_of, open_source
from substyle.pipelines.sources.base import Understood
from substyle.pipelines.storage import place


def plan_elsewhere(each: Elsewhere, study: Study, config: EmbedConfig, source: Source | None = None) -> EmbedPlan:
    """Plan of embedding other photographs.

    Args:
        source: the photographs, if they are opened already.
    """
    if source is None:
        assert each.photographs is not None
        source = open_source(each.photographs, study.source.fitting(kind_of(each.photographs)))
    pipeline = PixelPipeline(each.settings, config)
    return EmbedPlan(source, place(each.path), pipeline, each.limit, each.fractions, title=each.title, only=True)


def embedded(run: Run, each: Elsewhere) -> None:
    """Embed other photographs by the backbones of a run, replacing a store of other ones."""
    assert run.embedding is not None
    assert run.study is not None
    title, path = each.title, each.path
    own = _tested(run, run.embedding.plan.source) if each.photographs is None else None
    plan = plan_elsewhere(each, run.study, run.study.embed, own)
    print(f"{title}: {describe(plan.source)}", file=sys.stderr)
    compiled = run.embedding.compiled
    embed_anew(plan, lambda own: embed_compiled(own, compiled, quiet=run.quiet))
    store = EmbeddingStore.open(path)
    for name in run.embedding.derived:
        derive(store, name, quiet=run.quiet)


def embed_anew(plan: EmbedPlan, embed: Callable[[EmbedPlan], object]) -> None:
    """Embed into a store of an output folder, or replace it if photographs, settings or a backbone have changed."""
    path = plan.store_path
    assert isinstance(path, Path)
    files.inside(path.parent, path.name)
    if not catalog.exists(path):
        with writing(path):
            remove(path)  # remainder of an interrupted deletion
    try:
        embed(plan)
    except DifferentError as error:
        print(f"{plan.title}: {error}; re-embedding", file=sys.stderr)
        with writing(path):
            files.remove(path / HEADER, root=path.parent)  # first: without it a partly deleted store is not opened
            remove(path)
        embed(plan)


@dataclass(frozen=True)
class _Part:
    """Some of the images of a source."""

    root: str
    class_names: tuple[str, ...]
    records: Sequence[ImageRecord]
    options: Mapping[str, str]
    understood: Understood


def _tested(run: Run, own: Source) -> Source:
    """The test photographs of a run."""
    (first, *_) = run.tables.values()
    test = {first.keys[n] for n in first.rows(TEST).tolist()}
    records = [record for record in own.records if record.key in test]
    return _Part(own.root, own.class_names, records, own.options, own.understood)


def store_stamps(
    stores: Mapping[str, EmbeddingStore], backbone: str, transformations: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Stamps of a backbone's embeddings of other photographs, by name; stores without the backbone are left out."""
    return {
        name: asdict(Stamp.of(store, open_table(store, backbone, transformations), {}))
        for name, store in stores.items()
        if any(entry.name == backbone for entry in store.backbones())
    }

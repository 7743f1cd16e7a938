"""Other photographs, embedded by the backbones of a study in stores of their own."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from substyle.engine.config import EmbedConfig, Settings
from substyle.engine.embedding.plan import EmbedPlan
from substyle.engine.embedding.prepare import PixelPipeline
from substyle.engine.embedding.run import embed_compiled
from substyle.engine.stages.stage import Run
from substyle.engine.stages.stamp import Stamp
from substyle.engine.stages.training import derive
from substyle.engine.store import catalog
from substyle.engine.store.files import remove, writing
from substyle.engine.store.layout import HEADER, DifferentError
from substyle.engine.store.manifest import Fractions
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import open_table
from substyle.kernels import files
from substyle.pipelines.sources import Source, SourceConfig, describe, kind_of, open_source


def plan_elsewhere(
    title: str,
    folder: Path | str | Source,
    path: Path,
    settings: Settings,
    config: EmbedConfig,
    *,
    source: SourceConfig | None,
    limit: int = 0,
    fractions: Fractions | None = None,
) -> EmbedPlan:
    """Plan of embedding other photographs in a store of their own."""
    photographs = folder
    if isinstance(photographs, Path | str):
        photographs = open_source(photographs, (source or SourceConfig()).fitting(kind_of(photographs)))
    return EmbedPlan(photographs, path, PixelPipeline(settings, config), limit, fractions, title=title, only=True)


def embedded(
    run: Run,
    title: str,
    folder: Path | str | Source,
    path: Path,
    settings: Settings,
    *,
    limit: int = 0,
    fractions: Fractions | None = None,
) -> None:
    """Embed other photographs by the backbones of a run in a store of their own, replacing a store of other ones.

    Args:
        path: path of the store.
        settings: their transformations.
    """
    assert run.embedding is not None
    assert run.study is not None
    plan = plan_elsewhere(
        *(title, folder, path, settings, run.study.embed), source=run.study.source, limit=limit, fractions=fractions
    )
    print(f"{title}: {describe(plan.source)}", file=sys.stderr)
    files.inside(path.parent, path.name)
    if not catalog.exists(path):
        with writing(path):
            remove(path)  # remainder of an interrupted deletion
    try:
        embed_compiled(plan, run.embedding.compiled, quiet=run.quiet)
    except DifferentError as error:
        # the folder, its bytes or a backbone have changed
        print(f"{title}: {error}; re-embedding", file=sys.stderr)
        with writing(path):
            files.remove(path / HEADER, root=path.parent)  # first: without it a partly deleted store is not opened
            remove(path)
        embed_compiled(plan, run.embedding.compiled, quiet=run.quiet)
    store = EmbeddingStore.open(path)
    for name in run.embedding.adapted:
        derive(store, name, quiet=run.quiet)


def store_stamps(
    stores: Mapping[str, EmbeddingStore], backbone: str, transformations: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Stamps of a backbone's embeddings of other photographs, by name; stores without the backbone are left out."""
    return {
        name: asdict(Stamp.of(store, open_table(store, backbone, transformations), {}))
        for name, store in stores.items()
        if any(entry.name == backbone for entry in store.backbones())
    }

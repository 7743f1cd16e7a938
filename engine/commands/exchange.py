"""Commands `export`, `explore`, `import`, `variants` and `share card`: exchange with other programs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from substyle.engine.commands.options import changes, of_source, out_of
from substyle.engine.embedding.variants import write_variants
from substyle.engine.store import catalog
from substyle.engine.store.importer import import_store
from substyle.engine.store.layout import PIXELS
from substyle.engine.store.schema3 import convert
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.study import hub
from substyle.engine.study.explore import explore as explore_store
from substyle.engine.study.export import export as export_store
from substyle.engine.study.file import study_of
from substyle.errors import ConfigError, MissingError
from substyle.pipelines.sources import SourceConfig


def export(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle export STORE --to FORMAT --out DIR`."""
    answer = export_store(
        EmbeddingStore.open(options.store), options.out, to=options.to, backbones=options.backbone,
        transformations=options.transformation, quiet=options.quiet,
    )  # fmt: skip
    print(
        f"{options.out}: {', '.join(answer['backbones'])} as {options.to}; parts written {answer['written']}, kept "
        f"{answer['kept']}, removed {answer['removed']}"
    )
    return answer


def explore(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle explore STORE --backbone NAME`."""
    store = EmbeddingStore.open(options.store)
    answer = explore_store(
        store, options.backbone, export=options.export, results=options.results or out_of(store),
        projection=options.projection, photographs=options.photographs, seed=options.seed,
    )  # fmt: skip
    if options.export is not None:
        print(f"{options.export}: {answer['points']} points; serve it: python -m http.server -d {options.export}")
    return answer


def import_embeddings(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle import EMBEDDINGS --store STORE --backbone NAME`, or `substyle import OLD.zarr --store NEW.zarr`."""
    if catalog.exists(options.embeddings):
        for name in ("backbone", "rows", "dtype"):
            if (given := getattr(options, name)) is not None:
                raise ConfigError(f"--{name}", str(given), f"none: {options.embeddings} is a store")
        answer = convert(options.embeddings, options.store, quiet=options.quiet)
        print(f"{options.store}: {answer['images']} images, {answer['shards']} shards from {options.embeddings}")
        return answer
    if options.backbone is None:
        raise MissingError("--backbone", "a name for the embeddings, such as import:my_model")
    if not isinstance(options.embeddings, Path):
        raise ConfigError("embeddings", str(options.embeddings), "a file on a disk, or a store")
    answer = import_store(
        options.embeddings, options.store, options.backbone, rows=options.rows, seed=options.seed, dtype=options.dtype
    )
    print(
        f"{options.store}: {answer['images']} images × {answer['transformations']} transformations, "
        f"{answer['dim']} wide, from {options.embeddings}"
    )
    return answer


def card(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle share card RUN`."""
    path = hub.write_card(options.run, options.out)
    print(f"model card: {path}")
    return {"card": str(path)}


def variants(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle variants IMAGES --out DIR`."""
    asked = changes(options, "source.", "limit", *PIXELS)
    study = study_of({"name": "variants", "backbones": ["control:pixels"], "suite": options.suite}, changes=asked)
    answer = write_variants(
        options.images, options.out, study.settings(), to=options.to, image_format=options.format,
        quality=options.quality, source=SourceConfig(**of_source(asked)), limit=study.limit, device=options.device,
        quiet=options.quiet,
    )  # fmt: skip
    for key, reason in answer["quarantined"].items():
        print(f"left out {key}: {reason}", file=sys.stderr)
    print(
        f"{options.out}: {answer['variants']} variants of {answer['images'] - len(answer['quarantined'])} photographs"
    )
    return answer

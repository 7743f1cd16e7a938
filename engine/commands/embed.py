"""Command `embed`, in its own module for fast startup."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from substyle.engine.backbones.registry import check_name, is_derived
from substyle.engine.backbones.spec import named
from substyle.engine.commands.metrics import exported
from substyle.engine.commands.options import changes, of_source
from substyle.engine.config import BackboneChoice, Settings, Study
from substyle.engine.embedding.blobs import not_used
from substyle.engine.embedding.derived import DERIVED, derive
from substyle.engine.embedding.plan import EmbedPlan
from substyle.engine.embedding.prepare import PixelPipeline
from substyle.engine.embedding.run import embed as embed_all
from substyle.engine.store import catalog, identity
from substyle.engine.store.layout import PIXELS
from substyle.engine.store.lock import Part
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import definitions
from substyle.engine.study.file import study_of
from substyle.errors import ConfigError, MissingError, abbreviated
from substyle.pipelines.sources import Source, SourceConfig, absolute_root, describe, open_source
from substyle.pipelines.transforms.registry import suite_name

_SHOWN = 5  # variants left out by name
_SETTABLE = ("embed.", "executor.", "source.", "device", "threads", "limit", *PIXELS)


def embed(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle embed IMAGES --store STORE --backbone NAME`. Defaults come from an existing store."""
    with exported(options.metrics):
        return _embed(options)


def _embed(options: argparse.Namespace) -> dict[str, Any]:
    existing = EmbeddingStore.open(options.store) if catalog.exists(options.store) else None
    if existing is not None and options.images is None:
        bases = _bases(existing, options.backbone)
        if {*bases} == {*options.backbone}:
            return _derive(options, existing, bases)
    data: dict[str, Any] = {"name": "embed", "backbones": backbone_choices(options.backbone, options.checkpoint)}
    asked, stored = changes(options, *_SETTABLE), dict[str, Any]()
    if existing is not None:
        stored = {name: getattr(existing.settings, name) for name in PIXELS if name not in asked}
        data["embed"] = {"dtype": existing.settings.dtype, "codec": existing.settings.codec}
        data["suite"] = suite_of(existing)
    data |= {"suite": options.suite} if options.suite is not None else {}
    study = study_of(data, changes=asked)
    settings = dataclasses.replace(_settings(study, existing), **stored)
    config = study.executor.here(study.embed, existing.settings.shard_rows if existing else 0)
    source = _source(options, existing, of_source(asked))
    print(describe(source), file=sys.stderr)
    plan = EmbedPlan(
        source,
        options.store,
        PixelPipeline(settings, config),
        study.limit,
        part=Part.parse(options.part),
        take_over=options.take_over,
        executor=study.executor,
        add=options.add,
        replace=options.replace,
        remove_missing=options.remove_missing,
        asked=(study.device, study.embed.runtime),
    )
    for warning in not_used(source, settings.transformations):
        print(f"warning: {warning}", file=sys.stderr)
    summary = embed_all(plan, study.backbones, quiet=options.quiet)
    for key, reason in summary.quarantined.items():
        print(f"quarantined {key}: {reason}")
    for name, reasons in summary.left_out.items():
        some = abbreviated([f"{key} ({reason})" for key, reason in reasons.items()], _SHOWN)
        print(f"left out {len(reasons)} of {name}: {some}")
    per_s = summary.variants / summary.seconds["total"] if summary.new_shards else 0.0
    rate = f"{per_s:.0f} variants/s" if per_s >= 1 else f"{1 / per_s:.1f} s a variant" if per_s else ""
    print(
        f"{options.store}: {summary.images} photographs × {len(settings.transformations)} variants, new shards: "
        f"{summary.new_shards} of {summary.shards}" + (f", {rate}" if rate else "")
    )
    return {**dataclasses.asdict(summary), "store": str(options.store)}


def _bases(store: EmbeddingStore, names: Sequence[str]) -> dict[str, str]:
    """Backbones of a store that embeddings of others are derived from, by name of the other.

    Others whose embeddings are those of a network are left out: they go on as they began.
    """
    derivations = {name: check_name(name).derive for name in names if is_derived(name)}
    bases = {name: derive_of(name).backbone for name, derive_of in derivations.items() if derive_of is not None}
    runtimes = {entry.name: entry.facts["runtime"]["name"] for entry in store.backbones()}
    return {name: base for name, base in bases.items() if base in runtimes and runtimes.get(name, DERIVED) == DERIVED}


def _derive(options: argparse.Namespace, store: EmbeddingStore, bases: Mapping[str, str]) -> dict[str, Any]:
    """Derive the embeddings of backbones from those in a store.

    Raises:
        ConfigError: an option that does not apply.
    """
    for name in ("suite", "set", "device", "checkpoint", "take_over", "add", "replace", "remove_missing", "part"):
        if (given := getattr(options, name)) and given != "1/1":  # all parts
            allowed = f"nothing where embeddings are derived, as those of {', '.join(bases)} are"
            raise ConfigError(f"--{name.replace('_', '-')}", given, allowed)
    for name, base in bases.items():
        entry = derive(store, name, quiet=options.quiet)
        print(f"{store.path}: embeddings of {name}, of width {entry.dim}, derived from those of {base}")
    return {"store": str(options.store), "derived": dict(bases)}


def _settings(study: Study, store: EmbeddingStore | None) -> Settings:
    """The study's settings of variants. Raises MissingError if the store has transformations of a missing plug-in."""
    try:
        return study.settings()
    except ConfigError as error:
        entries = store.backbones() if store else ()
        if store is None or not entries or error.given not in store.transformation_names(entries[0]):
            raise
        hint = f"the file that registers {error.given}, a transformation of {store.path}"
        raise MissingError("--plugin", hint) from error


def _source(options: argparse.Namespace, store: EmbeddingStore | None, asked: Mapping[str, Any]) -> Source:
    """Open the given photographs, else those of the store, with the options recorded in the store.

    Args:
        asked: other options.
    """
    entries = store.manifest().sources if store and store.has_manifest() else ()
    if options.images is None:
        if store is None or not entries:
            raise MissingError("IMAGES", "name a folder of photographs, or an existing store")
        return identity.open_recorded(store, dataclasses.replace(entries[0], name=""))
    root = absolute_root(str(options.images))
    own = next((entry for entry in entries if entry.root == root), None)
    base = identity.recorded_config(store, own) if store and own else SourceConfig()
    return open_source(options.images, dataclasses.replace(base, **asked))


def suite_of(store: EmbeddingStore) -> str:
    """The suite of a store; the default of an empty one."""
    entries = store.backbones()
    return suite_name(definitions(store, entries[0])) if entries else "substance31"


def backbone_choices(names: Sequence[str], checkpoints: Sequence[str]) -> list[BackboneChoice]:
    """Backbones from ``--backbone`` and ``--checkpoint`` arguments."""
    paths: dict[str, Path] = {}
    shown = {named(name)[1] or name: name for name in names}
    for text in checkpoints:
        # names may contain "=", such as @layer=6
        own = max((each for each in shown if text.startswith(f"{each}=")), key=len, default=None)
        if own is None:
            raise ConfigError("--checkpoint", text, f"NAME=PATH, NAME being one of {', '.join(shown)}")
        paths[shown[own]] = Path(text[len(own) + 1 :])
    return [BackboneChoice(name, paths.get(name)) for name in names]

"""`embed`: compute the missing embeddings of a store."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from substyle.engine import cache
from substyle.engine.backbones.compile import CompiledBackbone
from substyle.engine.backbones.spec import EXECUTED
from substyle.engine.config import BackboneChoice, names_of
from substyle.engine.embedding.loop import EmbedSummary, EmbedTask, Executor, embed_here
from substyle.engine.embedding.plan import EmbedPlan, PendingShards, added, pending_shards
from substyle.engine.embedding.preflight import check_backbones, check_store, check_writable
from substyle.engine.embedding.prepare import gate_keys, prepare_backbones, require_asked, shard_rows
from substyle.engine.store import compaction, files, identity, lock
from substyle.engine.store.identity import PhotographsError
from substyle.engine.store.layout import DEFAULT_FRACTIONS, PIXELS, BackboneEntry, Fractions, StoreError, StoreSettings
from substyle.engine.store.manifest import FOLDER, Manifest
from substyle.engine.store.removal import remove
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import conflicting, store_facts
from substyle.errors import ConfigError, MissingError, abbreviated
from substyle.pipelines.sources import Named, Source


@dataclass(frozen=True)
class Early:
    """What is called once a number of photographs, from all parts of the source, are embedded."""

    photographs: int
    call: Callable[[], None]


_MANY = 1.5  # times as many photographs are left before it is worth to stop


def embed(
    plan: EmbedPlan,
    backbones: Sequence[BackboneChoice],
    *,
    begin: Callable[[], None] = lambda: None,
    early: Early | None = None,
    quiet: bool = False,
) -> EmbedSummary:
    """Embed every variant of every photograph by every backbone. Finished shards are skipped.

    Args:
        plan: photographs, store, settings and tools.
        backbones: names with optional weights and precision.
        begin: called after the photographs have been matched with the store and before anything is changed.
        early: called once a number of photographs are embedded, if there are many more; not with remote workers.

    Raises:
        ConfigError, StoreError, LockedError, WeightsError, GateError, OverflowError16: finished shards are kept in all
            cases.
    """
    if not backbones:
        raise MissingError("backbones", "pass at least one")
    start = time.perf_counter()
    if plan.exists:
        store = EmbeddingStore.open(plan.store_path)
        require_same(store, plan)
        repair(plan, store)
        if plan.remove_missing:
            _remove_missing(plan, store, quiet=quiet)
        if plan.match.state is None:
            plan = plan.matched(store, quiet=quiet)
        require_asked(store, backbones, plan.pipeline, *plan.asked)
        begin()
        done = complete(plan, store, names_of(backbones))
        if done is not None:
            _tidy(plan, store)
            return done
    else:
        begin()
    check_backbones(backbones)
    check_writable(cache.root(), "$SUBSTYLE_CACHE", "set $SUBSTYLE_CACHE to another folder")
    check_store(plan.store_path)
    with _workers(plan, backbones) as workers:
        compiled = prepare_backbones(backbones, plan.samples(), quiet=quiet)
        (facts, rows), ready = _facts(plan, compiled), time.perf_counter()
        execute = workers or partial(embed_here, compiled)
        del compiled
        if workers is not None:  # they have their own, and one shares this process's GPU
            plan.pipeline.release()
        summary = _fill(plan, facts, rows, execute, early if workers is None else None, quiet=quiet)
    summary.seconds["prepare"] = ready - start
    summary.seconds["total"] = time.perf_counter() - start
    return summary


def _workers(plan: EmbedPlan, backbones: Sequence[BackboneChoice]) -> AbstractContextManager[Executor | None]:
    """The executor of remote workers, started before backbones are prepared for minutes; None for local execution."""
    if plan.executor.local:
        return nullcontext()
    from substyle.engine.embedding.ray_executor import ray_executor  # Ray is an extra

    return ray_executor(plan.executor, plan.pipeline.config, backbones)


def embed_compiled(plan: EmbedPlan, compiled: Sequence[CompiledBackbone], *, quiet: bool = False) -> EmbedSummary:
    """`embed` in this process for backbones that are already compiled and gated."""
    if plan.exists:
        repair(plan, EmbeddingStore.open(plan.store_path))
    return _fill(plan, *_facts(plan, compiled), partial(embed_here, compiled), quiet=quiet)


Facts: TypeAlias = Sequence[Mapping[str, Any]]  # of each prepared backbone


def _facts(plan: EmbedPlan, compiled: Sequence[CompiledBackbone]) -> tuple[Facts, int]:
    """The facts of backbones, and R of a new store."""
    pipeline = plan.pipeline
    rows = shard_rows(compiled, len(pipeline.settings.transformations), len(plan.records()), pipeline.config)
    return [facts for backbone in compiled for facts in backbone.describe()], rows


def _fill(
    plan: EmbedPlan, facts: Facts, rows: int, execute: Executor, early: Early | None = None, *, quiet: bool
) -> EmbedSummary:
    settings = plan.pipeline.settings
    summary = EmbedSummary()
    start = time.perf_counter()
    if not plan.exists:
        _create(plan, rows)
    store = EmbeddingStore.open(plan.store_path)
    require_same(store, plan)
    run = lock.new_run_id()
    with lock.hold(plan.store_path, run, plan.part, take_over=plan.take_over):
        with lock.mutex(plan.store_path):
            # another process may have created the store, or added to it, since it was matched
            if plan.match.state is None or plan.match.state != identity.state_of(store):
                plan = plan.matched(store, quiet=quiet)
            entries = _prepare_store(store, plan, facts)
        missing = pending_shards(store, entries, settings.transformations, plan.part)
        _require_present(store, plan, missing)
        _require_room(store, entries, missing, quiet=quiet)
        summary.images, summary.shards = missing.images, missing.shards
        summary.variants = summary.images * len(settings.transformations)
        if (age := files.age()) is not None:
            summary.seconds["ready"] = age
        if early is not None and missing.size_W.sum() >= _MANY * early.photographs:
            few, missing = missing.split(early.photographs)
            execute(EmbedTask(store, plan, entries, run, few, summary, quiet))
            early.call()
        execute(EmbedTask(store, plan, entries, run, missing, summary, quiet))
        with lock.mutex(plan.store_path):
            compaction.compact(plan.store_path)
    if summary.new_shards:
        _warn_of_copies(store)
    summary.spend("total", start)
    return summary


def _warn_of_copies(store: EmbeddingStore) -> None:
    """Warn of equal photographs in different classes."""
    manifest = store.manifest()
    if pairs := [f"{a} and {b}" for a, b in conflicting(manifest, store.notes(manifest))]:
        text = f"warning: {store.path}: equal photographs in different classes"
        print(f"{text}: {abbreviated(pairs)}", file=sys.stderr)


def _tidy(plan: EmbedPlan, store: EmbeddingStore) -> None:
    """Remove leftovers of a run that was killed after its last embedding."""
    if compaction.none(store.path):
        return
    with lock.hold(plan.store_path, lock.new_run_id(), plan.part), lock.mutex(plan.store_path):
        compaction.clear_leftovers(store.path)
        compaction.compact(plan.store_path)


def repair(plan: EmbedPlan, store: EmbeddingStore) -> None:
    """Withdraw the parts of a store that `verify` found damaged, so that they are embedded again."""
    if not (plan.store_path / compaction.NAME).is_file():
        return
    owned = lock.hold(plan.store_path, lock.new_run_id(), plan.part, take_over=plan.take_over)
    with owned, lock.mutex(plan.store_path):
        if store.repair():
            print(f"{plan.store_path}: embedding the damaged parts found by verify again", file=sys.stderr)


def _remove_missing(plan: EmbedPlan, store: EmbeddingStore, *, quiet: bool) -> None:
    """Remove photographs from a store that its sources do not have any more."""
    with lock.hold(plan.store_path, lock.new_run_id(), take_over=plan.take_over), lock.mutex(plan.store_path):
        plan = plan.matched(store, quiet=quiet)
        gone, images = plan.match.gone, store.manifest()
        left = {images.keys[n] for n in np.flatnonzero(~np.isin(images.row_N, gone))}
        calibration = [key for key in store.calibration if key in left]
        if not calibration:
            calibration = gate_keys([record for record in plan.readable() if record.key in left], store.settings.seed)
        compaction.clear_leftovers(store.path)
        remove(store, gone, calibration)
        compaction.compact(store.path)
        if len(gone):
            print(f"{store.path}: {len(gone)} photographs are removed; results before still show them", file=sys.stderr)


def _create(plan: EmbedPlan, rows: int) -> None:
    settings, config = plan.pipeline.settings, plan.pipeline.config
    pixels = {name: getattr(settings, name) for name in PIXELS}
    made = StoreSettings(shard_rows=rows, dtype=config.dtype, codec=config.codec, **pixels)
    try:
        EmbeddingStore.create(plan.store_path, made, calibration=gate_keys(plan.records(), settings.seed))
    except StoreError:
        if not plan.exists:  # otherwise another part of the run was faster
            raise


def _prepare_store(store: EmbeddingStore, plan: EmbedPlan, prepared: Facts) -> list[BackboneEntry]:
    """Create or complete images, groups and arrays, and clear leftovers of killed runs and damaged disks."""
    wanted = plan.pipeline.definitions
    for facts in prepared:  # before anything is changed
        store.require_same(facts, wanted)
    compaction.clear_leftovers(store.path)
    _add_missing(store, plan)
    rows, part = store.settings.shard_rows, plan.part
    own = plan.match.redo[plan.match.redo // rows % part.count == part.index - 1]  # others may be embedding theirs
    if len(own):
        _withdraw(store, own)
    entries = [store.ensure_backbone(facts, wanted) for facts in prepared]
    _tell_versions(store, prepared)
    store.resize_arrays()
    slugs = [entry.slug for entry in entries]
    short = store.truncated(store.finished().of(slugs))
    short = {(shard, slug): names for (shard, slug), names in short.items() if shard % part.count == part.index - 1}
    if short:
        print(
            f"{store.path}: {len(short)} finished shards are missing or truncated; embedding them again",
            file=sys.stderr,
        )
        compaction.withdraw(store.path, short)
    return entries


def _require_present(store: EmbeddingStore, plan: EmbedPlan, missing: PendingShards) -> None:
    """Raise ConfigError if photographs to embed belong to a source that has moved or is gone."""
    if not plan.match.absent:
        return
    images = store.manifest()
    names = [entry.name for entry in images.sources]
    for absent in plan.match.absent:
        row_M = images.row_N[images.source_N == names.index(absent.name)]
        if np.isin(row_M // store.settings.shard_rows, missing.shard_W).any():
            raise ConfigError("IMAGES", absent.root, "an existing path; this source has photographs to embed")


def _require_room(
    store: EmbeddingStore, entries: Sequence[BackboneEntry], missing: PendingShards, *, quiet: bool
) -> None:
    """Print the size of the missing embeddings. Raises ConfigError if a local disk has no room for them."""
    if not len(missing.shard_W):
        return
    count_B = (missing.size_W[:, None] * missing.lacking_WBT.sum(2)).sum(0).tolist()
    chunks_B = missing.lacking_WBT.sum((0, 2)).tolist()
    need = sum(n * store.settings.chunk_bytes(entry.dim) for n, entry in zip(chunks_B, entries, strict=True))
    each = [f"{n:,} × {entry.dim} by {entry.name}" for n, entry in zip(count_B, entries, strict=True) if n]
    compressed = "" if store.settings.codec == "none" else ", before compression"
    text = f"{_size(need)} of embeddings to store{compressed}: {', '.join(each)}"
    if (free := store.path.free_bytes()) is not None:
        text += f"; {_size(free)} are free"
    if not quiet:
        print(f"{store.path}: {text}", file=sys.stderr)
    if free is None or need <= free or store.settings.codec != "none":
        return
    sizes = {array: array.node(store.path).sizes() for entry in entries for array in store.catalog.arrays[entry.slug]}
    again = sum(  # shards that are written again are replaced
        of_shards.get(array.shard(store.path, shard), 0)
        for shard, lacked in missing.lacking.items()
        for entry, names in zip(entries, lacked, strict=True)
        for array, of_shards in sizes.items()
        if array.slug == entry.slug and {*names} >= {*array.transformations}
    )
    if need > free + again:
        raise ConfigError("store", str(store.path), f"a disk with enough room for {text}")


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"


def _withdraw(store: EmbeddingStore, redo: NDArray[np.int64]) -> None:
    """Remove the shards of some rows from the journal, for every backbone."""
    shards = set((redo // store.settings.shard_rows).tolist())
    broken: dict[tuple[int, str], set[str]] = {}
    for shard, slug, made in store.finished().records():
        if shard in shards:
            broken.setdefault((shard, slug), set()).update(made)
    compaction.withdraw(store.path, broken)
    slugs = {slug for _, slug in broken}
    names = [entry.name for entry in store.backbones() if entry.slug in slugs]
    print(
        f"{store.path}: embedding {len(redo)} photographs again, with all of their {len(shards)} shards, which are "
        f"missing for {', '.join(names)} until then",
        file=sys.stderr,
    )


def _tell_versions(store: EmbeddingStore, prepared: Facts) -> None:
    """Log backbones that continue with another version of their runtime, or in another precision on this processor."""
    for now in prepared:
        runtime, before = now["runtime"], store.backbone(str(now["name"])).facts["runtime"]
        for field in ("version", EXECUTED):
            old, new = before.get(field, ""), runtime.get(field, "")
            if old and new and old != new:
                print(
                    f"{store.path}: {now['name']} was started with {before['name']} in {field} {old} and continues in "
                    f"{new}; both passed the gate, but embeddings may differ by its tolerance",
                    file=sys.stderr,
                )


def complete(plan: EmbedPlan, store: EmbeddingStore, backbones: Sequence[str]) -> EmbedSummary | None:
    """Return the summary of a complete store, None if there is pending work."""
    settings = plan.pipeline.settings
    if not store.has_manifest() or len(plan.match.redo):
        return None
    entries = {entry.name: entry for entry in store.backbones()}
    finished = store.finished()
    keys = set(store.manifest().keys)
    names = settings.transformations
    shards = store.shards()
    if not all(record.key in keys for record in plan.records()):
        return None
    for name in backbones:
        if name not in entries or len(pending_shards(store, [entries[name]], names, lock.WHOLE).shard_W):
            return None
        if store.truncated(finished.of([entries[name].slug])):
            return None
        store.require_definitions(plan.pipeline.definitions)
    facts = store_facts(store)
    left_out = {name: reasons for name, reasons in facts.left_out.items() if name in names}
    return EmbedSummary(len(keys), len(keys) * len(names), shards, quarantined=facts.quarantined, left_out=left_out)


def require_embedded(plan: EmbedPlan, store: EmbeddingStore, *, quiet: bool = False) -> None:
    """Check that a store has the photographs of a plan and no others, unchanged, and its definitions.

    Raises:
        PhotographsError: the photographs have changed, or some are not in the store.
        DifferentError: the definition of a transformation has changed.
    """
    plan = plan.matched(store, quiet=quiet)
    keys = set(store.manifest().keys)
    missing = [record.key for record in plan.records() if record.key not in keys]
    missing += [store.manifest().keys[n] for n in np.flatnonzero(np.isin(store.manifest().row_N, plan.match.redo))]
    if missing:
        some = f"{missing[0]}{f' and {len(missing) - 1} others' * (len(missing) > 1)}"
        raise PhotographsError(f"{store.path}: photographs are not embedded: {some}; {plan.remedies.changed}")
    store.require_definitions(plan.pipeline.definitions)


def require_same(store: EmbeddingStore, plan: EmbedPlan) -> None:
    """Raise PhotographsError if the settings of a store differ from those of a plan."""
    stored, settings = store.settings, plan.pipeline.settings
    pairs = {
        **{name: (value, getattr(settings, name)) for name, value in stored.pixels.items()},
        "dtype": (stored.dtype, plan.pipeline.config.dtype),
        "codec": (stored.codec, plan.pipeline.config.codec),
    }
    changed = {name: (old, new) for name, (old, new) in pairs.items() if old != new}
    if changed:
        changes = "; ".join(f"{name} {old} in the store, {new} now" for name, (old, new) in changed.items())
        raise PhotographsError(
            f"{store.path}: different settings: {changes}; {plan.remedies.described}", next(iter(changed))
        )


def _add_missing(store: EmbeddingStore, plan: EmbedPlan) -> None:
    known = store.manifest() if store.has_manifest() else None
    entry = identity.entry_of(plan.source, plan.fractions or _fractions(known, plan.source))
    new, names, label_N, split_N = added(
        plan.records(), plan.source, known, seed=store.settings.seed, fractions=entry.fractions or DEFAULT_FRACTIONS
    )
    if not new:
        return
    first = -(-(known.rows if known else 0) // store.settings.shard_rows)
    finished = store.finished()
    if len(finished) and int(finished.shard_R.max()) >= first:
        raise StoreError(
            f"{store.path}: the journal has shards outside the manifest: a file of {FOLDER} is missing; restore it "
            "from a copy of the store, or use another store"
        )
    given = [record.split for record in new]
    store.add_images([record.key for record in new], label_N, names, split_N, given=given, source=entry)
    identity.remember(store, entry)


def _fractions(known: Manifest | None, source: Source) -> Fractions:
    """The split shares of a source of the store, or the default for a new one."""
    name = source.name if isinstance(source, Named) else ""
    found = (entry.fractions for entry in known.sources if entry.name == name) if known else iter(())
    return next(found, ()) or DEFAULT_FRACTIONS

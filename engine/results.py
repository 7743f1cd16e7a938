"""results.json: all that a study found, put together from its store and its stages."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from substyle import __version__
from substyle.engine.backbones.cache import cpu_model, versions
from substyle.engine.backbones.registry import stated
from substyle.engine.claims import claims
from substyle.engine.outputs import stamps
from substyle.engine.probes.compare import compare_outcomes
from substyle.engine.probes.outcome import ProbeOutcome
from substyle.engine.report.results import validate_results
from substyle.engine.stages import ANALYSIS, PROBES
from substyle.engine.stamp import embeddings_digest, photographs_digest, seconds, shards_of
from substyle.engine.store.embeddings import EmbeddingStore
from substyle.engine.store.layout import SPLITS, BackboneEntry
from substyle.engine.store.load import store_facts
from substyle.engine.table import EmbeddingTable
from substyle.kernels.errors import SubstyleError
from substyle.pipelines.suites import suite_name

SCHEMA = 1
_LIBRARIES = ("torch", "openvino", "nvidia-dali-cuda130", "timm", "open_clip_torch", "faiss-cpu", "zarr")


def assemble(
    name: str,
    store: EmbeddingStore,
    out: Path,
    outcomes: Mapping[str, ProbeOutcome],
    analyses: Mapping[str, Mapping[str, Any]],
    shifts: Mapping[str, Mapping[str, Any]],
    *,
    tables: Sequence[EmbeddingTable],
    threads: int,
) -> dict[str, Any]:
    """The whole of results.json.

    Args:
        name: the study's name.
        tables: of the backbones that are reported, over the same photographs and transformations.
        outcomes, analyses, shifts: by backbone, what the stages gave; what a backbone lacks is left out.
        threads: CPU threads that the run used.
    """
    entries = [store.backbone(table.backbone) for table in tables]
    table, names = tables[0], tables[0].transformations
    facts, shards = store_facts(store), shards_of(store, table)
    known = store.catalog.transformations[entries[0].slug]
    spent = {entry.name: _seconds(store, entry, names) for entry in entries}
    document = {
        "schema": SCHEMA,
        "version": __version__,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "name": name,
        "seed": store.settings.seed,
        "canvas": store.settings.canvas,
        "suite": suite_name(table.transformations),
        "images": len(table.keys),
        "variants": len(table.keys) * len(table.transformations),
        "splits": {split: len(table.rows(code)) for code, split in enumerate(SPLITS)},
        "classes": list(table.class_names),
        "transformations": [known[each].definition for each in names],
        "chance": _chance(table),
        "quarantined": [{"key": key, "reason": reason} for key, reason in facts.quarantined.items()],
        "indistinct": {each: count for each, count in facts.indistinct.items() if each in names},
        "duplicates_moved": len(facts.moved),
        "identity": {
            "store": store.uuid,
            # names alone: a report may be shown to people whom paths do not concern
            "sources": ", ".join(PurePath(entry.root).name for entry in store.manifest().sources),
            "photographs": photographs_digest(table),
            "embeddings": {entry.name: embeddings_digest(store, entry.slug, names, shards) for entry in entries},
        },
        "stamps": stamps(out, [entry.slug for entry in entries]),
        "throughput": _throughput(entries, table, sum(spent.values()), out),
        "environment": _environment(threads),
        "backbones": {
            entry.name: _backbone(
                entry, outcomes.get(entry.name), analyses.get(entry.name, {}), shifts.get(entry.name, {})
            )
            | {"cost": _cost(store, entry, len(table.keys), names, spent[entry.name])}
            for entry in entries
        },
        "comparisons": compare_outcomes(outcomes),
    }
    try:
        validate_results(document)
    except SubstyleError:  # no verdict on a stage's numbers that are none; the report refuses them by name
        return document
    return document | {"claims": claims(document)}


def _backbone(
    entry: BackboneEntry, outcome: ProbeOutcome | None, analysis: Mapping[str, Any], shift: Mapping[str, Any]
) -> dict[str, Any]:
    facts = entry.facts
    objective, data = stated(entry.name)  # of stores that were made before specs stated it
    return {
        "dim": entry.dim,
        "control": facts["spec"]["control"],
        "spec": {"objective": objective, "data": data, **facts["spec"]},
        "runtime": facts["runtime"],
        "gate": facts["gate"],
        **(outcome.results if outcome else {}),
        **analysis,
        **({"shift": dict(shift)} if shift else {}),
    }


def _seconds(store: EmbeddingStore, entry: BackboneEntry, names: Sequence[str]) -> float:
    """Wall time of a backbone's finished shards in some transformations; of a pass with others too, their share."""
    finished = store.finished().of([entry.slug])
    wanted = set(names)
    share = np.array([len(wanted & set(made)) / max(len(made), 1) for made in finished.made], np.float64)
    return float((finished.seconds_R * share[finished.made_R]).sum()) if len(share) else 0.0


def _cost(
    store: EmbeddingStore, entry: BackboneEntry, images: int, names: Sequence[str], seconds: float
) -> dict[str, float]:
    """What a backbone's embeddings took: hours of its device, images in all variants a second of that, bytes stored.

    The time of a shard is that of its whole pass, decoding and variants included, in equal shares for all backbones of
    the pass. Of imported embeddings only the bytes are known.
    """
    chunks = int(np.count_nonzero(store.finished().finished(entry.slug, names, store.shards())))
    cost: dict[str, float] = {"store_bytes": chunks * store.settings.chunk_bytes(entry.dim)}
    if seconds:
        cost |= {"device_hours": seconds / 3600, "embeddings_per_s": images * len(names) / seconds}
    return cost


def _chance(table: EmbeddingTable) -> dict[str, float]:
    labels = table.label_N[table.label_N >= 0]
    chance = {"fine": 1 / len(table.transformations), "coarse": 1 / len(set(table.coarse))}
    return chance | ({"semantic": 1 / len(np.unique(labels))} if table.has_classes else {})


def _throughput(entries: list[BackboneEntry], table: EmbeddingTable, embed_seconds: float, out: Path) -> dict[str, Any]:
    variants = len(table.keys) * len(table.transformations)
    # imported embeddings have no rate of their own
    rates = {entry.name: entry.facts["rate"] for entry in entries if entry.facts.get("rate")}
    alone = sum(variants / rate for rate in rates.values())
    spent = {
        f"{what}_seconds": round(seconds(out / folder / entry.slug for entry in entries), 2)
        for what, folder in _STAGES.items()
    }
    if not embed_seconds:
        return spent
    return {
        "variants_per_s": variants / embed_seconds,
        "embeddings_per_s": variants * len(rates) / embed_seconds,
        "photographs_per_s": len(table.keys) / embed_seconds,
        "backbone_only_per_s": rates,
        "share_of_backbone_only": alone / embed_seconds,
        "embed_seconds": round(embed_seconds, 2),
        **spent,
        "total_seconds": round(embed_seconds + sum(spent.values()), 2),
    }


_STAGES = {"probe": PROBES, "analysis": ANALYSIS}


def _environment(threads: int) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        **{library: found for library, found in versions(*_LIBRARIES).items() if found},
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "threads": threads,
    }

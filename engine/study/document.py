"""The document of results: results.json."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any

from substyle import __version__
from substyle.engine.backbones.presets import stated
from substyle.engine.cache import versions
from substyle.engine.config import Study
from substyle.engine.probes.tasks import class_task, kind_task, transformation_task
from substyle.engine.report.parts import parts
from substyle.engine.results.model import SCHEMA, ResultsDocument
from substyle.engine.stages import registry
from substyle.engine.stages.execution import folder_of
from substyle.engine.stages.pictures import file_contents
from substyle.engine.stages.results import validate_results
from substyle.engine.stages.stage import Run, Unit
from substyle.engine.stages.stamp import checksum, note_of, photographs_digest, seconds, table_digest
from substyle.engine.store.layout import SPLITS, TEST, UNLABELLED, BackboneEntry
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, store_facts
from substyle.engine.study.outputs import stamps
from substyle.errors import SubstyleError
from substyle.kernels import cpu
from substyle.pipelines.transforms.base import PHOTOGRAPHS
from substyle.pipelines.transforms.registry import suite_name

_LIBRARIES = ("torch", "openvino", "nvidia-dali-cuda130", "timm", "open_clip_torch", "faiss-cpu", "zarr")


def assemble(
    run: Run,
    name: str,
    *,
    note: str = "",
    threads: int,
    labels: Mapping[str, str],
    limit: int = 0,
    wall_seconds: float | None = None,
) -> dict[str, Any]:
    """Assemble results.json from the results of all stages.

    Args:
        run: what stages have computed, by backbone; missing results are omitted.
        name: name of the study.
        note: text about the study.
        threads: CPU threads of the run.
        labels: labels of backbones that have one.
        limit: maximum number of photographs, which results with a study state.
        wall_seconds: wall time of a run that has embedded and computed all of its results.
    """
    store, out, tables = run.store, run.out, list(run.tables.values())
    entries = [store.backbone(table.backbone) for table in tables]
    slugs = [entry.slug for entry in entries]
    table, names = tables[0], tables[0].transformations
    facts = store_facts(store)
    left_out = {each: len(facts.left_out[each]) for each in names if each in facts.left_out}
    known = store.catalog.transformations[entries[0].slug]
    spent = {entry.name: _seconds(store, entry, names) for entry in entries}
    # the time of a pass is divided equally among its backbones; imported embeddings have none
    hours = {name: {"device_hours": seconds / 3600} if seconds else {} for name, seconds in spent.items()}
    document = {
        "schema": SCHEMA,
        "version": __version__,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "name": name,
        **({"note": note} if note else {}),
        **store.settings.pixels,
        "dtype": store.settings.dtype,
        "suite": suite_name([known[each].definition for each in names]),
        "images": len(table.keys),
        "variants": len(table.keys) * len(table.transformations),
        "splits": {split: len(table.rows(code)) for code, split in enumerate(SPLITS)},
        "labelled_test": int((table.label_N[table.rows(TEST)] != UNLABELLED).sum()),
        "classes": list(table.class_names),
        "transformations": [known[each].definition for each in names],
        "chance": _chance(table),
        "quarantined": [{"key": key, "reason": reason} for key, reason in facts.quarantined.items()],
        "indistinct": {each: count for each, count in facts.indistinct.items() if each in names},
        **({"left_out": left_out} if left_out else {}),
        "duplicates": facts.copies,
        "duplicates_moved": len(facts.moved),
        **({"conflicting_copies": [list(pair) for pair in facts.conflicting]} if facts.conflicting else {}),
        "identity": {
            "store": store.uuid,
            # names without paths, since reports may be shared
            "sources": ", ".join(PurePath(entry.root).name for entry in store.manifest().sources),
            "photographs": photographs_digest(table),
            "data": _data_digest(store, table),
            "embeddings": {each.backbone: table_digest(store, each) for each in tables},
        },
        "stamps": stamps(out, slugs),
        "settings": _settings(run),
        **({"study": _stated(run, run.study, limit)} if run.study else {}),
        "throughput": _throughput(run, entries, table, sum(spent.values()), wall_seconds),
        "environment": {
            "python": platform.python_version(),
            **{library: found for library, found in versions(*_LIBRARIES).items() if found},
            "system": f"{platform.system()} {platform.machine()}",
            "cpu": cpu.model(),
            "threads": threads,
        },
        "backbones": {
            entry.name: _backbone(entry)
            | _results(run, entry.name)
            | ({"label": labels[entry.name]} if entry.name in labels else {})
            | {"cost": {"store_bytes": store.stored_bytes(entry, names)} | hours[entry.name]}
            for entry in entries
        },
    }
    if (checked := _valid(document)) is None:
        return document
    for stage in registry.stages():
        document |= _own(stage.name, stage.of_document(run, checked))
    if (checked := _valid(document)) is None:
        return document
    for part in parts():
        document |= _own(part.name, {part.name: part.entry(checked)})
    return document


def _stated(run: Run, study: Study, limit: int) -> dict[str, Any]:
    """Limit, and shares of the splits; those of imports are not known."""
    shares = any(entry.fractions for entry in run.store.manifest().sources)
    return {"limit": limit} | ({"splits": asdict(study.splits)} if shares else {})


def _data_digest(store: EmbeddingStore, table: EmbeddingTable) -> str | None:
    """Digest of photographs and of the files that show their real variants; None if the bytes of some are unknown."""
    known, files = store.catalog.transformations[store.backbone(table.backbone).slug], file_contents(store)
    real = [name for name in table.transformations if known[name].definition.get("made_by") == PHOTOGRAPHS]
    shown = {name: [files[name].get(key, "") for key in table.keys] for name in real}
    if not all(table.contents) or not all(map(any, shown.values())):
        return None
    return checksum({"photographs": photographs_digest(table), "files": shown}) if shown else photographs_digest(table)


def _valid(document: dict[str, Any]) -> ResultsDocument | None:
    """The typed document; None: no verdicts on invalid numbers, which the report rejects with an error."""
    try:
        return validate_results(document)
    except SubstyleError:
        return None


def _own(stage: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of a stage; a plug-in may have entries of its own name alone, and so replaces no other numbers."""
    if stage in registry.registered() and (others := sorted(found.keys() - {stage})):
        raise SubstyleError(f"stage {stage}: got entries {', '.join(others)} of results.json; allowed: {stage}")
    return dict(found)


def _results(run: Run, backbone: str) -> dict[str, Any]:
    """Results of all stages about a backbone."""
    found: dict[str, Any] = {}
    for stage in registry.stages():
        if (result := run.results.get(stage.name, {}).get(backbone)) is not None:
            found |= _own(stage.name, stage.of_backbone(result))
    return found


def _settings(run: Run) -> dict[str, dict[str, Any]]:
    """Settings of the stages by name; by backbone if results of backbones have different ones."""
    found = {}
    units = [*(Unit(name, run.store.backbone(name).slug) for name in run.tables), Unit()]
    for stage in registry.stages():
        notes = {unit.name: note_of(folder_of(stage, run, unit)) for unit in units if run.results.get(stage.name)}
        each = {name: stage.stated(note.stamp.settings) for name, note in notes.items() if note is not None}
        if each:
            first, *others = each.values()
            found[stage.name] = each if any(other != first for other in others) else first
    return found


def _backbone(entry: BackboneEntry) -> dict[str, Any]:
    facts = entry.facts
    objective, data = stated(entry.name)  # for stores created before specs contained them
    return {
        "dim": entry.dim,
        "control": facts["spec"]["control"],
        "spec": {"objective": objective, "data": data, **facts["spec"]},
        "runtime": facts["runtime"],
        "gate": facts["gate"],
        **({"adapter": facts["adapter"]} if "adapter" in facts else {}),
    }


def _seconds(store: EmbeddingStore, entry: BackboneEntry, names: Sequence[str]) -> float:
    """Wall time of a backbone's finished shards, prorated to the given transformations."""
    finished = store.finished().of([entry.slug])
    return float((finished.seconds_R * finished.shares(names)).sum())


def _chance(table: EmbeddingTable) -> dict[str, float]:
    """Chance of each task; none without training or test images."""
    found = {}
    for make in (transformation_task, kind_task, class_task):
        with suppress(SubstyleError):
            if task := make(table, 0):
                found[task.name] = task.chance
    return found


def _throughput(
    run: Run, entries: list[BackboneEntry], table: EmbeddingTable, embed_seconds: float, wall_seconds: float | None
) -> dict[str, Any]:
    variants = len(table.keys) * len(table.transformations)
    # imported embeddings have no rate
    rates = {entry.name: entry.facts["rate"] for entry in entries if entry.facts.get("rate")}
    by_stage = {stage: seconds(folders) for stage, folders in run.folders.items()}
    spent = {
        "probe_seconds": round(by_stage.get("probes", 0.0), 2),
        "analysis_seconds": round(by_stage.get("analysis", 0.0), 2),
    }
    if not embed_seconds:
        return spent
    return {
        "variants_per_s": variants / embed_seconds,
        "embeddings_per_s": variants * len(rates) / embed_seconds,
        "photographs_per_s": len(table.keys) / embed_seconds,
        "backbone_only_per_s": rates,
        "embed_seconds": round(embed_seconds, 2),
        **spent,
        "total_seconds": round(embed_seconds + sum(by_stage.values()), 2),
        **({"wall_seconds": round(wall_seconds, 2)} if wall_seconds else {}),
    }

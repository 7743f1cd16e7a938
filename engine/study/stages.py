"""Stages after embedding: probes, analysis and results. Complete stages are skipped."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle import __version__
from substyle.engine.analysis.robustness import Replicates, robustness
from substyle.engine.analysis.run import analyze
from substyle.engine.backbones.families.adapter import PREFIX as ADAPTED
from substyle.engine.backbones.presets import stated
from substyle.engine.cache import cpu_model, versions
from substyle.engine.config import AnalysisConfig
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.outcomes import ProbeOutcome, compare_outcomes
from substyle.engine.probes.run import run_probes
from substyle.engine.probes.tasks import coarse_task, fine_task, semantic_task
from substyle.engine.report.claims import claims
from substyle.engine.results.model import SCHEMA, Robustness
from substyle.engine.results.read import validate_results
from substyle.engine.store.files import read_object, write_durably
from substyle.engine.store.layout import SPLITS, BackboneEntry, network_identity
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import I64, EmbeddingTable, open_tables, store_facts
from substyle.engine.study.outputs import (
    StaleError,
    Stamp,
    cached,
    note_of,
    photographs_digest,
    require_fresh,
    seconds,
    stamps,
    table_digest,
)
from substyle.kernels.errors import ConfigError, SubstyleError
from substyle.pipelines.transforms.registry import suite_name

PROBES, ANALYSIS = "probes", "analysis"
_ANALYSIS = "analysis.json"


def tables(
    store: EmbeddingStore, backbones: Sequence[str] = (), transformations: Sequence[str] = ()
) -> list[EmbeddingTable]:
    """Open tables of backbones (default: all) over common photographs and transformations.

    Photographs with missing embeddings are left out; their number is printed.
    """
    names = backbones or [entry.name for entry in store.backbones()]
    found = open_tables(store, names, transformations)
    left_out = len(store.manifest().keys) - len(store_facts(store).quarantined) - len(found[0].keys)
    if left_out:
        print(
            f"{store.path}: ignoring {left_out} photographs that are not embedded in all "
            f"{len(found[0].transformations)} transformations by {', '.join(names)}; run substyle embed",
            file=sys.stderr,
        )
    return found


def stage_settings(config: ProbeConfig | AnalysisConfig) -> dict[str, Any]:
    """Settings in the stamp of a stage, without the GPU index."""
    return asdict(config) | {"device": config.device.partition(":")[0]}


def probe(
    store: EmbeddingStore, out: Path, config: ProbeConfig, tables: Sequence[EmbeddingTable], *, quiet: bool = False
) -> dict[str, ProbeOutcome]:
    """Train and score the probes of backbones; writes ``out/probes/<backbone>/``.

    Controls have no multi-task probe: it takes longest and says nothing about an untrained embedding. Adapted and
    fine-tuned backbones have none either, and hold out no transformation in turn: they were trained on all of these.

    Raises:
        ConfigError: a backbone was fine-tuned on transformations that are held out.
    """
    outcomes = {}
    for table in tables:
        entry = store.backbone(table.backbone)
        folder = out / PROBES / entry.slug
        trained = entry.facts["spec"].get("finetuned", {}).get("transformations", [])
        held_out = {name for name, role in zip(table.transformations, table.roles, strict=True) if role == "held_out"}
        if seen := sorted(held_out.intersection(trained)):
            given = f"{entry.name}, trained on {', '.join(seen)}"
            raise ConfigError("backbone", given, "a backbone that was not trained on held-out transformations")
        adapted = entry.name.startswith(ADAPTED) or "finetuned" in entry.facts["spec"]
        own = replace(config, rotate=False, redraws=0) if adapted else config
        metadata = {
            "canvas": store.settings.canvas,
            "seed": store.settings.seed,
            "orientation": store.settings.orientation,
            "network": network_identity(entry.facts["spec"]),
            "checkpoint": entry.facts.get("checkpoint"),
        }
        multitask = not adapted and not entry.facts["spec"]["control"]
        how = {"quiet": quiet, "metadata": metadata, "multitask": multitask}

        def compute(
            new: Path, table: EmbeddingTable = table, own: ProbeConfig = own, how: dict[str, Any] = how
        ) -> None:
            run_probes(table, own, out_dir=new, **how).save(new)

        cached(folder, partial(Stamp.of, store, table, stage_settings(config)), compute)
        outcomes[entry.name] = ProbeOutcome.load(folder)
    return outcomes


def analysis(
    store: EmbeddingStore, out: Path, config: AnalysisConfig, tables: Sequence[EmbeddingTable], *, quiet: bool = False
) -> dict[str, dict[str, Any]]:
    """Analyze neighbours, geometry and clusters of backbones; writes ``out/analysis/<backbone>/analysis.json``."""
    results = {}
    for table in tables:
        entry = store.backbone(table.backbone)
        folder = out / ANALYSIS / entry.slug

        def compute(new: Path, table: EmbeddingTable = table) -> None:
            answer = analyze(table, config, quiet=quiet)
            write_durably(new / _ANALYSIS, json.dumps(answer, allow_nan=False).encode())

        cached(folder, partial(Stamp.of, store, table, stage_settings(config)), compute)
        results[entry.name] = read_object(folder / _ANALYSIS)
    return results


class NewPhotographs:
    """Photographs of other tables that probes were not trained on; most backbones of a store have the same ones."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], NDArray[np.bool_]] = {}

    def of(self, table: EmbeddingTable, trained: EmbeddingTable, what: str, images: I64) -> NDArray[np.bool_]:
        """`EmbeddingTable.new_to`, (N,); says once how many of the scored ``images`` are left out."""
        same = what, table.keys, trained.keys
        if same not in self._known:
            self._known[same] = table.new_to(trained)
            if count := np.count_nonzero(~self._known[same][images]):
                print(f"{what}: {count:,} not scored: near-duplicates of training photographs", file=sys.stderr)
        return self._known[same]


@dataclass(frozen=True)
class Kept:
    """Results of stages by backbone, and the tables that they were computed from."""

    outcomes: dict[str, ProbeOutcome]
    analyses: dict[str, dict[str, Any]]
    tables: list[EmbeddingTable]


def kept(
    store: EmbeddingStore,
    out: Path,
    transformations: Sequence[str] = (),
    configs: Mapping[str, ProbeConfig | AnalysisConfig] | None = None,
) -> Kept:
    """Load the results of probe and analyze from a folder.

    Args:
        transformations: required transformations; default: those of the first result.
        configs: required settings by stage; None accepts any that are the same for all backbones.

    Raises:
        StaleError: results are outdated (photographs, embeddings, definitions or code) or inconsistent.
    """
    found = [
        (stage, entry.name, folder, note)
        for entry in store.backbones()
        for stage in (PROBES, ANALYSIS)
        for folder in (out / stage / entry.slug,)
        if (note := note_of(folder)) is not None
    ]
    if not found:
        return Kept({}, {}, [])
    wanted = {stage: stage_settings(config) for stage, config in (configs or {}).items()}
    for stage, _, _, note in found:
        wanted.setdefault(stage, note.stamp.settings)
    names = tuple(transformations) or tuple(found[0][3].stamp.transformations)
    together = list(dict.fromkeys(name for _, name, _, _ in found))
    command = {PROBES: "substyle probe", ANALYSIS: "substyle analyze"}
    for name in together:
        if absent := set(names) - set(store.transformation_names(store.backbone(name))):
            raise StaleError(f"{found[0][2]}: outdated transformations; {name} has no {', '.join(sorted(absent))}")
    of = {table.backbone: table for table in tables(store, together, names)}
    outcomes, analyses = {}, {}
    for stage, name, folder, note in found:
        now = Stamp.of(store, of[name], wanted[stage])
        require_fresh(folder, note, now, f"{command[stage]} {store.path}")
        if stage == PROBES:
            outcomes[name] = ProbeOutcome.load(folder)
        else:
            analyses[name] = read_object(folder / _ANALYSIS)
    return Kept(outcomes, analyses, list(of.values()))


_LIBRARIES = ("torch", "openvino", "nvidia-dali-cuda130", "timm", "open_clip_torch", "faiss-cpu", "zarr")


def assemble(
    name: str,
    store: EmbeddingStore,
    out: Path,
    outcomes: Mapping[str, ProbeOutcome],
    analyses: Mapping[str, Mapping[str, Any]],
    parts: Mapping[str, Mapping[str, Any]],
    *,
    tables: Sequence[EmbeddingTable],
    threads: int,
    similarity: Mapping[str, Any] | None = None,
    shifted: Mapping[str, Replicates] | None = None,
) -> dict[str, Any]:
    """Assemble results.json.

    Args:
        outcomes, analyses: results of probes and analysis by backbone; missing ones are omitted.
        parts: other entries of backbones (``shift``, ``domains``, ``attack``, ``label``), each by backbone.
        tables: tables of the reported backbones over common photographs and transformations.
        threads: CPU threads of the run.
        similarity: result of the comparison of embeddings.
        shifted: sensitivity and loss under shifts, by backbone.
    """
    entries = [store.backbone(table.backbone) for table in tables]
    table, names = tables[0], tables[0].transformations
    facts = store_facts(store)
    known = store.catalog.transformations[entries[0].slug]
    spent = {entry.name: _seconds(store, entry, names) for entry in entries}
    # the time of a pass is divided equally among its backbones; imported embeddings have none
    hours = {name: {"device_hours": seconds / 3600} if seconds else {} for name, seconds in spent.items()}
    document = {
        "schema": SCHEMA,
        "version": __version__,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "name": name,
        "seed": store.settings.seed,
        "canvas": store.settings.canvas,
        "suite": suite_name([known[each].definition for each in names]),
        "images": len(table.keys),
        "variants": len(table.keys) * len(table.transformations),
        "splits": {split: len(table.rows(code)) for code, split in enumerate(SPLITS)},
        "classes": list(table.class_names),
        "transformations": [known[each].definition for each in names],
        "chance": _chance(table),
        "quarantined": [{"key": key, "reason": reason} for key, reason in facts.quarantined.items()],
        "indistinct": {each: count for each, count in facts.indistinct.items() if each in names},
        "duplicates": facts.copies,
        "duplicates_moved": len(facts.moved),
        "identity": {
            "store": store.uuid,
            # names without paths, since reports may be shared
            "sources": ", ".join(PurePath(entry.root).name for entry in store.manifest().sources),
            "photographs": photographs_digest(table),
            "embeddings": {each.backbone: table_digest(store, each) for each in tables},
        },
        "stamps": stamps(out, [entry.slug for entry in entries]),
        "settings": _settings(out, [entry.slug for entry in entries]),
        "throughput": _throughput(entries, table, sum(spent.values()), out),
        "environment": {
            "python": platform.python_version(),
            **{library: found for library, found in versions(*_LIBRARIES).items() if found},
            "system": f"{platform.system()} {platform.machine()}",
            "cpu": cpu_model(),
            "threads": threads,
        },
        "backbones": {
            entry.name: _backbone(entry, outcomes.get(entry.name), analyses.get(entry.name, {}))
            | {key: part[entry.name] for key, part in parts.items() if part.get(entry.name)}
            | {"cost": {"store_bytes": store.stored_bytes(entry, names)} | hours[entry.name]}
            for entry in entries
        },
        "comparisons": compare_outcomes(outcomes),
        **({"similarity": dict(similarity)} if similarity else {}),
    }
    if outcome := next(iter(outcomes.values()), None):
        groups = outcome.keys if outcome.group_N is None else set(outcome.group_N)
        document["resampled"] = {"by": outcome.resample_by, "groups": len(groups)}
    try:
        checked = validate_results(document)
    except SubstyleError:  # no verdicts on invalid numbers; the report rejects them with an error
        return document
    own = shifted or {}
    if rows := robustness({name: own[name] for name in checked.networks() if name in own}):
        document["robustness"] = rows
        checked.robustness = [Robustness.model_validate(row) for row in rows]
    return document | {"claims": [claim.model_dump() for claim in claims(checked)]}


def _settings(out: Path, slugs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Settings of probes and analysis, which are the same for all backbones."""
    found = {}
    for stage in (PROBES, ANALYSIS):
        note = next((note for slug in slugs if (note := note_of(out / stage / slug)) is not None), None)
        if note is not None:
            found[stage] = note.stamp.settings
    return found


def _backbone(entry: BackboneEntry, outcome: ProbeOutcome | None, analysis: Mapping[str, Any]) -> dict[str, Any]:
    facts = entry.facts
    objective, data = stated(entry.name)  # for stores created before specs contained them
    return {
        "dim": entry.shape[-1],
        **({"tokens": entry.tokens} if entry.tokens else {}),
        "control": facts["spec"]["control"],
        "spec": {"objective": objective, "data": data, **facts["spec"]},
        "runtime": facts["runtime"],
        "gate": facts["gate"],
        **({"adapter": facts["adapter"]} if "adapter" in facts else {}),
        **(outcome.results if outcome else {}),
        **analysis,
    }


def _seconds(store: EmbeddingStore, entry: BackboneEntry, names: Sequence[str]) -> float:
    """Wall time of a backbone's finished shards, prorated to the given transformations."""
    finished = store.finished().of([entry.slug])
    wanted = set(names)
    share = np.array([len(wanted & set(made)) / max(len(made), 1) for made in finished.made], np.float64)
    return float((finished.seconds_R * share[finished.made_R]).sum()) if len(share) else 0.0


def _chance(table: EmbeddingTable) -> dict[str, float]:
    """Chance of each task; none without training or test images."""
    found = {}
    for make in (fine_task, coarse_task, semantic_task):
        with suppress(SubstyleError):
            if task := make(table, 0):
                found[task.name] = task.chance
    return found


def _throughput(entries: list[BackboneEntry], table: EmbeddingTable, embed_seconds: float, out: Path) -> dict[str, Any]:
    variants = len(table.keys) * len(table.transformations)
    # imported embeddings have no rate
    rates = {entry.name: entry.facts["rate"] for entry in entries if entry.facts.get("rate")}
    spent = {
        f"{what}_seconds": round(seconds(out / folder / entry.slug for entry in entries), 2)
        for what, folder in (("probe", PROBES), ("analysis", ANALYSIS))
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
        "total_seconds": round(embed_seconds + sum(spent.values()), 2),
    }

"""Distribution shift: class probes on other photographs, or on corrupted ones, and its relation to sensitivity."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.analysis import geometry
from substyle.engine.analysis.robustness import Replicates
from substyle.engine.backbones.compile import CompiledBackbone
from substyle.engine.config import AnalysisConfig, EmbedConfig, Settings, Study
from substyle.engine.embedding.plan import EmbedPlan
from substyle.engine.embedding.prepare import PixelPipeline
from substyle.engine.embedding.run import embed_compiled
from substyle.engine.probes.checkpoint import Probe
from substyle.engine.probes.evaluate import Estimate, resample
from substyle.engine.store import catalog
from substyle.engine.store.files import read_object, write_durably, writing
from substyle.engine.store.layout import HEADER, TEST, DifferentError, slug
from substyle.engine.store.manifest import Fractions
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, open_table
from substyle.engine.store.tokens import averaged
from substyle.engine.study.outputs import Stamp, cached, file_digest, is_result, note_of, require_fresh
from substyle.engine.study.stages import PROBES, NewPhotographs
from substyle.engine.study.train import derive
from substyle.kernels import files
from substyle.kernels.errors import ConfigError
from substyle.kernels.files import remove
from substyle.pipelines.sources import ImageRecord, Source, SourceConfig, absolute_root, describe, kind_of, open_source
from substyle.pipelines.sources.base import Understood
from substyle.pipelines.sources.labels import numbered
from substyle.pipelines.storage import place
from substyle.pipelines.transforms.registry import suite

HEAD = "linear"
SHIFT = "shift"
REPLICATES = "replicates.npz"
_FILE = "shift.json"
BOOTSTRAP = 2000
OWN = ""  # in place of a folder: the study's test photographs in the suite that names the shift


def shifts_of(study: Study) -> dict[str, Path | str]:
    """Photographs by name of the shift: those of `[shift]`, and `OWN` for the suite of ``corruptions``."""
    return {**study.shift, **({study.corruptions: OWN} if study.corruptions else {})}


def shift(
    folders: Mapping[str, Path | str],
    compiled: Sequence[CompiledBackbone],
    out: Path,
    settings: Settings,
    config: EmbedConfig,
    *,
    study: EmbeddingStore,
    tables: Mapping[str, EmbeddingTable],
    own: Source,
    analysis: AnalysisConfig,
    adapted: Sequence[str] = (),
    source: SourceConfig | None = None,
    quiet: bool = False,
) -> dict[str, dict[str, Any]]:
    """Score each backbone's linear class probe on other photographs of the same classes (distribution shift).

    Besides the scores it keeps the bootstrap replicates of :func:`kept_replicates`.

    Args:
        folders: photographs with classes, by name, see `shifts_of`; classes unknown to the probe are ignored.
        out: output folder with the trained probes; embeddings are written to ``out/shift/<name>.zarr``, replacing a
            store of other photographs.
        tables: tables that the probes were trained on, by backbone.
        analysis: sample and bootstrap unit of the sensitivity.
        adapted: adapted backbones, whose embeddings are derived from those of ``compiled``.
        source: source configuration of the study; its applicable fields are used for these photographs.

    Returns:
        ``{"accuracy", "ci95", "images"}`` by backbone and name; of several transformations their mean accuracy.

    Raises:
        ConfigError: a folder has none of the probe's classes.
    """
    first = next(iter(tables.values()))
    test = {first.keys[n] for n in first.rows(TEST).tolist()}
    stores = {}
    for name, folder in folders.items():
        names: tuple[str, ...] = ("identity",)
        given: Path | str | Source = folder
        if folder == OWN:
            names = suite(name)
            records = [record for record in own.records if record.key in test]
            given = _Part(own.root, own.class_names, records, own.options, own.understood)
        plain = replace(settings, transformations=names)
        path = shift_path(out, name)
        stores[name] = embedded(f"shift {name}", given, path, compiled, plain, config, source=source, quiet=quiet)
    for store in stores.values():
        for name in adapted:
            derive(store, name, quiet=quiet)
    answer: dict[str, dict[str, Any]] = {}
    photographs = NewPhotographs()
    for backbone in [*(name for each in compiled for name in each.names), *adapted]:
        answer[backbone] = {}
        if not is_result(_probe(out, backbone)):
            continue
        table, folder = tables[backbone], out / SHIFT / slug(backbone)

        def compute(new: Path, table: EmbeddingTable = table) -> None:
            scores, kept = _scores(table, _probe(out, table.backbone), stores, folders, photographs, analysis)
            content = io.BytesIO()
            np.savez(content, allow_pickle=False, **{key: each.array() for key, each in kept.items()})
            write_durably(new / _FILE, json.dumps(scores, allow_nan=False).encode())
            write_durably(new / REPLICATES, content.getvalue())

        cached(folder, partial(_stamp, study, table, out, stores, folders, _settings(analysis)), compute)
        answer[backbone] = read_object(folder / _FILE)
    return answer


def _scores(
    table: EmbeddingTable,
    probe_path: Path,
    stores: Mapping[str, EmbeddingStore],
    folders: Mapping[str, Path | str],
    photographs: NewPhotographs,
    analysis: AnalysisConfig,
) -> tuple[dict[str, Any], dict[str, Estimate]]:
    """Scores of a backbone's probe on shifted photographs by name, and replicates of sensitivity and loss."""
    scores: dict[str, Any] = {}
    probe, kept = Probe.load(probe_path), {"sensitivity": _sensitivity(table, analysis)}
    for number, (name, store) in enumerate(stores.items(), 1):
        shifted = open_table(store, table.backbone)
        own_photographs = folders[name] == OWN
        new_N = photographs.of(shifted, table, f"shift {name}", np.arange(len(shifted.keys)))
        made = range(min(1, len(shifted.transformations) - 1), len(shifted.transformations))
        rows, draw = np.flatnonzero(new_N), 0 if own_photographs else number
        reached = _accuracy(shifted, probe, rows, made, analysis, draw, own=own_photographs)
        if reached is None:
            found = ", ".join(shifted.class_names) or "no classes"
            allowed = f"photographs of some of {', '.join(probe.labels['class'])}"
            if not new_N.all():
                allowed += f"; {np.count_nonzero(~new_N):,} are near-duplicates of training photographs"
            if any(map(numbered, shifted.class_names)):
                allowed += " (numbers are not names: class 0 of one data set is not class 0 of another)"
            raise ConfigError(f"shift.{name}", found, allowed)
        scores[name] = reached[0].entries("accuracy") | {"images": reached[1]}
        clean = _accuracy(table, probe, _tested(table, shifted if own_photographs else None), [0], analysis)
        if clean is not None:
            kept[f"loss/{name}"] = clean[0] - reached[0]
    return scores, kept


def kept_shift(
    study: EmbeddingStore,
    out: Path,
    tables: Mapping[str, EmbeddingTable],
    folders: Mapping[str, Path | str] | None = None,
    analysis: AnalysisConfig | None = None,
) -> dict[str, dict[str, Any]]:
    """Load the results of `shift`, by backbone.

    Args:
        folders: the `[shift]` table of the study; default: the folders that were scored.
        analysis: settings of the study; default: those of the results.

    Raises:
        StaleError: the results are outdated.
    """
    found: dict[str, dict[str, Any]] = {}
    if folders is not None and not folders:
        return found
    for name, table in tables.items():
        folder = out / SHIFT / slug(name)
        note = note_of(folder)
        if note is None:
            continue
        before = note.stamp.settings
        paths = {each: shift_path(out, each) for each in before.get("shifted", {})}
        stores = {each: EmbeddingStore.open(path) for each, path in paths.items() if catalog.exists(path)}
        settings = before.get("analysis", {}) if analysis is None else _settings(analysis)
        now = _stamp(study, table, out, stores, before.get("folders", {}) if folders is None else folders, settings)
        require_fresh(folder, note, now)
        found[name] = read_object(folder / _FILE)
    return found


def kept_replicates(out: Path, shifts: Mapping[str, Mapping[str, Any]]) -> dict[str, Replicates]:
    """Sensitivity, and loss of class accuracy by shift, of backbones with results of `shift` and labelled test images.

    Args:
        shifts: results of `shift` or `kept_shift`.
    """
    found = {}
    for name in filter(shifts.get, shifts):
        with np.load(out / SHIFT / slug(name) / REPLICATES) as kept:
            each = {key: Estimate.of(array) for key, array in kept.items()}
        moved = each.pop("sensitivity")
        if each and moved.number is not None:
            found[name] = Replicates(moved, {key.partition("/")[2]: lost for key, lost in each.items()})
    return found


@dataclass(frozen=True)
class _Part:
    """Some of the images of a source."""

    root: str
    class_names: tuple[str, ...]
    records: Sequence[ImageRecord]
    options: Mapping[str, str]
    understood: Understood


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
    return EmbedPlan(
        photographs, place(path), PixelPipeline(settings, config), limit, fractions, title=title, only=True
    )


def embedded(
    title: str,
    folder: Path | str | Source,
    path: Path,
    compiled: Sequence[CompiledBackbone],
    settings: Settings,
    config: EmbedConfig,
    *,
    source: SourceConfig | None,
    quiet: bool,
    limit: int = 0,
    fractions: Fractions | None = None,
) -> EmbeddingStore:
    """Embed other photographs in a store of their own, replacing a store of other ones."""
    plan = plan_elsewhere(title, folder, path, settings, config, source=source, limit=limit, fractions=fractions)
    print(f"{title}: {describe(plan.source)}", file=sys.stderr)
    files.inside(path.parent, path.name)
    if not catalog.exists(path):
        with writing(path):
            remove(path)  # remainder of an interrupted deletion
    try:
        embed_compiled(plan, compiled, quiet=quiet)
    except DifferentError as error:
        # the folder, its bytes or a backbone have changed
        print(f"{title}: {error}; re-embedding", file=sys.stderr)
        with writing(path):
            files.remove(path / HEADER, root=path.parent)  # first: without it a partly deleted store is not opened
            remove(path)
        embed_compiled(plan, compiled, quiet=quiet)
    return EmbeddingStore.open(path)


def shift_path(out: Path, name: str) -> Path:
    """Path of the store of a shift."""
    return out / SHIFT / f"{slug(name)}.zarr"


def _probe(out: Path, backbone: str) -> Path:
    return out / PROBES / slug(backbone) / f"semantic-{HEAD}.safetensors"


def _stamp(
    study: EmbeddingStore,
    table: EmbeddingTable,
    out: Path,
    stores: Mapping[str, EmbeddingStore],
    folders: Mapping[str, Path | str],
    analysis: Mapping[str, Any],
) -> Stamp:
    shifted = {
        name: asdict(Stamp.of(store, open_table(store, table.backbone), {}))
        for name, store in stores.items()
        if any(entry.name == table.backbone for entry in store.backbones())
    }
    settings = {
        "shifted": shifted,
        "analysis": analysis,
        "probe": file_digest(_probe(out, table.backbone)),
        "folders": {name: folder and absolute_root(str(folder)) for name, folder in folders.items()},
    }
    return Stamp.of(study, table, settings)


def _settings(config: AnalysisConfig) -> dict[str, Any]:
    """The settings that change replicates."""
    return {"max_images": config.max_images, "resample_by": config.resample_by, "seed": config.seed}


def _tested(table: EmbeddingTable, corrupted: EmbeddingTable | None) -> NDArray[np.int64]:
    """Indices of test photographs, of corrupted ones only if given: those of a store's further sources are not."""
    rows = table.rows(TEST)
    return rows if corrupted is None else rows[np.isin(np.array(table.keys)[rows], corrupted.keys)]


def _accuracy(
    table: EmbeddingTable,
    probe: Probe,
    rows: NDArray[np.int64],
    made: Sequence[int],
    config: AnalysisConfig,
    draw: int = 0,
    *,
    own: bool = True,
) -> tuple[Estimate, int] | None:
    """Mean accuracy on some transformations, and the number of images; None without images of known classes.

    Images are in the order of their keys, so that scores of the same images are paired.

    Args:
        draw: selects other resamples for other images.
        own: whether the probe was trained on photographs of this source. Others have the same classes by name, not by
            number.
    """
    place = {text: index for index, text in enumerate(probe.labels["class"]) if own or not numbered(text)}
    known = {label: place[text] for label, text in enumerate(table.class_names) if text in place}
    named = [n for n in rows.tolist() if table.label_N[n] in known]
    if not named:
        return None
    rows = np.array(sorted(named, key=table.keys.__getitem__), np.int64)
    truth_N = np.array([known[label] for label in table.label_N[rows].tolist()])
    right_TN = np.stack([probe.predict(table.take(t, rows)).argmax(axis=1) == truth_N for t in made])
    return _mean(right_TN, table, rows, config, draw), len(rows)


def _sensitivity(table: EmbeddingTable, config: AnalysisConfig) -> Estimate:
    """Mean over transformations of the sensitivity, as in the analysis; images in the order of their keys."""
    table = averaged(table)
    drawn = geometry.draw_images(table, table.rows(TEST), config.max_images, config.seed).tolist()
    rows = np.array(sorted(drawn, key=table.keys.__getitem__), np.int64)
    identity_ND = table.take_finite(0, rows)
    mean_D = identity_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
    moved_TN = [
        np.where(
            table.distinct_TN[t, rows],
            geometry.sensitivity(identity_ND, table.take_finite(t, rows), mean_D),
            np.nan,
        )
        for t in range(1, len(table.transformations))
    ]
    return _mean(np.array(moved_TN).reshape(-1, len(rows)), table, rows, config, proportion=False)


def _mean(
    score_TN: NDArray[Any],
    table: EmbeddingTable,
    rows: NDArray[np.int64],
    config: AnalysisConfig,
    draw: int = 0,
    *,
    proportion: bool = True,
) -> Estimate:
    # numbered as they come in `rows`: tables of the same photographs may have them in another order
    _, first, group_N = np.unique(table.groups(config.resample_by)[rows], return_index=True, return_inverse=True)
    group_N = np.argsort(np.argsort(first))[group_N]
    found = resample(score_TN.astype(np.float64), BOOTSTRAP, config.seed + draw, group_N, proportion=proportion)
    return found.mean(np.ones(len(score_TN)))

"""Adapters and fine-tuning: networks trained on the photographs of a study, and their embeddings."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, replace
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.backbones import registry
from substyle.engine.backbones.families.adapter import PREFIX as ADAPTED
from substyle.engine.backbones.families.adapter import Adapter, path_of
from substyle.engine.backbones.families.finetuned import PREFIX as FINETUNED_PREFIX
from substyle.engine.backbones.families.finetuned import Finetuned
from substyle.engine.backbones.spec import Backbone, tensors_hash
from substyle.engine.config import BackboneChoice, Study
from substyle.engine.embedding.preflight import SplitCounts
from substyle.engine.embedding.prepare import PixelPipeline
from substyle.engine.observability import stage
from substyle.engine.probes.adapters import AdaptConfig, AdaptMethod, fit_multitask, fit_pisco
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.finetune import FinetuneConfig, LabelledVariants, Objective, fit
from substyle.engine.probes.tasks import UNKNOWN
from substyle.engine.stages.probes import STAGE as PROBES
from substyle.engine.stages.registry import discard
from substyle.engine.stages.stamp import Stamp, cached, photographs_digest
from substyle.engine.stages.tables import tables
from substyle.engine.store import lock
from substyle.engine.store.identity import read_unchanged
from substyle.engine.store.layout import TRAIN, BackboneEntry
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable
from substyle.kernels.errors import ConfigError
from substyle.pipelines.sources import ImageRecord
from substyle.pipelines.transforms import base

ADAPTERS, FINETUNED = "adapters", "finetuned"  # folders of the trained weights
DERIVED = "derived"  # runtime of embeddings computed from those of another backbone


def adapt(
    store: EmbeddingStore,
    out: Path,
    config: AdaptConfig,
    probes: ProbeConfig,
    *,
    backbones: Sequence[str],
    transformations: Sequence[str] = (),
    quiet: bool = False,
) -> list[str]:
    """Train adapters and add the adapted embeddings to the store.

    Writes ``out/adapters/<backbone>-<method>/<digest>.safetensors`` and ``.onnx``. Complete adapters are kept;
    results in ``out`` of earlier ones are deleted.

    Args:
        backbones: backbones to adapt.
        transformations: transformations that the adapters may be trained on; default: all of the store.

    Returns:
        names of the adapted backbones, ``adapt:<file>``.

    Raises:
        ConfigError: a backbone cannot be adapted.
        SubstyleError: the photographs do not support a method.
    """
    found = []
    for name in backbones:
        (table,) = tables(store, [name], transformations)
        entry = store.backbone(name)
        if entry.name.startswith(ADAPTED):
            raise ConfigError("backbone", entry.name, "a backbone that is not adapted yet")
        if entry.facts["spec"].get("tokens"):
            raise ConfigError("backbone", entry.name, "a backbone with one vector per image")
        for method in config.methods:
            path = _adapter(store, table, out, config, probes, method, quiet=quiet)
            found.append(f"{ADAPTED}{os.path.relpath(path)}")
            derive(store, found[-1], quiet=quiet)
    for entry in store.backbones():  # `substyle report` would show those of earlier trainings, or refuse them
        made = entry.facts.get("adapter", {})
        if made.get("backbone") in backbones and made["method"] in config.methods and entry.name not in found:
            discard(out, entry.slug)
    return found


def adaptable(store: EmbeddingStore, names: Sequence[str]) -> list[str]:
    """Return the backbones among ``names`` that are neither controls nor adapted, and have one vector per image."""
    entries = [store.backbone(name) for name in names]
    trained = [e for e in entries if not e.facts["spec"].get("control") and not e.tokens]
    return [e.name for e in trained if not e.name.startswith(ADAPTED)]


def _adapter(
    store: EmbeddingStore,
    table: EmbeddingTable,
    out: Path,
    config: AdaptConfig,
    probes: ProbeConfig,
    method: AdaptMethod,
    *,
    quiet: bool,
) -> Path:
    """Train an adapter unless it is up to date; returns its file."""
    entry = store.backbone(table.backbone)
    folder = out / ADAPTERS / f"{entry.slug}-{method}"
    stamp = partial(Stamp.of, store, table, {"method": method, **asdict(config), **PROBES.settings(probes)})

    def compute(new: Path) -> None:
        with stage(f"adapt {entry.name}", 3 * probes.multitask_steps, "steps", quiet=quiet) as bar:
            bar.note(method)
            if method == "multitask":
                made = fit_multitask(table, probes, bar.advance)
            else:
                made = fit_pisco(table, probes, content=config.content, penalty=config.penalty)
        metadata = {
            "method": method,
            "backbone": entry.name,
            "checkpoint": entry.facts.get("checkpoint"),
            "weights_hash": entry.facts["spec"]["weights_hash"],
            "relu": made.relu,
            "canvas": store.settings.canvas,
            "store": store.uuid,
            "photographs": photographs_digest(table),
            **made.facts,
        }
        adapter = Adapter(made.weight_ED, made.bias_E, metadata)
        adapter.save(new / f"{adapter.digest}.safetensors")

    cached(folder, stamp, compute)
    (path,) = folder.glob("*.safetensors")
    return path


def derive(store: EmbeddingStore, name: str, *, quiet: bool = False) -> BackboneEntry:
    """Compute embeddings of an adapted backbone from those of its backbone in a store.

    Args:
        store: a store with embeddings of the backbone.
        name: ``adapt:<file>``.

    Raises:
        WeightsError: the adapter cannot be read, or was trained on other weights.
        StoreError: the store lacks the backbone or is in use.
        ConfigError: the adapter was trained on transformations that are held out in the store.
        DifferentError: the store has embeddings of this name from another file.
    """
    adapter = Adapter.load(path_of(name))
    base = store.backbone(adapter.backbone)
    spec = {**base.facts["spec"], **adapter.changed(name, base.facts["spec"], base.dim, store.settings.canvas)}
    runtime = {"name": DERIVED, "precision": base.facts["runtime"]["precision"], "computed_with": base.name}
    facts = {"name": name, "dim": spec["dim"], "spec": spec, "runtime": runtime, "gate": None, "rate": None}
    facts["adapter"] = {"backbone": base.name, "method": adapter.metadata["method"]}
    definitions = store.catalog.transformations[base.slug]
    held_out = [name for name, each in definitions.items() if each.definition["role"] == "held_out"]
    if seen := sorted(set(held_out) & set(adapter.metadata.get("transformations", []))):
        allowed = f"an adapter that was not trained on them; they are held out in {store.path}"
        raise ConfigError("adapter", f"{name}, trained on {', '.join(seen)}", allowed)
    with lock.hold(store.path, run := lock.new_run_id()):
        entry = store.ensure_backbone(facts, list(definitions.values()))
        names, rows = sorted(definitions), store.settings.shard_rows
        index = store.finished()
        ready_ST = index.finished(base.slug, names, store.shards()) & ~index.finished(entry.slug, names, store.shards())
        pending = np.flatnonzero(ready_ST.any(axis=1)).tolist()
        total = store.manifest().rows
        with stage(f"derive {name}", len(pending), "shards", quiet=quiet) as bar:
            for shard in pending:
                began = time.perf_counter()
                start, stop = shard * rows, min((shard + 1) * rows, total)
                arrays = {
                    names[t]: adapter(store.read(base, names[t], start, stop))
                    for t in np.flatnonzero(ready_ST[shard]).tolist()
                }
                store.write_shard(entry, shard, arrays, (), seconds=time.perf_counter() - began, run=run)
                bar.advance(1)
    return entry


_LISTS = ("backbones", "objectives", "seeds", "seed")  # settings that say which trainings there are


def finetune(
    store: EmbeddingStore,
    out: Path,
    config: FinetuneConfig,
    pipeline: PixelPipeline,
    records: Mapping[str, ImageRecord],
    *,
    backbones: Sequence[BackboneChoice],
    quiet: bool = False,
) -> list[BackboneChoice]:
    """Fine-tune backbones on the training photographs of a store, in its transformations with role ``train``.

    Writes ``out/finetuned/<backbone>-<objective>-<seed>/<digest>.safetensors``. Complete trainings are kept; results in
    ``out`` of earlier trainings of these backbones are deleted.

    Args:
        pipeline: tools of the study; its transformations are those of the store.
        records: the photographs by key.
        backbones: backbones of the study, among them those to fine-tune.

    Returns:
        the fine-tuned backbones, ``finetuned:<file>``, to embed.

    Raises:
        ConfigError: a backbone cannot be fine-tuned.
    """
    found = []
    for choice in backbones:
        if choice.name not in config.backbones:
            continue
        (table,) = tables(store, [choice.name], pipeline.settings.transformations)
        for seed in range(config.seed, config.seed + config.seeds):
            for objective in config.objectives:
                path = _trained(store, table, out, config, pipeline, records, choice, objective, seed, quiet=quiet)
                found.append(replace(choice, name=f"{FINETUNED_PREFIX}{os.path.relpath(path)}", label=None))
    _discard_others(store, out, config, {choice.name for choice in (*backbones, *found)})
    return found


def _discard_others(store: EmbeddingStore, out: Path, config: FinetuneConfig, names: Set[str]) -> None:
    """Delete results of earlier trainings, which `substyle report` would show beside those of ``names``."""
    for entry in store.backbones():
        if entry.facts["spec"].get("finetuned", {}).get("backbone") in config.backbones and entry.name not in names:
            discard(out, entry.slug)


def _trained(
    store: EmbeddingStore,
    table: EmbeddingTable,
    out: Path,
    config: FinetuneConfig,
    pipeline: PixelPipeline,
    records: Mapping[str, ImageRecord],
    choice: BackboneChoice,
    objective: Objective,
    seed: int,
    *,
    quiet: bool,
) -> Path:
    """Fine-tune a backbone unless the result is up to date; returns its file."""
    folder = out / FINETUNED / f"{store.backbone(choice.name).slug}-{objective}-{seed}"
    budget = {name: value for name, value in asdict(config).items() if name not in _LISTS}
    # photographs are shuffled in groups of a batch of `embed`
    settings = {**budget, "objective": objective, "seed": seed, "group": pipeline.config.images}

    def compute(new: Path) -> None:
        base = load_trainable(choice, pipeline)
        names = tuple(name for name, role in zip(table.transformations, table.roles, strict=True) if role == "train")
        families = [name.partition("@")[0] for name in names]
        labels = list(dict.fromkeys(families))
        train_N = table.rows(TRAIN)
        batches = labelled_variants(
            pipeline,
            [records[table.keys[n]] for n in train_N],
            [table.contents[n] for n in train_N],
            np.array([labels.index(name) for name in families], np.int64),
            np.where(table.label_N[train_N] >= 0, table.label_N[train_N], UNKNOWN),
            transformations=names,
            batch=config.batch,
            seed=seed,
        )
        assert base.module is not None  # checked by `load_trainable`
        with stage(f"fine-tune {choice.name}", config.steps, "steps", quiet=quiet) as bar:
            bar.note(f"{objective}, seed {seed}")
            losses = fit(
                *(base.module, batches, config, objective),
                dim=base.spec.dim,
                transformations=len(labels),
                classes=len(table.class_names),
                seed=seed,
                device=pipeline.target.torch_device,
                advance=bar.advance,
            )
        metadata = {
            "backbone": choice.name,
            "weights_hash": base.spec.weights_hash,
            "objective": objective,
            "seed": seed,
            "transformations": list(names),
            "canvas": store.settings.canvas,
            "store": store.uuid,
            "losses": losses,
            "settings": {**budget, "photographs": photographs_digest(table)},
        }
        state = {name: tensor.cpu() for name, tensor in base.module.state_dict().items()}
        Finetuned(state, metadata).save(new / f"{tensors_hash(state)}.safetensors")

    cached(folder, partial(Stamp.of, store, table, settings), compute)
    (path,) = folder.glob("*.safetensors")
    return path


def check_training(study: Study, counts: SplitCounts) -> list[str]:
    """Check that there is something to fine-tune and adapt on; warn of settings without backbones.

    Raises:
        ConfigError: there is nothing.
    """
    transformations = study.settings().transformations
    tuned, methods = study.finetune, study.adapt.methods
    known = len(counts.classes(TRAIN))
    if tuned.backbones and known < 2 and set(tuned.objectives) != {"transformation"}:
        allowed = f"transformation, because the study has {known} training classes"
        raise ConfigError("finetune.objectives", ", ".join(tuned.objectives), allowed)
    if known < 2 and "multitask" in methods:
        raise ConfigError("adapt.methods", ", ".join(methods), f"pisco, because the study has {known} training classes")
    for field, given in (("finetune.backbones", tuned.backbones), ("adapt.methods", methods)):
        if given and sum(base.get(name).role == "train" for name in transformations) < 2:
            allowed = "a suite with a transformation of role train besides identity"
            raise ConfigError(field, ", ".join(given), allowed)
    default = FinetuneConfig()
    idle = {name for name, value in vars(tuned).items() if value != getattr(default, name)} - {"seed"}
    return ["[finetune] does nothing: backbones is empty"] if idle and not tuned.backbones else []


def load_trainable(choice: BackboneChoice, pipeline: PixelPipeline) -> Backbone:
    """Load a network to fine-tune. Raises ConfigError if it cannot be."""
    settings = pipeline.settings
    context = registry.LoadContext(settings.canvas, pipeline.config.graph_images, settings.seed, choice.checkpoint)
    base = registry.load(choice.name, context)
    if base.module is None or not any(True for _ in base.module.parameters()):
        raise ConfigError("finetune.backbones", choice.name, "torch networks")
    if base.spec.tokens or base.spec.finetuned:
        raise ConfigError("finetune.backbones", choice.name, "backbones with one vector per image, not fine-tuned yet")
    return base


def labelled_variants(
    pipeline: PixelPipeline,
    records: Sequence[ImageRecord],
    contents: Sequence[str],
    label_T: NDArray[np.int64],
    class_N: NDArray[np.int64],
    *,
    transformations: Sequence[str],
    batch: int,
    seed: int,
) -> Iterator[LabelledVariants]:
    """Yield batches of variants without end, each epoch in a new order and with newly drawn parameters.

    A group of photographs is decoded at once; all its variants are shuffled and yielded in batches.

    Args:
        records: N photographs; undecodable ones are left out.
        contents: content hash of each, "" if unknown.
        label_T: (T,) labels of the transformations.
        class_N: (N,) labels of the photographs, UNKNOWN for none.
        transformations: T names.
        batch: maximum batch size B.
        seed: seed of orders and parameters.

    Raises:
        PhotographsError: a photograph cannot be read, or has changed since it was embedded.
    """
    size, make = pipeline.config.images, pipeline.maker(transformations)
    for epoch in count():
        rng = np.random.default_rng([seed, epoch])
        order_N = rng.permutation(len(records))
        for first in range(0, len(order_N), size):
            part = order_N[first : first + size]
            decoded = pipeline.decoder([read_unchanged(records[n], contents[n]) for n in part])
            keys = [f"{records[n].key}#{seed}.{epoch}" for n in part]
            made = list(make(decoded.canvas_BSSC, keys))
            # rows are variants of all photographs, transformation by transformation
            pixels_RSSC = torch.cat([variant.pixels_BSSC for variant in made])
            distinct_R = torch.cat([variant.distinct_B for variant in made]).cpu()
            label_R = torch.from_numpy(np.repeat(label_T, len(part))).where(distinct_R, torch.tensor(UNKNOWN))
            class_R = torch.from_numpy(np.tile(class_N[part], len(made)))
            row_R = rng.permutation(np.flatnonzero(np.tile(decoded.ok_B, len(made))))
            for start in range(0, len(row_R), batch):
                rows = torch.from_numpy(row_R[start : start + batch])
                if len(rows) > 1:  # one row has no variance to standardise by
                    yield LabelledVariants(pixels_RSSC[rows.to(pixels_RSSC.device)], label_R[rows], class_R[rows])

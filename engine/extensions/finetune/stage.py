"""Fine-tuning of networks on the training photographs of a study."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.backbones import registry
from substyle.engine.backbones.spec import Backbone, tensors_hash
from substyle.engine.config import BackboneChoice, Study
from substyle.engine.embedding.plan import EmbedPlan
from substyle.engine.embedding.preflight import SplitCounts, require_trained_on
from substyle.engine.embedding.prepare import PixelPipeline
from substyle.engine.extensions.finetune import section
from substyle.engine.extensions.finetune.config import FinetuneConfig
from substyle.engine.extensions.finetune.family import PREFIX, Finetuned
from substyle.engine.extensions.finetune.training import LabelledVariants, fit
from substyle.engine.observability import stage
from substyle.engine.probes.tasks import UNKNOWN
from substyle.engine.stages.execution import config_of, settings_of
from substyle.engine.stages.registry import register_stage
from substyle.engine.stages.stage import JSON, Run, TrainingStage, Unit, table_of
from substyle.engine.stages.stamp import photographs_digest
from substyle.engine.store.identity import read_unchanged
from substyle.engine.store.layout import TRAIN, BackboneEntry
from substyle.engine.store.table import EmbeddingTable
from substyle.errors import ConfigError
from substyle.pipelines.sources import ImageRecord
from substyle.pipelines.transforms.base import real
from substyle.pipelines.transforms.names import family


class FinetuneStage(TrainingStage[FinetuneConfig]):
    """Fine-tune backbones in the transformations with role ``train``, and add them to the study.

    Results are their names, ``finetuned:<file>``. Writes
    ``finetuned/<backbone>-<objective>-<seed>/<digest>.safetensors``.
    """

    name = "finetune"
    config = FinetuneConfig
    switch = "backbones"
    ignored = ("backbones", "objectives", "seeds", "seed")  # they say which trainings there are
    directory = "finetuned"
    prefix = PREFIX
    report = section

    def check(self, study: Study, counts: SplitCounts) -> list[str]:
        """Raise ConfigError for other backbones than those of the study, or if there is nothing to train on."""
        config, known = table_of(self, study), len(counts.classes(TRAIN))
        if not config.backbones:
            return []
        single = {choice.name for choice in study.backbones if choice.names == [choice.name]}
        if unknown := set(config.backbones) - single:
            allowed = "backbones of the study that are not among several layers in one name"
            raise ConfigError("finetune.backbones", ", ".join(sorted(unknown)), allowed)
        if known < 2 and set(config.objectives) != {"transformation"}:
            allowed = f"transformation, because the study has {known} training classes"
            raise ConfigError("finetune.objectives", ", ".join(config.objectives), allowed)
        require_trained_on("finetune.backbones", config.backbones, study, computed=True)
        return []

    def check_networks(self, study: Study, pipeline: PixelPipeline, stored: Collection[str]) -> None:
        """Raise ConfigError if a backbone cannot be fine-tuned."""
        for choice in study.backbones:
            if choice.name in table_of(self, study).backbones and choice.name not in stored:
                load_trainable(choice, pipeline)

    def units(self, run: Run, config: FinetuneConfig) -> Iterable[Unit]:
        """Each seed and objective of each backbone."""
        return [
            Unit(name, f"{run.store.backbone(name).slug}-{objective}-{seed}", (objective, seed))
            for name in _choices(run)
            if name in config.backbones
            for seed in range(config.seed, config.seed + config.seeds)
            for objective in config.objectives
        ]

    def inputs(self, run: Run, config: FinetuneConfig, unit: Unit, before: Mapping[str, Any] | None = None) -> JSON:
        """Objective and seed, and the batch of `embed`: photographs are shuffled in groups of it."""
        objective, seed = unit.variant
        return {"objective": objective, "seed": seed, "group": _plan(run).pipeline.config.images}

    def compute(self, run: Run, config: FinetuneConfig, unit: Unit, folder: Path) -> None:
        """Fine-tune a backbone."""
        (objective, seed), table = unit.variant, run.tables[unit.name]
        plan = _plan(run)
        pipeline = plan.pipeline
        base = load_trainable(_choices(run)[unit.name], pipeline)
        names = _trained_on(table)
        families = [family(name) for name in names]
        labels = list(dict.fromkeys(families))
        train_N = table.rows(TRAIN)
        keys = [table.keys[n] for n in train_N]
        records = plan.by_key(keys)
        batches = labelled_variants(
            pipeline,
            [records[key] for key in keys],
            [table.contents[n] for n in train_N],
            np.array([labels.index(name) for name in families], np.int64),
            np.where(table.label_N[train_N] >= 0, table.label_N[train_N], UNKNOWN),
            transformations=names,
            batch=config.batch,
            seed=seed,
        )
        assert base.module is not None  # checked by `load_trainable`
        with stage(f"fine-tune {unit.name}", config.steps, "steps", quiet=run.quiet) as bar:
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
            "backbone": unit.name,
            "weights_hash": base.spec.weights_hash,
            "objective": objective,
            "seed": seed,
            "transformations": list(names),
            "canvas": run.store.settings.canvas,
            "store": run.store.uuid,
            "losses": losses,
            "settings": {**settings_of(self, config), "photographs": photographs_digest(table)},
        }
        state = {name: tensor.cpu() for name, tensor in base.module.state_dict().items()}
        Finetuned(state, metadata).save(folder / f"{tensors_hash(state)}.safetensors")

    def added(self, run: Run, found: Mapping[str, str]) -> Sequence[BackboneChoice]:
        """The fine-tuned backbones."""
        if (config := config_of(self, run)) is None:
            return ()
        choices, units = _choices(run), self.units(run, config)
        return [replace(choices[unit.name], name=found[unit.key], label=None) for unit in units]

    def replaced(self, run: Run, found: Mapping[str, str]) -> Iterable[BackboneEntry]:
        """Earlier trainings of the same backbones."""
        config, names = config_of(self, run), {*_choices(run), *found.values()}
        for entry in run.store.backbones():
            base = entry.facts["spec"].get("finetuned", {}).get("backbone")
            if config is not None and base in config.backbones and entry.name not in names:
                yield entry


STAGE = register_stage(FinetuneStage())


def _trained_on(table: EmbeddingTable) -> tuple[str, ...]:
    """The transformations with role ``train``, but for real ones: each epoch draws new parameters, which they lack."""
    shown = real(table.transformations)
    roles = zip(table.transformations, table.roles, strict=True)
    return tuple(name for name, role in roles if role == "train" and name not in shown)


def _choices(run: Run) -> dict[str, BackboneChoice]:
    """Backbones of the study by name."""
    return {choice.name: choice for choice in run.study.backbones} if run.study else {}


def _plan(run: Run) -> EmbedPlan:
    assert run.embedding is not None  # only studies fine-tune
    return run.embedding.plan


def load_trainable(choice: BackboneChoice, pipeline: PixelPipeline) -> Backbone:
    """Load a network to fine-tune. Raises ConfigError if it cannot be."""
    settings = pipeline.settings
    context = registry.LoadContext(settings.canvas, pipeline.config.graph_images, settings.seed, choice.checkpoint)
    base = registry.load(choice.name, context)
    if base.module is None or not any(True for _ in base.module.parameters()):
        raise ConfigError("finetune.backbones", choice.name, "torch networks")
    if base.spec.finetuned:
        raise ConfigError("finetune.backbones", choice.name, "backbones that are not fine-tuned yet")
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

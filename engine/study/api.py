"""Public functions of the package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from substyle.engine.backbones import packages, presets
from substyle.engine.backbones.families.given import Model, given
from substyle.engine.config import BackboneChoice, EmbedConfig, Settings
from substyle.engine.embedding.plan import EmbedPlan
from substyle.engine.embedding.prepare import PixelPipeline
from substyle.engine.embedding.run import embed as embed_all
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.run import run_probes
from substyle.engine.store.layout import UNLABELLED
from substyle.engine.store.manifest import assign
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable
from substyle.engine.study.file import study_of
from substyle.engine.study.outputs import default_out, name_of
from substyle.engine.study.runner import run_study
from substyle.errors import ConfigError
from substyle.pipelines.image_header import CROP_PCT
from substyle.pipelines.sources import SourceConfig, open_source
from substyle.pipelines.storage import place
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import load_all, suite

Backbones: TypeAlias = "Sequence[str | BackboneChoice] | Mapping[str, Model | str]"


def run(
    images: str | Path,
    backbones: Backbones,
    out: str | Path | None = None,
    *,
    suite: str = "substance31",
    settings: Mapping[str, Any] = MappingProxyType({}),
    fresh: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Embed photographs, train probes and write a report, as `substyle run` does.

    A mapping names backbones: ``{"mine": (model, preprocess), "before": "timm:resnet18"}``. A model is a torch module
    with a function that turns a PIL image into its input: a transform of torchvision, timm or open_clip, or an image
    processor of transformers. Modules of timm need none. Canvases go through this function, so variants are resized
    and cropped as the model's pictures are. A store identifies a model by its weights and its outputs for fixed images.

    Args:
        images: as in `embed`.
        backbones: names such as ``timm:vit_base_patch16_224.mae``, or models and names by a name of your own.
        out: output folder; default ``runs/<name of images>``. Finished work in it is kept.
        suite: suites and transformations, joined by commas.
        settings: values of fields of study files, such as ``{"limit": 200, "probes.mlp_steps": 300}``.
        fresh: delete results and store in ``out`` first.
        quiet: hide progress.

    Returns:
        the contents of results.json.

    Raises:
        ConfigError, StoreError, WeightsError, GateError: as `embed`.
    """
    with _chosen(backbones) as choices:
        data = {"name": name_of(images), "backbones": choices, "suite": suite}
        study = replace(study_of(data, changes=settings), images=images)
        return run_study(study, Path(out) if out else default_out(study.name), fresh=fresh, quiet=quiet)


@contextmanager
def _chosen(backbones: Backbones) -> Iterator[list[BackboneChoice]]:
    """Backbones of any form; models are known within the block."""
    if isinstance(backbones, Mapping):
        with given(backbones) as names:
            yield [BackboneChoice(name, label=own) for own, name in names]
    else:
        yield [BackboneChoice(each) if isinstance(each, str) else each for each in backbones]


def probe(
    x_TND: ArrayLike,
    transformations: Sequence[str],
    labels: Sequence[Any] | None = None,
    *,
    kinds: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    config: ProbeConfig | None = None,
    quiet: bool = True,
) -> dict[str, Any]:
    """Train and score probes on embeddings that were computed elsewhere.

    Args:
        x_TND: embeddings of N images in T variants, (T, N, D).
        transformations: T names, of which one is ``identity``.
        labels: class of each image, None for none.
        kinds: coarse class of each transformation. Default: those of the transformations of these names, of which
            some are held out in training of the coarse task.
        splits: train, val or test for each image. Default: drawn with ``config.seed`` in each class.
        config: settings of the probes.
        quiet: hide progress.

    Returns:
        scores with 95 % intervals by task, as ``probes`` of a backbone in results.json.

    Raises:
        ConfigError: shapes do not match, a transformation is unknown and there are no kinds, or identity is missing.
        SubstyleError: a split has no images, or embeddings are not finite.
    """
    config, x = config or ProbeConfig(), np.asarray(x_TND)
    names = list(transformations)
    if x.ndim != 3 or len(names) != len(x) or len(set(names)) < len(names) or "identity" not in names:
        allowed = "(T, N, D) with T different names, of which one is identity"
        raise ConfigError("x_TND", f"{x.shape} with {', '.join(names)}", allowed)
    given_values = {"labels": (labels, x.shape[1]), "splits": (splits, x.shape[1]), "kinds": (kinds, len(x))}
    for name, (values, count) in given_values.items():
        if values is not None and len(values) != count:
            raise ConfigError(name, f"{len(values)} values", f"{count}, for x_TND {x.shape}")
    if kinds is None:
        load_all()
        described = [base.get(name).describe() for name in names]
        kinds, roles = [str(each["kind"]) for each in described], [str(each["role"]) for each in described]
    else:
        roles = ["train"] * len(x)
    order = [names.index("identity"), *(t for t, name in enumerate(names) if name != "identity")]
    classes = sorted({str(label) for label in (() if labels is None else labels) if label is not None})
    numbers = [
        UNLABELLED if label is None else classes.index(str(label))
        for label in ([None] * x.shape[1] if labels is None else labels)
    ]
    keys = [f"{n:09}" for n in range(x.shape[1])]
    table = EmbeddingTable(
        "embeddings",
        x[order] if x.dtype == np.float16 else x[order].astype(np.float32),
        tuple(names[t] for t in order),
        tuple(kinds[t] for t in order),
        tuple(roles[t] for t in order),
        tuple(keys),
        np.array(numbers, np.int64),
        tuple(classes),
        assign(keys, numbers, [None] * len(keys) if splits is None else list(splits), seed=config.seed),
        np.ones(x.shape[:2], np.bool_),
    )
    return run_probes(table, config, out_dir=None, quiet=quiet).results


def embed(
    images: str | Path,
    store: str | Path,
    backbones: Backbones,
    *,
    transformations: str | Sequence[str] = "substance31",
    seed: int = 0,
    canvas: int = 224,
    crop_pct: float = CROP_PCT,
    source: SourceConfig | None = None,
    config: EmbedConfig | None = None,
    limit: int = 0,
    quiet: bool = True,
) -> EmbeddingStore:
    """Embed all variants of photographs with all backbones. Embeddings already in the store are kept.

    Args:
        images: a folder, a list, tar shards, Parquet files, a Hugging Face dataset or a NumPy archive.
        store: path or address (`s3://…`) of the store; created if it does not exist.
        backbones: names such as `timm:vit_base_patch16_224.mae`, or models and names by a name of your own, as in
            `run`.
        transformations: name of a suite, or names of transformations.
        seed: seed of variants and splits.
        canvas: side of the canvas in pixels.
        crop_pct: part of the shorter side of a photograph that the canvas shows.
        source: kind and columns of `images`, if not detected.
        config: device, runtime, precision and batch size.
        limit: maximum number of photographs, 0 for all.
        quiet: hide progress.

    Returns:
        the store.

    Raises:
        ConfigError: an invalid argument.
        StoreError: the store has other photographs or settings.
        WeightsError: weights of a backbone are missing.
        GateError: a compiled backbone deviates from its reference.
    """
    names = transformations if isinstance(transformations, str) else ",".join(transformations)
    where = place(str(store), "store")
    plan = EmbedPlan(
        open_source(images, source or SourceConfig()),
        where,
        PixelPipeline(Settings(seed, canvas, suite(names), crop_pct=crop_pct), (config or EmbedConfig()).here()),
        limit,
    )
    with _chosen(backbones) as choices:
        embed_all(plan, choices, quiet=quiet)
    return EmbeddingStore.open(where)


def open_store(store: str | Path) -> EmbeddingStore:
    """Open a store for reading. Raises StoreError if it does not exist."""
    return EmbeddingStore.open(place(str(store), "store"))


def transformations(names: str = "substance31") -> list[dict[str, Any]]:
    """Definitions of transformations: name, kind, role, parameters.

    Args:
        names: a suite, or comma-separated names.
    """
    load_all()
    return [base.get(name).describe() for name in suite(names)]


def backbones() -> list[str]:
    """Names of presets and of backbones with weights from Python packages."""
    return [*presets.PRESETS, *(f"package:{name}" for name in packages.SHIPPED)]

"""Public functions of the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from substyle.engine.backbones import packages, presets
from substyle.engine.config import BackboneChoice, EmbedConfig, Settings
from substyle.engine.embedding import run
from substyle.engine.embedding.plan import EmbedPlan
from substyle.engine.embedding.prepare import PixelPipeline
from substyle.engine.store.store import EmbeddingStore
from substyle.pipelines.image_header import CROP_PCT
from substyle.pipelines.sources import SourceConfig, open_source
from substyle.pipelines.storage import place
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import load_all, suite


def embed(
    images: str | Path,
    store: str | Path,
    backbones: Sequence[str | BackboneChoice],
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
        backbones: names such as `timm:vit_base_patch16_224.mae`.
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
    run.embed(plan, [BackboneChoice(b) if isinstance(b, str) else b for b in backbones], quiet=quiet)
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

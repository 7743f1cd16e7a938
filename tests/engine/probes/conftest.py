"""Synthetic embeddings: class, displacement of the transformation, and noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.tables import table_of

from substyle.engine.probes.batches import Features
from substyle.engine.probes.config import ExpertConfig, ProbeConfig
from substyle.engine.probes.dataset import standard_of
from substyle.engine.probes.tasks import Task
from substyle.engine.probes.torch_dataset import TASKS
from substyle.engine.store.table import EmbeddingTable

Make = Callable[..., EmbeddingTable]
Quick = Callable[..., ProbeConfig]
CPU = torch.device("cpu")

SUITE = (
    ("identity", "identity", "train"),
    ("blur_a", "blur", "train"),
    ("blur_b", "blur", "train"),
    ("blur_c", "blur", "held_out"),
    ("noise_a", "noise", "train"),
    ("noise_b", "noise", "held_out"),
    ("tone_a", "tone", "train"),
    ("tone_b", "tone", "train"),
)


def features_of(table: EmbeddingTable, task: Task | str | None) -> tuple[Features, Task]:
    """Features of a task of a table, or of the one of this name, on the CPU."""
    task = TASKS[task](table, 0) if isinstance(task, str) else task
    assert task is not None
    return Features(table, standard_of(table, task, 0), CPU, torch.float32), task


@pytest.fixture
def make_table() -> Callable[..., EmbeddingTable]:
    """(images, width, classes, style, seed, suite, **fields of the table) -> a table with splits 60/20/20."""

    def make(
        images: int = 120,
        width: int = 20,
        classes: int = 3,
        style: float = 2.0,
        seed: int = 0,
        suite: tuple[tuple[str, str, str], ...] = SUITE,
        **changes: object,
    ) -> EmbeddingTable:
        rng = np.random.default_rng(seed)
        names, kind, roles = zip(*suite, strict=True)
        label = np.arange(images) % max(classes, 1)
        base = rng.normal(size=(max(classes, 1), width))[label] * 1.5 + rng.normal(size=(images, width)) * 0.5
        of_kind = {name: rng.normal(size=width) for name in dict.fromkeys(kind)}
        x = np.empty((len(suite), images, width), np.float16)
        for t, name in enumerate(kind):
            shift = style * (0.7 * of_kind[name] + 0.5 * rng.normal(size=width)) if names[t] != "identity" else 0.0
            x[t] = base + shift + 0.3 * rng.normal(size=(images, width))
        order = rng.permutation(images)
        split = np.full(images, 2, np.int8)
        split[order[: images * 3 // 5]] = 0
        split[order[images * 3 // 5 : images * 4 // 5]] = 1
        given = {
            "backbone": "synthetic",
            "kind": kind,
            "roles": roles,
            "keys": tuple(f"image-{n}" for n in range(images)),
            "label_N": label if classes else np.full(images, -1),
            "class_names": tuple(f"class-{c}" for c in range(classes)),
            "split_N": split,
        }
        return table_of(x, names, **given | changes)

    return make


@pytest.fixture
def quick() -> Callable[..., ProbeConfig]:
    """A small configuration with overrides."""

    def make(**changes: object) -> ProbeConfig:
        base: dict[str, object] = {
            "Cs": (1e-2, 1e-1),
            "mlp_learning_rates": (1e-2, 3e-3),
            "mlp_weight_decays": (1e-2,),
            "multitask_learning_rates": (1e-2, 3e-3),
            "widths": (32,),
            "resamples": 2,
            "redraws": 2,
            "equal_width": 8,
            "mlp_steps": 30,
            "multitask_steps": 30,
            "doublings": 1,
            "bootstrap": 200,
            "precision": "fp32",
        }
        fields = base | changes
        expert = {each.name: fields.pop(each.name) for each in dataclasses.fields(ExpertConfig) if each.name in fields}
        return ProbeConfig(**fields, expert=ExpertConfig(**expert))  # type: ignore[arg-type]

    return make

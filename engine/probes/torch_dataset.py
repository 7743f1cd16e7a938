"""Embeddings as a torch dataset, for heads trained elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from substyle.engine.probes.tasks import Task, class_task, kind_task, transformation_task
from substyle.engine.store.layout import SPLITS
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, open_table
from substyle.errors import ConfigError, SubstyleError
from substyle.pipelines.storage import place

TASKS = {"transformation": transformation_task, "kind": kind_task, "class": class_task}
Sample = tuple[torch.Tensor, int]


class EmbeddingDataset(Dataset[Sample]):
    """Pairs of an embedding, float32 (D,), and a target. Read from the store on demand.

    Attributes:
        classes: names of the C targets.
        transformations, keys: transformation and image of each pair.
        targets: (R,) int64; -1 for a test image whose class has no training image, which counts as wrong.
    """

    def __init__(self, table: EmbeddingTable, task: Task, t_R: NDArray[np.int64], n_R: NDArray[np.int64]) -> None:
        self.table, self.t_R, self.n_R = table, t_R, n_R
        self.classes = task.labels
        self.targets = task.answers(t_R, n_R)

    @property
    def transformations(self) -> list[str]:
        """Transformation of each pair."""
        return [self.table.transformations[t] for t in self.t_R.tolist()]

    @property
    def keys(self) -> list[str]:
        """Image of each pair."""
        return [self.table.keys[n] for n in self.n_R.tolist()]

    def __len__(self) -> int:
        return len(self.t_R)

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Sample]:
        """Pairs of a batch, which `DataLoader` asks for; reading them together is faster."""
        at = np.asarray(indices, np.int64)
        x_BD = torch.from_numpy(self.table.take(self.t_R[at], self.n_R[at]).astype(np.float32))
        return list(zip(x_BD, self.targets[at].tolist(), strict=True))


def torch_dataset(
    store: EmbeddingStore | str | Path,
    backbone: str,
    *,
    split: str = "train",
    task: str = "class",
    transformations: Sequence[str] = (),
    seed: int | None = None,
) -> EmbeddingDataset:
    """Return embeddings and targets of one split, as probes see them.

    Args:
        store: a store, or its path.
        backbone: name of a backbone in it.
        split: ``train``, ``val`` or ``test``.
        task: ``transformation`` (the transformation), ``kind`` (its kind) or ``class`` (the image's class).
        transformations: names; default: those that probes of the task train on: all, those of role train, or identity.
            Others are for testing: held-out ones, or all for ``class``.
        seed: seed of the validation images if the store has none; default: that of the store.

    Raises:
        ConfigError: an unknown split, task or transformation.
        SubstyleError: the store does not have the task.
    """
    if split not in SPLITS:
        raise ConfigError("split", split, ", ".join(SPLITS))
    if task not in TASKS:
        raise ConfigError("task", task, ", ".join(TASKS))
    opened = store if isinstance(store, EmbeddingStore) else EmbeddingStore.open(place(str(store), "store"))
    table = open_table(opened, backbone)
    made = TASKS[task](table, opened.settings.seed if seed is None else seed)
    if made is None:
        raise SubstyleError(f"{opened.path}: no {task} task: fewer than two classes with training and test images")
    chosen_T = made.train_T
    if transformations:
        scored = [table.transformations[t] for t in made.score_T.tolist()]
        if unknown := [name for name in transformations if name not in scored]:
            raise ConfigError("transformations", unknown[0], ", ".join(scored))
        chosen_T = np.array([table.transformations.index(name) for name in transformations], np.int64)
    images_N = {"train": made.train_N, "val": made.val_N, "test": made.test_N}[split]
    return EmbeddingDataset(table, made, *made.rows(chosen_T, images_N))

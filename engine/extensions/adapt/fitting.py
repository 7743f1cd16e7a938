"""Adapters: one layer on top of a frozen embedding that keeps both transformation and class.

Adapters are trained on training photographs and on transformations with role ``train``, so that held-out
transformations remain new to the adapted embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine import devices
from substyle.engine.probes.batches import Features
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.dataset import hold
from substyle.engine.probes.mlp import JOINT, settings_of, train_joint
from substyle.engine.probes.tasks import I64, UNKNOWN, Advance, Task, class_task, identity, transformation_task
from substyle.engine.store.table import EmbeddingTable
from substyle.errors import ConfigError, SubstyleError

_CHUNK = 8192  # rows
_SHRINKAGE = 1e-3  # of the mean variance, added to the covariance of style directions


@dataclass(frozen=True)
class AdapterLayer:
    """A trained layer: ``weight_ED @ x + bias_E``, then a ReLU if ``relu``, and facts about its training in JSON."""

    weight_ED: NDArray[np.float32]
    bias_E: NDArray[np.float32]
    relu: bool
    facts: dict[str, Any]


def seen_of(table: EmbeddingTable) -> I64:
    """Indices of transformations with role ``train``, identity included. Raises SubstyleError for fewer than two."""
    seen = [t for t, role in enumerate(table.roles) if role == "train"]
    if len(seen) < 2:
        raise SubstyleError(f"adapters of {table.backbone} need a transformation with role train besides identity")
    return np.array(seen, np.int64)


def fit_multitask(table: EmbeddingTable, config: ProbeConfig, advance: Advance = lambda count: None) -> AdapterLayer:
    """Return the hidden layer of an MLP trained on transformation and class together.

    Settings, grid and stopping are those of the multi-task probe (`train_joint`).

    Raises:
        SubstyleError: the photographs have fewer than two classes, or an empty split.
    """
    seen = seen_of(table)
    transformation, class_ = transformation_task(table, config.seed), class_task(table, config.seed)
    if transformation is None or class_ is None:
        raise SubstyleError(f"multitask adapter of {table.backbone}: needs photographs of at least two classes")
    transformation = _among(transformation, np.intersect1d(transformation.train_T, seen))
    class_ = replace(class_, score_T=np.intersect1d(class_.score_T, seen))
    device = devices.resolve(config.device).torch_device
    features = Features.of_task(hold(table, config, device), transformation, config)
    standard = features.standard
    settings = [setting for setting in settings_of(transformation, class_, config) if setting.group == JOINT]
    found = train_joint(features, transformation, class_, config, settings, advance)[JOINT]
    ((w_HD, b_H),) = (tuple(each[0].cpu().double() for each in pair) for pair in found.heads.layers[:1])
    weight_HD = w_HD * torch.from_numpy(standard.scale_D).double()
    bias_H = b_H - weight_HD @ torch.from_numpy(standard.mean_D).double()
    facts = {
        "transformations": list(transformation.labels),
        **found.trained.setting.describe(),
        "converged": found.converged,
    }
    return AdapterLayer(weight_HD.float().numpy(), bias_H.float().numpy(), True, facts)


def _among(task: Task, kept_T: I64) -> Task:
    """A transformation task restricted to some transformations, in training and labels."""
    kept, place_T = np.unique(task.answer[kept_T], return_inverse=True)
    answer_T = np.full(len(task.answer), UNKNOWN, np.int64)
    answer_T[kept_T] = place_T
    labels = tuple(task.labels[label] for label in kept)
    return replace(task, labels=labels, answer=answer_T, train_T=kept_T, score_T=kept_T)


def fit_pisco(
    table: EmbeddingTable, config: ProbeConfig, *, content: float = 0.95, penalty: float = 1.0
) -> AdapterLayer:
    """Split an embedding linearly into style and content coordinates, in closed form.

    Style: for each transformation the direction that separates its variants from the originals, by linear discriminant
    analysis. Content: the projection onto the leading eigenvectors of the covariance minus ``penalty`` times the
    second moments of the differences between variants and their originals. Both parts are scaled to unit mean square
    norm, so that they weigh alike in distances.

    Source: Ngweta et al., "Simple Disentanglement of Style and Content in Visual Representations", ICML 2023 (PISCO),
    which fits the style directions by logistic regression, expresses content in the eigenvectors and does not scale.

    Args:
        table: embeddings (T, N, D).
        content: rank of the new embedding as a fraction of D, style directions included.
        penalty: weight of the differences between variants and originals.

    Raises:
        ConfigError: the embedding is too narrow for so many transformations.
        SubstyleError: an empty split.
    """
    seen, base = seen_of(table), identity(table)
    task = transformation_task(table, config.seed)
    assert task is not None
    styles = [int(t) for t in np.intersect1d(task.train_T, seen) if t != base]
    count = round(content * table.width) - len(styles)
    if count < 1:
        allowed = (
            f"multitask; {len(styles)} transformations leave no content in {table.backbone} of width {table.width}"
        )
        raise ConfigError("adapt.methods", "pisco", allowed)
    device = devices.resolve(config.device).torch_device
    moments = [_Moments(table, task.train_N, t, base, device) for t in [base, *styles]]
    rows = torch.tensor([m.rows for m in moments], dtype=torch.float64)
    mean_TD = torch.stack([m.sum_D / m.rows for m in moments])
    mean_D = rows @ mean_TD / rows.sum()
    second_DD = sum((m.second_DD for m in moments), torch.zeros_like(moments[0].second_DD)) / rows.sum()
    total_DD = second_DD - torch.outer(mean_D, mean_D)
    within_DD = second_DD - torch.einsum("t,td,te->de", rows / rows.sum(), mean_TD, mean_TD)
    moved_DD = sum((m.moved_DD for m in moments[1:]), torch.zeros_like(total_DD)) / rows[1:].sum()
    ridge = _SHRINKAGE * within_DD.diagonal().mean()
    away_SD = mean_TD[1:] - mean_TD[0]
    style_SD = torch.linalg.solve(within_DD + ridge * torch.eye(table.width, dtype=torch.float64), away_SD.T).T
    style_SD = torch.nn.functional.normalize(style_SD, dim=1)
    content_DC = torch.linalg.eigh(total_DD - penalty * moved_DD).eigenvectors[:, -count:]
    # in the axes of the embedding: standardising eigenvectors would amplify those of little variance
    parts = [part * ((part @ total_DD) * part).sum().rsqrt() for part in (style_SD, content_DC @ content_DC.T)]
    weight_ED = torch.cat(parts)
    facts = {
        "transformations": [table.transformations[t] for t in (base, *styles)],
        "style_dimensions": len(styles),
        "content": content,
        "penalty": penalty,
    }
    return AdapterLayer(weight_ED.float().numpy(), (-weight_ED @ mean_D).float().numpy(), False, facts)


class _Moments:
    """Sums over the training rows of one transformation, in float64 on the CPU.

    Attributes:
        rows: number of rows.
        sum_D: sum of embeddings.
        second_DD: sum of outer products of embeddings.
        moved_DD: sum of outer products of differences from the original's embedding.
    """

    def __init__(self, table: EmbeddingTable, images: I64, t: int, base: int, device: torch.device) -> None:
        width = table.width
        self.rows = 0
        self.sum_D = torch.zeros(width, dtype=torch.float64)
        self.second_DD = torch.zeros(width, width, dtype=torch.float64)
        self.moved_DD = torch.zeros_like(self.second_DD)
        both = table.distinct_TN[t, images] & table.distinct_TN[base, images]
        own = images[both]
        for n_B in (own[start : start + _CHUNK] for start in range(0, len(own), _CHUNK)):
            x_BD, original_BD = (torch.from_numpy(table.take(each, n_B)).to(device).double() for each in (t, base))
            self.rows += len(n_B)
            self.sum_D += x_BD.sum(0).cpu()
            self.second_DD += (x_BD.T @ x_BD).cpu()
            moved_BD = x_BD - original_BD
            self.moved_DD += (moved_BD.T @ moved_BD).cpu()
        if not self.rows or not bool(torch.isfinite(self.second_DD).all()):
            raise SubstyleError(
                f"embeddings of {table.backbone} have no finite training rows of {table.transformations[t]}"
            )

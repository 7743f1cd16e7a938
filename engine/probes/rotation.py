"""Hold out each transformation in turn: one coarse probe for each, all trained at once on one stream.

Every head sees the same batches, drawn over all transformations; the rows of its own held-out transformation have
weight 0, and the rest of that coarse class makes up for them. The setting and the number of steps are those that
validation picked for the coarse probe, so nothing is selected here. A transformation that is alone in its coarse
class cannot be held out.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.probes.batches import Batches, Part
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.features import Features
from substyle.engine.probes.heads import Dropout, initial
from substyle.engine.probes.held import Held
from substyle.engine.probes.metrics import resample
from substyle.engine.probes.sampling import stream_of
from substyle.engine.probes.scoring import pick_dtype, score
from substyle.engine.probes.single import batch_size
from substyle.engine.probes.standard import standard_of
from substyle.engine.probes.tasks import I64, Task, coarse_task
from substyle.engine.probes.trainer import Trained, learning_rate
from substyle.engine.table import EmbeddingTable
from substyle.kernels.probe_heads import Heads, Term
from substyle.kernels.probe_step import step

_OUTPUTS_AT_ONCE = 8 * 2048  # rows of the stacked first layer that train together, to bound memory


@dataclass(frozen=True)
class Rotation:
    """Scores of each transformation by the head that never saw it. Shape: (T, N); NaN for those never held out."""

    score_TN: NDArray[np.float32]
    transformations: I64


def held_out_in_turn(task: Task) -> I64:
    """Transformations whose coarse class has another one to learn from."""
    answers = task.answer[task.train_T]
    return task.train_T[np.bincount(answers, minlength=len(task.labels))[answers] > 1]


def row_weights(task: Task, t_B: I64, held_K: I64) -> NDArray[np.float32]:
    """Weights of rows for heads that each hold out a transformation. Shape: (K, B).

    0 for the held-out transformation; m / (m - 1) for the other rows of its coarse class of m, whose total stays.
    """
    members = np.bincount(task.answer[task.train_T], minlength=len(task.labels))[task.answer[held_K]]
    same = task.answer[t_B][None, :] == task.answer[held_K][:, None]
    weight = np.where(same, (members / (members - 1.0))[:, None], 1.0)
    weight[t_B[None, :] == held_K[:, None]] = 0.0
    return weight.astype(np.float32)


def rotate(
    held: Held,
    head: str,
    chosen: Trained,
    config: ProbeConfig,
    images: I64,
    advance: Callable[[int], None] = lambda count: None,
) -> Rotation | None:
    """Train and score the rotation with the coarse probe's setting; None where nothing can be held out."""
    table, device = held.table, held.device
    task = coarse_task(table, config.seed, seen=range(len(table.transformations)))
    turned = held_out_in_turn(task) if task is not None else np.empty(0, np.int64)
    if task is None or len(turned) == 0:
        return None
    features = Features(held, standard_of(table, task, config.seed), device, pick_dtype(config.precision, device))
    rows = int(task.distinct_TN[np.ix_(task.train_T, task.train_N)].sum())
    per_head = config.seeds * (chosen.setting.width or len(task.labels))
    at_once = max(1, _OUTPUTS_AT_ONCE // per_head)
    score_TN = np.full((len(table.transformations), len(images)), np.nan, np.float32)
    for start in range(0, len(turned), at_once):
        held_K = turned[start : start + at_once]
        stream = stream_of(task, "variant", config.seed)  # every chunk of heads sees the same batches
        part = Part(task, stream, batch_size(rows, config.batch), slice(0, len(task.labels)))
        heads = _train(features, part, held_K, head, chosen, config, advance)
        for g, t in enumerate(held_K):
            own = heads.select(range(g * config.seeds, (g + 1) * config.seeds))
            scored = score(features, _only(task, t), slice(0, len(task.labels)), own, images)
            score_TN[t] = scored.mean_TN[t]
    return Rotation(score_TN, turned)


def report_rotation(table: EmbeddingTable, rotation: Rotation, config: ProbeConfig) -> dict[str, Any]:
    """The entry of results.json for a head, with the mean over all that were held out."""
    resampled = resample(rotation.score_TN, config.bootstrap, config.seed)
    weight = np.zeros(len(table.transformations))
    weight[rotation.transformations] = 1.0
    overall = resampled.mean(weight)
    by = {
        table.transformations[t]: {"accuracy": resampled.one(t).number, "ci95": resampled.one(t).ci95}
        for t in rotation.transformations
    }
    return {"by_transformation": by, "accuracy": overall.number, "ci95": overall.ci95}


def _train(
    features: Features,
    part: Part,
    held_K: I64,
    head: str,
    chosen: Trained,
    config: ProbeConfig,
    advance: Callable[[int], None],
) -> Heads:
    seeds = [config.seed + i for i in range(config.seeds)]
    task, setting = part.task, chosen.setting
    heads = initial(setting.width, features.width, len(task.labels), len(held_K), seeds, features.device)
    dropout = Dropout(config.dropout, seeds)
    kept = None
    if setting.width and dropout.threshold:
        kept = torch.empty(config.seeds, setting.width, part.count, dtype=torch.bool, device=features.device)
    budget = config.steps if head == "linear" else config.mlp_steps
    with closing(Batches(features, [part], 1, chosen.steps)) as batches:
        for done in range(chosen.steps):
            block = batches.block([learning_rate(done, budget)])
            weight = np.repeat(row_weights(task, block.drawn[0].t_B, held_K), config.seeds, axis=0)
            term = Term(
                block.targets[0][0], outputs=part.outputs, weight_KB=torch.from_numpy(weight).to(features.device)
            )
            if kept is not None:
                dropout.masks(kept)
            lr, decay = [setting.lr * block.rates[0]] * len(heads), [setting.weight_decay] * len(heads)
            step(heads, block.x_nBD[0], [term], lr, decay, kept_SHB=kept, keep=dropout.keep)
            advance(1)
    return heads


def _only(task: Task, t: int) -> Task:
    from dataclasses import replace

    return replace(task, score_T=np.array([t]))

"""Linear heads fitted to a certificate on the device, in float32 and to rows as stored, against those of the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from benchmarks.gpu_check.bench import Bench
from benchmarks.gpu_check.probe_tables import made
from benchmarks.gpu_check.rows import Row, correctness
from substyle.engine.probes.batches import Features
from substyle.engine.probes.config import ExpertConfig, ProbeConfig
from substyle.engine.probes.dataset import standard_of
from substyle.engine.probes.linear import fit_heads, resampled_images, variant_weights
from substyle.engine.probes.objective import StoredObjective
from substyle.engine.probes.solver import Fit
from substyle.engine.probes.tasks import transformation_task
from substyle.engine.probes.training_rows import TrainingRows
from substyle.engine.store.table import EmbeddingTable
from substyle.kernels.probe_heads import Heads

PART = "probes"
CPU = torch.device("cpu")
CS = (1e-3, 1e-2, 1e-1)
RESAMPLES = 2  # heads of the largest C that learn resampled photographs
TOLERANCE = 1e-5  # of gradients
ROUNDED = 1.2  # times the tolerance: the gradient of the same heads on the CPU, whose sums are in another order
APART = 0.02  # largest difference of the weights of a head, as a share of their norm


def correct(bench: Bench) -> Iterator[Row]:
    """All converge; the CPU computes a gradient within the tolerance for the device's heads; weights are alike.

    Rows of the first table are gathered, since few of its photographs are for training.
    """
    few = made(2 * bench.sizes.rows, bench.sizes.dim)
    most = replace(few, split_N=(np.arange(len(few.keys)) % 10 - 7).clip(0, 2).astype(np.int8))
    expected = {id(table): fitted(table, CPU, torch.float32) for table in (few, most)}
    ways = (
        ("in float32", few, torch.float32),
        ("rows as stored first", most, torch.bfloat16),
    )
    for first, table, dtype in ways:
        bench.require(1.0)
        found, known = fitted(table, bench.device, dtype), expected[id(table)]
        heads = Heads(*(p.cpu() for p in found.heads.parameters))
        gradient = float(fitted(table, CPU, torch.float32, heads).gradient_K.max())
        weight_KCD, known_KCD = heads.w1, known.heads.w1
        apart = float(((weight_KCD - known_KCD).norm(dim=(1, 2)) / known_KCD.norm(dim=(1, 2))).max())
        both = bool(found.converged_K.all() and known.converged_K.all())
        stored = StoredObjective.serves(rows_of(table, bench.device, dtype)) or bench.device.type == "cpu"
        right = stored or table is few
        text = (
            f"{'both converged' if both else 'NOT CONVERGED'}{'' if right else ', ROWS WERE GATHERED'}, gradient "
            f"on the CPU {gradient:.1e} (allowed {ROUNDED * TOLERANCE:.1e}), weights apart by {apart:.1e} "
            f"(allowed {APART:g})"
        )
        yield correctness(
            PART, f"{len(heads)} linear heads fitted to a gradient of {TOLERANCE:g}, {first}, against the CPU",
            both and right and gradient <= ROUNDED * TOLERANCE and apart <= APART, text,
            **{"passes": int(found.passes_K.max()), "passes on the CPU": int(known.passes_K.max())},
        )  # fmt: skip


def rows_of(table: EmbeddingTable, device: torch.device, dtype: torch.dtype) -> TrainingRows:
    """The training rows of heads of every C and of resampled photographs."""
    task = transformation_task(table, 0)
    assert task is not None
    features = Features(table, standard_of(table, task, 0), device, dtype)
    weight_KT = np.tile(variant_weights(task, task.train_T), (len(CS) + RESAMPLES, 1))
    images = np.arange(len(table.keys))
    times_KN = np.concatenate([np.ones((len(CS), len(images))), resampled_images(task, images, RESAMPLES, 0)])
    return TrainingRows(features, task, weight_KT, times_KN)


def fitted(table: EmbeddingTable, device: torch.device, dtype: torch.dtype, start: Heads | None = None) -> Fit:
    """Heads of every C and of resampled photographs, fitted at once; what ``start`` has for a gradient if it is given.

    One pass moves no head.
    """
    rows = rows_of(table, device, dtype)
    config = ProbeConfig(expert=ExpertConfig(tolerance=TOLERANCE, passes=1000 if start is None else 1))
    Cs = [*CS, *CS[-1:] * RESAMPLES]
    return fit_heads(rows, config, Cs, start)

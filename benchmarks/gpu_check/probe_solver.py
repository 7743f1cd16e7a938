"""Linear heads fitted to a certificate on the device, in float32 and to rows as stored, against those of the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.gpu_check.bench import Bench
from benchmarks.gpu_check.probe_tables import made
from benchmarks.gpu_check.rows import Row, correctness
from substyle.engine.probes.batches import Features
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.dataset import standard_of
from substyle.engine.probes.linear import fit_heads, resampled_images, variant_weights
from substyle.engine.probes.solver import Fit
from substyle.engine.probes.tasks import fine_task
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
    """Both converge; the CPU computes a gradient within the tolerance for the device's heads; weights are alike."""
    table = made(2 * bench.sizes.rows, bench.sizes.dim)
    expected = fitted(table, CPU, torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        bench.require(1.0)
        found = fitted(table, bench.device, dtype)
        heads = Heads(*(p.cpu() for p in found.heads.parameters))
        gradient = float(fitted(table, CPU, torch.float32, heads).gradient_K.max())
        weight_KCD, expected_KCD = heads.w1, expected.heads.w1
        apart = float(((weight_KCD - expected_KCD).norm(dim=(1, 2)) / expected_KCD.norm(dim=(1, 2))).max())
        both = bool(found.converged_K.all() and expected.converged_K.all())
        text = (
            f"{'both converged' if both else 'NOT CONVERGED'}, gradient on the CPU {gradient:.1e} (allowed "
            f"{ROUNDED * TOLERANCE:.1e}), weights apart by {apart:.1e} (allowed {APART:g})"
        )
        first = "in float32" if dtype == torch.float32 else "rows as stored first"
        yield correctness(
            PART, f"{len(heads)} linear heads fitted to a gradient of {TOLERANCE:g}, {first}, against the CPU",
            both and gradient <= ROUNDED * TOLERANCE and apart <= APART, text,
            **{"passes": int(found.passes_K.max()), "passes on the CPU": int(expected.passes_K.max())},
        )  # fmt: skip


def fitted(table: EmbeddingTable, device: torch.device, dtype: torch.dtype, start: Heads | None = None) -> Fit:
    """Heads of every C and of resampled photographs, fitted at once; what ``start`` has for a gradient if it is given.

    One pass moves no head.
    """
    task = fine_task(table, 0)
    assert task is not None
    features = Features(table, standard_of(table, task, 0), device, dtype)
    Cs = [*CS, *CS[-1:] * RESAMPLES]
    weight_KT = np.tile(variant_weights(task, task.train_T), (len(Cs), 1))
    images = np.arange(len(table.keys))
    times_KN = np.concatenate([np.ones((len(CS), len(images))), resampled_images(task, images, RESAMPLES, 0)])
    config = ProbeConfig(tolerance=TOLERANCE, passes=1000 if start is None else 1)
    return fit_heads(features, task, config, weight_KT, Cs, start, times_KN)

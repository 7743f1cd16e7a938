"""Fits to a certificate, embeddings held on the device in every way and whole trainings, against those of the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.gpu_check.bench import Bench
from benchmarks.gpu_check.rows import MEASURED, Job, Row, correctness
from substyle.engine.probes.batches import Features
from substyle.engine.probes.config import ExpertConfig, ProbeConfig
from substyle.engine.probes.dataset import FLOAT16, HOW, INT8, STREAMED, MemoryBudget, hold, standard_of
from substyle.engine.probes.linear import fit_heads, resampled_images, variant_weights
from substyle.engine.probes.objective import StoredObjective
from substyle.engine.probes.run import run_probes
from substyle.engine.probes.solver import Fit
from substyle.engine.probes.tasks import transformation_task
from substyle.engine.probes.training_rows import TrainingRows
from substyle.engine.store.table import EmbeddingTable
from substyle.kernels.probe_heads import Heads

PART = "probes"
CPU = torch.device("cpu")
SUITE = (("identity", "identity"), ("blur_a", "blur"), ("blur_b", "blur"), ("noise_a", "noise"), ("noise_b", "noise"))
BUFFER = 1 << 23  # bytes: several windows in a training
APART = 0.03  # largest difference of an accuracy: products are rounded otherwise, and dropout draws other units
OFF = {FLOAT16: 1e-6, INT8: 2e-3, STREAMED: 1e-6}  # of a standardised number; int8 is compared with int8


CS = (1e-3, 1e-2, 1e-1)
RESAMPLES = 2  # heads of the largest C that learn resampled photographs
CERTIFIED = 1e-5  # of gradients
ROUNDED = 1.2  # times the tolerance: the gradient of the same heads on the CPU, whose sums are in another order
WEIGHTS_APART = 0.02  # largest difference of the weights of a head, as a share of their norm


def jobs(bench: Bench) -> Iterator[Job]:
    """Rows held in each way, what probes learn from them, and how fast they come."""
    yield "held embeddings", lambda: _rows(bench)
    yield "trainings on held embeddings", lambda: _trainings(bench)
    yield "loading", lambda: [_loading(bench)]


def made(images: int, width: int) -> EmbeddingTable:
    """Embeddings that are a class, a transformation's displacement and noise."""
    rng = np.random.default_rng(0)
    names, kind = zip(*SUITE, strict=True)
    label = np.arange(images) % 4
    base = rng.normal(size=(4, width))[label] + rng.normal(size=(images, width))
    moved = rng.normal(size=(len(names), 1, width)) * 0.7
    moved[0] = 0.0
    x = (base + moved + 0.3 * rng.normal(size=(len(names), images, width))).astype(np.float16)
    roles = tuple("held_out" if name.endswith("_b") else "train" for name in names)
    keys = tuple(f"{n}" for n in range(images))
    split = (np.arange(images) % 5).clip(0, 2).astype(np.int8)
    distinct = np.ones((len(names), images), bool)
    return EmbeddingTable("made up", x, names, kind, roles, keys, label, ("a", "b", "c", "d"), split, distinct)


def _rows(bench: Bench) -> Iterator[Row]:
    table = made(16 * bench.sizes.rows, bench.sizes.width)
    task = transformation_task(table, 0)
    assert task is not None
    standard = standard_of(table, task, 0)
    rng = np.random.default_rng(1)
    t, n = rng.integers(len(SUITE), size=bench.sizes.rows), rng.integers(len(table.keys), size=bench.sizes.rows)
    for how in HOW:
        config = ProbeConfig(expert=ExpertConfig(table=how))
        got, expected = (
            Features(hold(table, config, where), standard, where, torch.float32)(t, n).cpu()
            for where in (bench.device, CPU)
        )
        off = float((got - expected).abs().max())
        text = f"off by {off:.1e} (allowed {OFF[how]:g})"
        yield correctness(PART, f"embeddings held as {how}, standardised rows", off <= OFF[how], text)


def _trainings(bench: Bench) -> Iterator[Row]:
    """Transformation, kind, class and multi-task probes, and the rotation: accuracies as on the CPU."""
    table = made(2 * bench.sizes.rows, bench.sizes.dim)
    config = ProbeConfig(
        widths=(bench.sizes.hidden,), mlp_steps=60, multitask_steps=40, resamples=2, redraws=2, bootstrap=100,
        expert=ExpertConfig(doublings=1, batch=bench.sizes.rows // 4, precision="fp32", table=FLOAT16),
    )  # fmt: skip
    expected = accuracies(table, replace(config, device="cpu"))
    held = {how: replace(config.expert, table=how) for how in HOW}
    found = {how: accuracies(table, replace(config, device=str(bench.device), expert=held[how])) for how in HOW}
    for how in HOW:
        bench.require(1.0)
        apart = max(abs(found[how][name] - value) for name, value in expected.items())
        text = f"accuracies off by up to {apart:.3f} (allowed {APART:g}), of {len(expected)}"
        good = apart <= APART and found[how].keys() == expected.keys()
        yield correctness(PART, f"whole trainings on embeddings held as {how}, against the CPU", good, text)
    same = found[STREAMED] == found[FLOAT16]
    yield correctness(PART, "whole trainings: streamed learns what float16 learns", same, "every accuracy alike")
    for how in (FLOAT16, INT8):
        bench.require(1.0)
        with patch.object(MemoryBudget, "place", lambda budget, requested: (requested, budget.host)):
            same = accuracies(table, replace(config, device=str(bench.device), expert=held[how])) == found[how]
        name = f"whole trainings: {how} in host memory learns what {how} on the device learns"
        yield correctness(PART, name, same, "every accuracy alike")


@patch.object(ProbeConfig, "stream_buffer", BUFFER)
def accuracies(table: EmbeddingTable, config: ProbeConfig) -> dict[str, float]:
    """Test accuracies of every probe that is trained, by name."""
    outcome = run_probes(table, config, out_dir=None, quiet=True)
    return {name: float(np.nanmean(score_TN)) for name, score_TN in outcome.scores.items()}


def _loading(bench: Bench) -> Row:
    """Bytes a second from memory of the host to a float16 table on the device, through the buffer."""
    table = made(64 * bench.sizes.rows, bench.sizes.width)
    config = ProbeConfig(expert=ExpertConfig(table=INT8 if bench.device.type == "cpu" else FLOAT16))
    size = float(np.prod(table.x_TND.shape)) * 2
    limit = min(10.0, bench.left())
    timed = bench.clock.seconds(
        lambda: hold(table, config, bench.device), limit=limit, warm=1, ahead=False, flush=False
    )
    return Row(
        PART, f"loading {size / 1e9:.2g} GB of embeddings to the device", MEASURED, unit="bytes",
        per_s=size / timed["median"], seconds=timed,
    )  # fmt: skip


def solved(bench: Bench) -> Iterator[Row]:
    """All converge; the CPU computes a gradient within the tolerance for the device's heads; weights are alike.

    Rows of the first table are gathered, since few of its photographs are for training.
    """
    few = made(2 * bench.sizes.rows, bench.sizes.dim)
    most = replace(few, split_N=(np.arange(len(few.keys)) % 10 - 7).clip(0, 2).astype(np.int8))
    expected = {id(table): fitted(table, CPU, torch.float32) for table in (few, most)}
    ways = (("in float32", few, torch.float32), ("rows as stored first", most, torch.bfloat16))
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
            f"on the CPU {gradient:.1e} (allowed {ROUNDED * CERTIFIED:.1e}), weights apart by {apart:.1e} "
            f"(allowed {WEIGHTS_APART:g})"
        )
        yield correctness(
            PART, f"{len(heads)} linear heads fitted to a gradient of {CERTIFIED:g}, {first}, against the CPU",
            both and right and gradient <= ROUNDED * CERTIFIED and apart <= WEIGHTS_APART, text,
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
    config = ProbeConfig(expert=ExpertConfig(tolerance=CERTIFIED, passes=1000 if start is None else 1))
    Cs = [*CS, *CS[-1:] * RESAMPLES]
    return fit_heads(rows, config, Cs, start)

"""Speed of fitting linear probes to a certificate, and of training a grid of MLPs.

Linear probes: all contenders minimise the same penalised loss on the same rows until the largest gradient is within the
same tolerance. The gradient reached is computed by our objective in float32. Times are wall-clock seconds; the facts
add CPU seconds. The ceiling is the matrix products of our own passes, in the same shapes and dtypes.

MLPs: all contenders use the same batches, learning rates and AdamW steps, and validate once on the same rows. The
ceiling is the matrix products of the steps alone, in bfloat16 if the CPU has it, in our shapes: for each head the
hidden layer, the logits, and the gradients of the second layer, the hidden layer and the first layer.

Peers receive standardised float32 features in memory at no cost; ours are gathered from the float16 table.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.harness import CEILING, OURS, Row, interleave
from benchmarks.peers import probes as peers
from benchmarks.peers import probes_data
from benchmarks.peers.probes_data import BATCH, IMAGES, VARIANTS, WIDTH, Outcome, Problem
from substyle.engine.probes import objective, solver
from substyle.engine.probes.batches import BatchPart, Features, pick_dtype
from substyle.engine.probes.config import ExpertConfig, ProbeConfig
from substyle.engine.probes.evaluate import score
from substyle.engine.probes.heads import Setting
from substyle.engine.probes.linear import fit_heads, resampled_images, variant_weights
from substyle.engine.probes.tasks import stream_of
from substyle.engine.probes.trainer import train
from substyle.engine.probes.training_rows import TrainingRows
from substyle.kernels.probe_heads import Heads, Term
from substyle.kernels.probe_step import linear_gradients

NAME = "probes"
QUESTION = "how fast are linear probes fitted to a certificate, and a grid of MLPs trained?"
CS = tuple(10.0**e for e in range(-4, 3))
ONE_C = 0.1
RESAMPLES = 5
TOLERANCE = 1e-4  # of the gradient; scikit-learn's default
MOST = 10_000  # passes and iterations; no fit needs as many
MLP_HEADS, HIDDEN = 16, 2048
CPU = torch.device("cpu")
SKLEARN, CUML = "scikit-learn, one fit after the other", "cuML, one fit after the other"
SEPARATE, MODULEDICT, AUTOCAST = "separate trainings", "ModuleDict, summed losses", "ModuleDict in bf16 autocast"
Gemms = Counter[tuple[int, int, torch.dtype]]  # number of blocks by heads, rows and dtype, over all passes


def run(quick: bool) -> list[Row]:
    """Measure a grid of linear probes, a single one, resampled ones, and a grid of MLPs."""
    problem = probes_data.problem(2 if quick else 60)
    linear = problem.fewer(100) if quick else problem
    repeats = 1 if quick else 2
    times_SN = resampled_images(linear.task, np.arange(IMAGES), RESAMPLES, 0)
    resampled = f"{RESAMPLES} linear probes on resampled photographs, C = {ONE_C:g}"
    rows = [
        fitted(f"{len(CS)} linear probes, C from 1e-4 to 100", linear, CS, repeats=repeats),
        fitted(f"one linear probe, C = {ONE_C:g}", linear, [ONE_C], repeats=repeats),
        fitted(resampled, linear, [ONE_C] * RESAMPLES, times_SN, repeats=repeats),
    ]
    if not peers.cuml_is_missing():
        gpu = torch.device("cuda", 0)
        rows.append(fitted(f"{len(CS)} linear probes", linear, CS, device=gpu, repeats=repeats))
    rows.append(_mlps(problem, separate=1 if quick else 2, repeats=repeats))
    return rows


# --- linear probes ----------------------------------------------------------------------------------------------------


def fitted(
    name: str,
    problem: Problem,
    Cs: Sequence[float],
    times_SN: NDArray[np.float64] | None = None,
    *,
    device: torch.device = CPU,
    repeats: int,
) -> Row:
    """Fit one probe per C, ours jointly and scikit-learn's in turn, each with its own weights of the images.

    On a GPU the peer is cuML, and there is no ceiling.
    """
    t, n = problem.task.rows(problem.task.train_T, problem.task.train_N)
    own = torch.from_numpy(t * IMAGES + n)
    x_RD, y_R = problem.x_RD[own], problem.y_R[own]
    weight_KR = None if times_SN is None else [times_N[n] for times_N in times_SN]
    features = Features(problem.table, problem.standard, device, pick_dtype("auto", device))
    ours = partial(fit, problem, features, Cs, times_SN)
    how: Any = {"tolerance": TOLERANCE, "iterations": MOST}
    theirs = partial(peers.by_sklearn, x_RD.numpy(), y_R.numpy(), Cs, weight_KR, **how)
    if device != CPU:
        theirs = partial(peers.by_cuml, x_RD.to(device), y_R.float().to(device), Cs, **how)
    peer, suffix = (SKLEARN, "_sklearn") if device == CPU else (CUML, "_cuml")
    found: dict[str, Any] = {}
    cpu: dict[str, list[float]] = {OURS: [], peer: []}

    def contender(who: str, work: Callable[[], object]) -> Callable[[], None]:
        def once() -> None:
            began = time.process_time()
            found[who] = work()
            cpu[who].append(time.process_time() - began)

        return once

    gemms = recorded(ours)
    ceiling = {CEILING: products(gemms)} if device == CPU else {}
    contenders = {OURS: contender(OURS, ours), **ceiling, peer: contender(peer, theirs)}
    timings = interleave(contenders, repeats=repeats, warmup=int(device != CPU))
    facts = {
        "C": [float(f"{C:g}") for C in Cs], "rows": len(y_R), "tolerance": TOLERANCE, "device": str(device),
        "passes": found[OURS].passes_K.tolist(), f"iterations{suffix}": found[peer][2],
        "cpu_s": statistics.median(cpu[OURS]), f"cpu_s{suffix}": statistics.median(cpu[peer]),
        "gemms": {str(d).removeprefix("torch."): sum(c * k for (k, _, e), c in gemms.items() if e == d)
                  for d in {dtype for _, _, dtype in gemms}},
    }  # fmt: skip
    for end, parameters in (("", found[OURS].heads.parameters), (suffix, found[peer][:2])):
        heads = Heads(*(torch.as_tensor(each, dtype=torch.float32, device="cpu").contiguous() for each in parameters))
        facts |= {f"{key}{end}": value for key, value in judged(problem, heads, Cs, times_SN).items()}
    limit = "; ceiling: the products of as many passes" if device == CPU else " on a GPU"
    return Row(f"{name}{limit}", "probes", len(Cs), timings, facts=facts)


def fit(
    problem: Problem,
    features: Features,
    Cs: Sequence[float],
    times_SN: NDArray[np.float64] | None = None,
    start: Heads | None = None,
    *,
    most: int = MOST,
) -> solver.Fit:
    task = problem.task
    weight_KT = np.tile(variant_weights(task, task.train_T), (len(Cs), 1))
    config = ProbeConfig(expert=ExpertConfig(tolerance=TOLERANCE, passes=most))
    return fit_heads(TrainingRows(features, task, weight_KT, times_SN), config, Cs, start)


def judged(
    problem: Problem, heads: Heads, Cs: Sequence[float], times_SN: NDArray[np.float64] | None
) -> dict[str, list[float]]:
    """Return test accuracy of any contender's heads and their largest gradient relative to the objective, by ours."""
    features = Features(problem.table, problem.standard, CPU, torch.float32)
    gradient_K = fit(problem, features, Cs, times_SN, heads, most=1).gradient_K  # one pass does not update the heads
    accuracy_KT = score(features, problem.task, heads, problem.task.test_N).accuracy_ST
    return {
        "accuracy": accuracy_KT.astype(np.float64).mean(axis=1).round(4).tolist(),
        "gradient": [float(f"{g:.2g}") for g in gradient_K],
    }


def recorded(work: Callable[[], object]) -> Gemms:
    """Run a fit and record the blocks it multiplies."""
    blocks: Gemms = Counter()

    def noting(heads: Heads, x_BD: torch.Tensor, term: Term) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        blocks[len(heads), len(x_BD), x_BD.dtype] += 1
        return linear_gradients(heads, x_BD, term)

    with patch.object(objective, "linear_gradients", noting):
        work()
    return blocks


def products(blocks: Gemms) -> Callable[[], float]:
    """Return a function that times the products of blocks, in seconds, into preallocated memory.

    Logits are (K*C, D) x (D, B), gradients (K*C, B) x (B, D).
    """

    def repeat() -> float:
        spent = 0.0
        for (heads, rows, dtype), count in blocks.items():
            x, w = torch.randn(rows, WIDTH).to(dtype), torch.randn(heads * VARIANTS, WIDTH).to(dtype)
            z, dw = torch.zeros(len(w), rows, dtype=dtype), torch.zeros_like(w)
            began = time.perf_counter()
            for _ in range(count):
                torch.mm(w, x.T, out=z)
                torch.mm(z, x, out=dw)
            spent += time.perf_counter() - began
        return spent

    return repeat


# --- MLPs -------------------------------------------------------------------------------------------------------------


def ours(problem: Problem, hidden: int, settings: Sequence[tuple[float, float]], dtype: torch.dtype) -> Outcome:
    began = time.perf_counter()
    config = ProbeConfig()
    features = Features(problem.table, problem.standard, CPU, dtype)
    part = BatchPart(problem.task, stream_of(problem.task, 0), BATCH)
    grid = [Setting(lr, decay, hidden) for lr, decay in settings]
    with patch.object(ProbeConfig, "validation_rows", len(problem.val_R)):
        trained = list(train(features, [part], grid, config, len(problem.batches)).values())
    spent = time.perf_counter() - began

    def test(i: int) -> float:
        return float(score(features, problem.task, trained[i].heads, problem.task.test_N).mean_TN.mean())

    return Outcome([t.validation for t in trained], spent, test)


def gemms_of_mlps(steps: int, hidden: int, heads: int, dtype: torch.dtype) -> Callable[[], float]:
    """Return a function that times the products of ``steps`` steps, in seconds, into preallocated memory."""
    x = torch.randn(BATCH, WIDTH).to(dtype)
    w1, w2 = torch.randn(heads, hidden, WIDTH).to(dtype), torch.randn(heads, VARIANTS, hidden).to(dtype)
    z, dh = torch.randn(hidden, BATCH).to(dtype), torch.randn(hidden, BATCH).to(dtype)
    y, dw2 = torch.randn(VARIANTS, BATCH).to(dtype), torch.randn(VARIANTS, hidden).to(dtype)
    dw1 = torch.empty(hidden, WIDTH, dtype=dtype)

    def repeat() -> float:
        began = time.perf_counter()
        for _ in range(steps):
            for k in range(heads):
                torch.mm(w1[k], x.T, out=z)
                torch.mm(w2[k], z, out=y)
                torch.mm(y, z.T, out=dw2)
                torch.mm(w2[k].T, y, out=dh)
                torch.mm(dh, x, out=dw1)
        return time.perf_counter() - began

    return repeat


def _mlps(problem: Problem, *, separate: int, repeats: int) -> Row:
    steps, settings = len(problem.batches), probes_data.settings(MLP_HEADS)
    few = settings[:: MLP_HEADS // separate][:separate]
    dtype = pick_dtype("auto", CPU)
    outcomes: dict[str, Outcome] = {}

    def contender(name: str, work: Callable[[], Outcome], times: float = 1.0) -> Callable[[], float]:
        def once() -> float:
            outcomes[name] = work()
            return outcomes[name].seconds * times

        return once

    contenders = {
        OURS: contender(OURS, lambda: ours(problem, HIDDEN, settings, dtype)),
        CEILING: gemms_of_mlps(steps, HIDDEN, MLP_HEADS, dtype),
        SEPARATE: contender(SEPARATE, lambda: peers.in_turn(problem, HIDDEN, few), MLP_HEADS / separate),
        MODULEDICT: contender(MODULEDICT, lambda: peers.together(problem, HIDDEN, settings)),
        AUTOCAST: contender(AUTOCAST, lambda: peers.together(problem, HIDDEN, settings, bf16=True)),
    }
    for warm in (OURS, CEILING):
        contenders[warm]()
    timings = interleave(contenders, repeats=repeats, warmup=0)
    facts = {"steps": steps, "gemms": str(dtype).removeprefix("torch."), "separate_heads_timed": separate}
    mine = outcomes[OURS]
    pairs = [(mine.score(settings.index(s)), outcomes[SEPARATE].score(j)) for j, s in enumerate(few)]
    facts |= {"accuracy": mine.picked, "accuracy_moduledict": outcomes[MODULEDICT].picked}
    facts |= dict(zip(("mean_over_heads", "mean_over_heads_separate"), np.mean(pairs, axis=0).tolist(), strict=True))
    facts["largest_difference_of_a_head"] = max(abs(a - b) for a, b in pairs)
    name = f"{MLP_HEADS} MLP heads of width {HIDDEN} × {VARIANTS} classes at once; ceiling: the steps' products alone"
    return Row(name, "head-steps", MLP_HEADS * steps, timings, facts=facts)

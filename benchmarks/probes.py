"""How fast does a grid of probes train, against the GEMMs it is made of and against the ways others train one?

All contenders see the same batches and learning rates, take the same AdamW steps and validate on the same rows at the
same steps. Peers get their features standardised, in float32 and in memory for nothing; ours are gathered from the
float16 table. The ceiling is the step's GEMMs alone, in bfloat16 where the CPU has it, in the shapes in which we run
them: of a linear grid the logits (K*C, D) x (D, B) and the weights' gradient (K*C, B) x (B, D); of each MLP head the
hidden layer, the logits, and the gradients of the second layer, the hidden layer and the first.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks.harness import CEILING, OURS, Row, Timing, interleave, main
from benchmarks.peers import probes_data, probes_moduledict, probes_separate, probes_sklearn
from benchmarks.peers.probes_data import BATCH, VARIANTS, WIDTH, Outcome, Problem
from substyle.engine.probes.batches import Part
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.features import Features
from substyle.engine.probes.heads import Setting
from substyle.engine.probes.sampling import stream_of
from substyle.engine.probes.scoring import pick_dtype, score
from substyle.engine.probes.trainer import train

NAME = "probes"
QUESTION = "how fast does a grid of probes train?"
LINEAR_HEADS, MLP_HEADS, HIDDEN = 52, 16, 2048
SEEDS = 5  # of linear heads: trainings of one setting whose spread says what a difference in accuracy means
CPU = torch.device("cpu")
SEPARATE, MODULEDICT, AUTOCAST = "separate trainings", "ModuleDict, summed losses", "ModuleDict in bf16 autocast"


def run(quick: bool) -> list[Row]:
    """The linear grid, the MLP grid, and a linear grid against one fit of scikit-learn."""
    linear = probes_data.problem(8, evaluations=1) if quick else probes_data.problem(300)
    rows = [_grid(linear, 0, LINEAR_HEADS, separate=2 if quick else 13, repeats=2)]
    rows.append(_sklearn(linear, rows[0].timings[OURS], rows[0].facts["accuracy"], quick=quick))
    mlp = linear.shortened(2 if quick else 60)
    rows.append(_grid(mlp, HIDDEN, MLP_HEADS, separate=1 if quick else 2, repeats=2))
    return rows


def ours(
    problem: Problem, hidden: int, settings: Sequence[tuple[float, float]], dtype: torch.dtype, seed: int
) -> Outcome:
    """Our training, each setting for itself, as the peers."""
    began = time.perf_counter()
    config = ProbeConfig(
        seeds=1,
        halving=(),
        patience=1000,
        evaluations=problem.evaluations,
        validation_rows=len(problem.val_R),
        seed=seed,
    )
    features = Features(problem.table, problem.standard, CPU, dtype)
    outputs = slice(0, VARIANTS)
    part = Part(problem.task, stream_of(problem.task, "variant", 0), BATCH, outputs)
    grid = [Setting(lr, decay, hidden, group=str(i)) for i, (lr, decay) in enumerate(settings)]
    trained = train(features, [part], grid, config, problem.steps)
    spent = time.perf_counter() - began

    def test(i: int) -> float:
        return float(score(features, problem.task, outputs, trained[str(i)].heads, problem.task.test_N).mean_TN.mean())

    return Outcome([t.validation for t in trained.values()], spent, test)


def gemms(steps: int, hidden: int, heads: int, dtype: torch.dtype) -> Callable[[], float]:
    """The GEMMs of so many steps, into memory that is there."""
    x = torch.randn(BATCH, WIDTH).to(dtype)
    outputs, jobs = VARIANTS if hidden else VARIANTS * heads, heads if hidden else 1
    width = hidden or outputs
    w1 = torch.randn(jobs, width, WIDTH).to(dtype)
    w2 = torch.randn(jobs, VARIANTS, width).to(dtype)
    z, dh = torch.randn(width, BATCH).to(dtype), torch.randn(width, BATCH).to(dtype)
    y, dw2 = torch.randn(VARIANTS, BATCH).to(dtype), torch.randn(VARIANTS, width).to(dtype)
    dw1 = torch.empty(width, WIDTH, dtype=dtype)

    def repeat() -> float:
        began = time.perf_counter()
        for _ in range(steps):
            for k in range(jobs):
                torch.mm(w1[k], x.T, out=z)
                if hidden:
                    torch.mm(w2[k], z, out=y)
                    torch.mm(y, z.T, out=dw2)
                    torch.mm(w2[k].T, y, out=dh)
                torch.mm(dh if hidden else z, x, out=dw1)
        return time.perf_counter() - began

    return repeat


def _grid(problem: Problem, hidden: int, heads: int, *, separate: int, repeats: int) -> Row:
    settings = probes_data.settings(heads)
    few = settings[:: heads // separate][:separate]
    dtype = pick_dtype("auto", CPU)
    outcomes: dict[str, Outcome] = {}

    def contender(name: str, work: Callable[[], Outcome], times: float = 1.0) -> Callable[[], float]:
        def once() -> float:
            outcomes[name] = work()
            return outcomes[name].seconds * times

        return once

    contenders = {
        OURS: contender(OURS, lambda: ours(problem, hidden, settings, dtype, 0)),
        CEILING: gemms(problem.steps, hidden, heads, dtype),
        SEPARATE: contender(SEPARATE, lambda: probes_separate.train(problem, hidden, few), heads / separate),
        MODULEDICT: contender(MODULEDICT, lambda: probes_moduledict.train(problem, hidden, settings)),
        AUTOCAST: contender(AUTOCAST, lambda: probes_moduledict.train(problem, hidden, settings, bf16=True)),
    }
    for warm in (OURS, CEILING):
        contenders[warm]()
    timings = interleave(contenders, repeats=repeats, warmup=0)
    kind = f"{heads} MLP heads of width {hidden}" if hidden else f"{heads} linear heads"
    facts = {"steps": problem.steps, "gemms": str(dtype).removeprefix("torch."), "separate_heads_timed": separate}
    facts |= _accuracies(problem, hidden, settings, outcomes, few, dtype)
    name = f"{kind} × {VARIANTS} classes at once, selection included; ceiling: the steps' GEMMs alone"
    return Row(name, "head-steps", heads * problem.steps, timings, facts=facts)


def _accuracies(
    problem: Problem,
    hidden: int,
    settings: Sequence[tuple[float, float]],
    outcomes: dict[str, Outcome],
    few: Sequence[tuple[float, float]],
    dtype: torch.dtype,
) -> dict[str, float]:
    """Test accuracies; and of the picked setting those of several seeds, in our dtype and in float32."""
    mine = outcomes[OURS]
    same = [settings.index(s) for s in few]
    pairs = [(mine.score(i), outcomes[SEPARATE].score(j)) for j, i in enumerate(same)]
    picked = settings[max(range(len(settings)), key=lambda i: mine.validation[i])]
    by_seed = {
        kind: [ours(problem, hidden, [picked], kind, seed).score(0) for seed in range(SEEDS if not hidden else 2)]
        for kind in dict.fromkeys((dtype, torch.float32))
    }
    return {
        "accuracy": mine.picked,
        "accuracy_moduledict": outcomes[MODULEDICT].picked,
        "mean_over_heads": statistics.fmean(a for a, _ in pairs),
        "mean_over_heads_separate": statistics.fmean(b for _, b in pairs),
        "largest_difference_of_a_head": max(abs(a - b) for a, b in pairs),
        "picked_setting_mean_of_seeds": statistics.fmean(by_seed[dtype]),
        "picked_setting_mean_of_seeds_float32": statistics.fmean(by_seed[torch.float32]),
        "picked_setting_spread_of_seeds": statistics.stdev(by_seed[torch.float32]),
    }


def _sklearn(problem: Problem, grid: Timing, accuracy: float, *, quick: bool) -> Row:
    found = probes_sklearn.fit(problem, rows=2000 if quick else 10**6, iterations=10 if quick else 60)
    facts = {
        "accuracy": accuracy, "accuracy_sklearn": found.accuracy,
        "iterations_sklearn": found.iterations, "rows_sklearn": found.rows,
    }  # fmt: skip
    timings = {OURS: grid, "one fit of scikit-learn": Timing.of([found.seconds])}
    name = f"{LINEAR_HEADS} linear heads and their selection; peer: one LogisticRegression (L-BFGS)"
    return Row(name, "grids", 1, timings, facts=facts, headline=not quick)


if __name__ == "__main__":
    main(sys.modules[__name__])

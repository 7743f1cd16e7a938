"""Coverage of intervals and tests in the report, by the report's own functions on simulated scores.

    python -m benchmarks.coverage [--quick] [--only TEXT] [--seconds 120] [--processes 1]
        [--out benchmarks/results/coverage.json]

Each cell of `CELLS` simulates studies whose truth is known, and counts how often the 95 % interval has it and how often
a test or claim says what is not so. The list was fixed before any of its results were known. The rule:

- coverage: its lower Monte Carlo bound (Clopper and Pearson, 95 %) is at least 93 %;
- width: where coverage is above 97 %, it stands beside that of the narrowest method that passes in the same cell
  (Student's t, Wilson, Clopper and Pearson, Bonett and Price, whichever apply);
- false verdicts: at most 5 % of studies.

A cell that does not pass *fails* if its Monte Carlo interval is wholly on the wrong side, else it is *undecided*; where
the product gives no interval it is *withheld*. Each has 10,000 replications, or as many as two minutes of one core
allow. All resamples are as many as the product draws.
"""

from __future__ import annotations

import sys
import time
import zlib
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest

from benchmarks.harness import document, markdown, parser, write
from benchmarks.simulations import KINDS, Simulated

NAME = "coverage"
QUESTION = "do 95 % intervals contain the truth in 95 % of studies, and do tests and claims say what is not so?"
PASSES, FAILS, UNCERTAIN, WITHHELD = "passes", "fails", "undecided", "withheld"

COVERAGE, WIDE, FALSE_VERDICTS = 0.93, 0.97, 0.05
REPLICATIONS, QUICK, SECONDS = 10_000, 200, 120.0
_AT_ONCE = 50  # studies
_ALIKE = 1e-9  # rounding

_UNITS = (2, 5, 10, 20, 50, 100, 200, 500)
_FEW, _SOME = (2, 5, 20, 100, 500), (20, 100, 500)
# kind, what is simulated and what is true, settings, sizes
CELLS: tuple[tuple[str, str, dict[str, Any], tuple[int, ...]], ...] = (
    ("proportion", "photographs, right with probability p", {"p": 0.5}, _UNITS),
    ("proportion", "photographs, right with probability p", {"p": 0.9}, _UNITS),
    ("proportion", "photographs, right with probability p: near 100 %", {"p": 0.98}, _UNITS),
    ("proportion", "photographs, right with probability p: nearly all", {"p": 0.998}, _UNITS),
    ("proportion", "photographs, right with probability p: near 0", {"p": 0.02}, _UNITS),
    ("one_way", "photographs of beta-distributed difficulty, mean of 31 transformations", {"mean": 0.8}, _FEW),
    ("one_way", "the same near 100 %, most photographs always right", {"mean": 0.98}, _FEW),
    ("skewed", "exponential numbers (sensitivities), mean 0.1", {"law": "exponential"}, _FEW),
    ("skewed", "lognormal numbers, sigma 1, mean 0.1", {"law": "lognormal"}, _FEW),
    # units are transformations
    ("two_way", "transformations ± 0.25, photographs ± 0.1 about 0.6", {"law": "uniform"}, (2, 3, 5, 12, 31, 100)),
    ("two_way", "the same with 5 photographs", {"law": "uniform", "photographs": 5}, (5, 12, 31)),
    ("two_way", "the same with 500 photographs", {"law": "uniform", "photographs": 500}, (5, 12)),
    ("two_way", "transformations alike, photographs ± 0.3 about 0.6", {"law": "photographs"}, (5, 12, 31)),
    ("two_way", "transformations at 0.98, one in seven of them at 0.4", {"law": "skewed"}, (5, 12, 31, 100)),
    ("gap", "20 seen minus units held-out transformations, each ± 0.2, true 0.15; two-way", {}, (2, 5, 12)),
    # units are transformations of each of five kinds, which stay
    ("nested", "classes at 0.35 to 0.65, transformations ± 0.2, photographs ± 0.1", {}, (2, 3, 5, 12)),
    # photographs on which one, or the other, of two backbones is right alone
    ("paired", "difference of two backbones", {"first": 0.15, "second": 0.05}, _UNITS),
    ("paired", "difference, rarely apart", {"first": 0.015, "second": 0.005}, _UNITS),
    ("paired", "no difference, rarely apart", {"first": 0.01, "second": 0.01}, _UNITS),
    ("paired", "no difference, often apart", {"first": 0.25, "second": 0.25}, _UNITS),
    ("compared", "backbones with half of their photographs in common, five transformations", {}, _SOME),
    ("grouped", "folders of 1 to 10 photographs, folders ± 0.3 about 0.6", {"mean": 0.6, "half": 0.3}, _FEW),
    ("grouped", "the same near 100 %", {"mean": 0.97, "half": 0.03}, _FEW),
    ("neighbours", "photographs of six rows that are right together, 0.8", {"mean": 0.8}, _FEW),
    ("neighbours", "the same near 100 %", {"mean": 0.98}, _FEW),
    # true difference at the margin of one point: no verdict of equivalence is right
    ("equivalence", "one transformation", {"first": 0.01, "second": 0.0}, (100, 250, 500)),
    ("equivalence", "one transformation", {"first": 0.03, "second": 0.02}, (100, 250, 500)),
    ("equivalence", "five transformations", {"first": 0.01, "second": 0.0, "transformations": 5}, (100, 250, 500)),
    ("equivalence", "five transformations", {"first": 0.03, "second": 0.02, "transformations": 5}, (100, 250, 500)),
    # equal backbones: no difference after Holm's correction is right
    (
        "holm",
        "four backbones on the same photographs, five transformations",
        {"task": "transformation"},
        (2, 5, *_SOME),
    ),
    ("holm", "the same, with training errors of 0.03", {"task": "transformation", "training": 0.03}, _SOME),
    ("holm", "the same, over units transformations ± 0.2, 100 photographs", {"task": "rotation"}, (2, 5, 12, 31)),
    ("claim_pairs", "C1: one masked and one other network, units transformations ± 0.2", {"right": 1}, (5, 12, 31)),
    ("claim_pairs", "C1: one masked and three other networks", {"right": 3}, (5, 12, 31)),
    ("claim_moves", "C5: sensitivities equal on average, units transformations ± 0.2", {}, (2, 5, 12, 31)),
    # units are backbones; normal pairs whose rank correlation is rho
    ("correlation", "C6: sensitivity and loss unrelated", {"rho": 0.0}, (4, 6, 8, 12, 20, 50)),
    ("correlation", "C6: at the margin", {"rho": 0.5}, (4, 6, 8, 12, 20, 50)),
    ("correlation", "C6: strongly related", {"rho": 0.9}, (4, 6, 8, 12, 20, 50)),
    # units are photographs; the order of given backbones
    ("robustness", "Spearman's rho of 6 backbones, over photographs", {"backbones": 6, "measure": "spearman"}, _SOME),
    ("robustness", "Kendall's tau of 6 backbones, over photographs", {"backbones": 6, "measure": "kendall"}, _SOME),
    ("robustness", "Spearman's rho of 12 backbones", {"backbones": 12, "measure": "spearman"}, _SOME),
    ("ami", "clusters unrelated to six transformations: 0", {"share": 0.0}, (10, 20, 100, 500)),
    ("ami", "half of the rows in the transformation's cluster", {"share": 0.5}, (10, 20, 100, 500)),
    ("ami", "nine in ten of the rows", {"share": 0.9}, (10, 20, 100, 500)),
    ("few_shot", "five draws ± 0.06, photographs ± 0.2 about 0.75", {"draws": 5}, _SOME),
    ("few_shot", "two draws", {"draws": 2}, _SOME),
    # units are generators, with 0.1 as trained on, 0.15 as tested, 0.1 of pairs; 100 photographs
    ("crossed", "accuracy on styles of unseen generators", {"pairs": 0.1}, (3, 4, 8, 12, 24)),
    ("crossed", "the same without effects of pairs", {"pairs": 0.0}, (3, 4, 8, 12, 24)),
    ("contrasts", "differences of three equal networks, with Holm's correction", {}, (3, 4, 8, 12, 24)),
    # units are photographs; normal scores of attacked ones are higher by shift
    ("detected", "AUROC of a score that knows nothing", {"shift": 0.0, "measure": "auroc"}, (5, *_SOME)),
    ("detected", "AUROC", {"shift": 1.0, "measure": "auroc"}, (5, *_SOME)),
    ("detected", "AUROC near 100 %", {"shift": 3.0, "measure": "auroc"}, (5, *_SOME)),
    ("detected", "true positives at 5 % false ones", {"shift": 1.0, "measure": "tpr"}, _SOME),
    ("detected", "true positives near 100 %", {"shift": 3.5, "measure": "tpr"}, _SOME),
    ("moved", "sensitivity of normal embeddings, 16 numbers", {"measure": "sensitivity"}, (5, *_SOME)),
    ("moved", "equivariance of normal embeddings, 16 numbers", {"measure": "equivariance"}, (5, *_SOME)),
    ("halfway", "severity halfway from chance to the top of a curve, five severities", {}, _SOME),
    ("predicted", "R² of a parameter, drawn uniformly, true 0.8", {"r2": 0.8}, _FEW[1:]),
    ("predicted", "R² of a parameter that is hardly known, true 0.1", {"r2": 0.1}, _FEW[1:]),
    ("similarity", "debiased CKA of normal embeddings, 8 numbers", {"measure": "cka"}, (20, 50, 100)),
)


def _rate(hit: NDArray[np.bool_]) -> tuple[float, list[float]]:
    """A share and its Monte Carlo interval."""
    return float(hit.mean()), list(binomtest(int(hit.sum()), len(hit)).proportion_ci())


def _covered(ends_K2: NDArray[np.float64], truth: float) -> dict[str, Any]:
    """Coverage, the share of intervals above the truth, and mean width."""
    low_K, high_K = ends_K2.T + np.array([[-_ALIKE], [_ALIKE]])
    coverage, interval = _rate((low_K <= truth) & (truth <= high_K))
    width = float((high_K - low_K).mean())
    return {"coverage": coverage, "coverage_ci95": interval, "too_high": float((low_K > truth).mean()), "width": width}


def judged(studies: list[Simulated]) -> dict[str, Any]:
    truth = studies[0].truth
    ends = [end for each in studies for end in each.ends]
    given = [end for end in ends if end is not None]
    false_K = np.concatenate([np.array(each.false, bool) for each in studies])
    row: dict[str, Any] = {"replications": max(len(ends), len(false_K))}
    verdicts = []
    if given:
        row |= {"truth": truth, "without_interval": len(ends) - len(given), **_covered(np.array(given), truth)}
        names = studies[0].rivals
        row["others"] = {name: _covered(np.concatenate([s.rivals[name] for s in studies]), truth) for name in names}
        low, high = row["coverage_ci95"]
        verdicts.append(PASSES if low >= COVERAGE else FAILS if high < COVERAGE else UNCERTAIN)
    if len(false_K):
        rate, (low, high) = _rate(false_K)
        row |= {"false_verdicts": rate, "false_verdicts_ci95": [low, high]}
        verdicts.append(PASSES if rate <= FALSE_VERDICTS else FAILS if low > FALSE_VERDICTS else UNCERTAIN)
    row["verdict"] = next((each for each in (FAILS, UNCERTAIN, PASSES) if each in verdicts), WITHHELD)
    return row


def named(kind: str, settings: dict[str, Any], units: int) -> str:
    """Name of a cell, such as ``paired first=0.15 second=0.05 units=100``."""
    return " ".join([kind, *(f"{key}={value}" for key, value in settings.items()), f"units={units}"])


def simulate(kind: str, settings: dict[str, Any], units: int, replications: int, seconds: float) -> dict[str, Any]:
    """Simulate a cell until it has as many replications, or for as long."""
    cell = named(kind, settings, units)
    stream = cell.replace("task=transformation", "task=fine")  # its name when random numbers were first drawn
    began, studies = time.perf_counter(), list[Simulated]()
    for seed in range(0, replications // _AT_ONCE):
        rng = np.random.default_rng([zlib.crc32(stream.encode()), seed])
        studies.append(KINDS[kind](rng, _AT_ONCE, seed, units, **settings))
        if time.perf_counter() - began > seconds:
            break
    return {"cell": cell, "kind": kind, "units": units, **judged(studies), "seconds": time.perf_counter() - began}


def shown(row: dict[str, Any]) -> str:
    parts = [f"{row['replications']} replications"]
    if "coverage" in row:
        low, high = row["coverage_ci95"]
        parts.append(f"coverage {row['coverage']:.1%} ({low:.1%} to {high:.1%}), width {row['width']:.4f}")
        valid = {o["width"]: name for name, o in row["others"].items() if o["coverage_ci95"][0] >= COVERAGE}
        if row["coverage"] > WIDE and valid:
            parts.append(f"{row['width'] / min(valid):.2f} times {valid[min(valid)]} ({min(valid):.4f})")
        if row["without_interval"]:
            parts.append(f"{row['without_interval']} without")
    if "false_verdicts" in row:
        parts.append(f"false verdicts {row['false_verdicts']:.1%}")
    return f"{row['verdict']:9} {row['cell']}: {', '.join(parts)}"


def summary(rows: list[dict[str, Any]]) -> str:
    """The table of benchmarks/TABLES.md: a row for each kind."""
    headings = ("simulated", "cells", "pass", "fail", "coverage", "false verdicts, at most")
    lines = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        covered = [row["coverage"] for row in own if "coverage" in row]
        false = [row["false_verdicts"] for row in own if "false_verdicts" in row]
        numbers = f"{min(covered):.1%} to {max(covered):.1%}" if covered else ""
        worst = f"{max(false):.1%}" if false else ""
        passing, failing = (sum(row["verdict"] == verdict for row in own) for verdict in (PASSES, FAILS))
        name = (KINDS[kind].__doc__ or "").splitlines()[0].rstrip(".")
        lines.append((name, str(len(own)), str(passing), str(failing), numbers, worst))
    return markdown(headings, lines)


def main() -> int:
    """Run the cells, write them, and return 1 if one fails."""
    command = parser(NAME, __doc__)
    command.add_argument("--quick", action="store_true", help=f"{QUICK} replications")
    command.add_argument("--only", default="", metavar="TEXT", help="cells that start with TEXT, which are not written")
    command.add_argument("--seconds", type=float, default=SECONDS, help="at most, of each cell")
    command.add_argument("--processes", type=int, default=1, metavar="N", help="of one thread each")
    options = command.parse_args()
    replications = QUICK if options.quick else REPLICATIONS
    cells = [(kind, what, settings, units) for kind, what, settings, sizes in CELLS for units in sizes]
    cells = [cell for cell in cells if named(cell[0], *cell[2:]).startswith(options.only)]
    rows = []
    with get_context("spawn").Pool(options.processes, torch.set_num_threads, (1,)) as pool:
        waiting = [
            pool.apply_async(simulate, (kind, settings, units, replications, options.seconds))
            for kind, _, settings, units in cells
        ]
        for (_, what, *_), found in zip(cells, waiting, strict=True):
            rows.append({"what": what, **found.get()})
            print(shown(rows[-1]), flush=True)
            if not options.only:
                write(options.out, document(NAME, QUESTION, quick=options.quick, rows=rows))
    print(summary(rows))
    return int(any(row["verdict"] == FAILS for row in rows))


if __name__ == "__main__":
    sys.exit(main())

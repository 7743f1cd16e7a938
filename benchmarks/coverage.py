"""Coverage of every kind of interval and test in the report, by the report's own functions on simulated scores.

    python -m benchmarks.coverage [--quick] [--only TEXT] [--seconds 120] [--out benchmarks/results/coverage.json]

Each cell of `CELLS` simulates studies whose truth is known, and counts how often the 95 % interval has it and how often
a test or claim says what is not so. The list was fixed before any of its results were known. The rule:

- coverage: its lower Monte Carlo bound (Clopper and Pearson, 95 %) is at least 93 %;
- width: where coverage is above 97 %, it stands beside that of the narrowest method that passes in the same cell
  (Student's t, Wilson, Clopper and Pearson, Bonett and Price, whichever apply);
- false verdicts: at most 5 % of studies.

A cell *fails* if its Monte Carlo interval is wholly on the wrong side, and is *undecided* if it is on both. Each has
10,000 replications, or as many as two minutes of one core allow. All resamples are as many as the product draws.
"""

from __future__ import annotations

from typing import Any

COVERAGE, WIDE, FALSE_VERDICTS = 0.93, 0.97, 0.05
REPLICATIONS, QUICK, SECONDS = 10_000, 200, 120.0

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
    ("holm", "four backbones on the same photographs, five transformations", {"task": "fine"}, (2, 5, *_SOME)),
    ("holm", "the same, with training errors of 0.03", {"task": "fine", "training": 0.03}, _SOME),
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
    ("similarity", "debiased CKA of normal embeddings, 8 numbers", {"measure": "cka"}, (20, 50, 100)),
)

"""Scores that somebody else has printed, computed again: CIFAR-10 in MIEB, with the image tower of CLIP.

    python -m benchmarks.published FOLDER [--limit N] [--out benchmarks/results/published.json]

FOLDER has pictures of CIFAR-10 in a folder for each class, without loss (PNG, 32 x 32). Printed are the results of MIEB
(Xiao et al., "MIEB: Massive Image Embedding Benchmark", 2025; embeddings-benchmark/results, August 2026) for
``openai/clip-vit-base-patch16``, whose weights in 8 bits ``package:clip_vit_b16`` has. Ours are computed as its tasks
are: `few_shot` with 16 pictures of each class and five draws, and MiniBatchKMeans with as many clusters as classes,
scored by the V-measure; on part of the pictures, of which three quarters are test pictures, instead of all 10,000.
Rows with ``crop_pct = 0.875`` have the default canvas, which cuts an eighth of the sides; 1 is CLIP's own.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import v_measure_score

from benchmarks.harness import document, parser, write
from substyle.engine.config import BackboneChoice, EmbedConfig, Settings
from substyle.engine.embedding.plan import EmbedPlan
from substyle.engine.embedding.prepare import PixelPipeline
from substyle.engine.embedding.run import embed
from substyle.engine.stages.few_shot import FewShotConfig, few_shot
from substyle.engine.store.layout import TEST
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, load_table
from substyle.pipelines.sources import SourceConfig, open_source
from substyle.pipelines.storage import place

NAME = "published"
QUESTION = "do our numbers equal those that somebody else has printed for the same network and task?"
BACKBONE, CANVAS = "package:clip_vit_b16", 224
FRACTIONS = (0.2, 0.05, 0.75)
PRINTED = {"CIFAR10": 0.9160, "CIFAR10Clustering": 0.6925}
REPEATS, BATCH = 50, 500


def embedded(folder: Path, crop_pct: float, limit: int, work: Path) -> EmbeddingTable:
    where = place(work / f"{crop_pct}.zarr")
    pipeline = PixelPipeline(Settings(0, CANVAS, ("identity",), crop_pct=crop_pct), EmbedConfig().here())
    plan = EmbedPlan(open_source(folder, SourceConfig()), where, pipeline, limit)
    embed(replace(plan, fractions=FRACTIONS), [BackboneChoice(BACKBONE)])
    return load_table(EmbeddingStore.open(where), BACKBONE)


def clustered(table: EmbeddingTable) -> dict[str, Any]:
    """Mean V-measure of random starts on all test pictures, and its interval over pictures and starts (bootstrap)."""
    test_N = table.rows(TEST)
    x_ND, label_N = table.take_finite(0, test_N), table.label_N[test_N]
    rng = np.random.default_rng(0)

    def measured(rows: np.ndarray[Any, Any], seed: int) -> float:
        clusters = len(np.unique(label_N))
        model = MiniBatchKMeans(clusters, batch_size=BATCH, n_init="auto", random_state=seed).fit(x_ND[rows])
        return float(v_measure_score(label_N[rows], model.labels_))

    every = np.arange(len(test_N))
    starts = [measured(every, seed) for seed in range(REPEATS)]
    resampled = [measured(rng.choice(every, len(every)), seed) for seed in range(REPEATS)]
    value, spread = float(np.mean(starts)), 1.96 * float(np.std(resampled, ddof=1))
    return {"value": value, "ci95": [value - spread, value + spread], "images": len(test_N)}


def main() -> None:
    command = parser(NAME, __doc__)
    command.add_argument("folder", type=Path)
    command.add_argument("--limit", type=int, default=0, help="use only N pictures")
    command.add_argument("--store", type=Path, help="keep the embeddings in this folder")
    options = command.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for crop_pct in (1.0, 0.875):
            table = embedded(options.folder, crop_pct, options.limit, options.store or Path(scratch))
            shots = few_shot(table, FewShotConfig())
            own = shots["accuracy"]
            ours = {
                "CIFAR10": {"value": own["value"], "ci95": [own["low"], own["high"]], "images": shots["images"]},
                "CIFAR10Clustering": clustered(table),
            }
            for task, found in ours.items():
                rows.append({"task": task, "crop_pct": crop_pct, "printed": PRINTED[task], **found})
                print(rows[-1], flush=True)
    write(options.out, document(NAME, QUESTION, backbone=BACKBONE, rows=rows))


if __name__ == "__main__":
    main()

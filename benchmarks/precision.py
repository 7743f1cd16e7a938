"""What does a backbone in 16 or 8 bits gain in speed, and what do probes on its embeddings lose?

Ours is a precision as a study runs it whose `gate_cosine` admits everything: bf16 in all layers, and int8 quantised on
packaged photographs outside the gate, unless its norms are wrong. Beside it ``auto``, which is bf16 with as many first
layers in float32 as the default gate asks for, and float32. The same photographs are embedded with each, and the same
linear probes trained on all; differences of accuracy are to float32, in percentage points, with 95 % intervals paired
by photograph. The weights are trained ones, but for the last row, which is there for speed alone; photographs are those
of SUBSTYLE_PHOTOGRAPHS.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import networks, photographs
from benchmarks.harness import OURS, Row, Timing, interleave
from benchmarks.networks import BATCH, CANVAS, LITE0, MOBILENET, VIT_B16, VIT_S14
from substyle.engine.backbones.compile import CompiledBackbone
from substyle.engine.backbones.gate import GateError
from substyle.engine.config import BackboneChoice, EmbedConfig, Settings
from substyle.engine.devices import AUTO, INT8
from substyle.engine.embedding.plan import EmbedPlan
from substyle.engine.embedding.prepare import PixelPipeline, prepare_backbones
from substyle.engine.embedding.run import embed_compiled
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.outcomes import ProbeOutcome, compare_outcomes
from substyle.engine.probes.run import run_probes
from substyle.engine.results.model import Estimate
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table
from substyle.pipelines.sources import FolderSource
from substyle.pipelines.storage import LocalPlace
from substyle.pipelines.transforms.registry import suite

NAME = "precision"
QUESTION = "what does a backbone in 16 or 8 bits gain in speed, and what do probes on its embeddings lose?"
IMAGES = {LITE0: 1600, MOBILENET: 1600, VIT_S14: 320}
EXACT, NARROW = "fp32", ("bf16", INT8)
_ANY_COSINE = 1e-6
_PROBES = ProbeConfig(tasks=("transformation", "kind", "class"), heads=("linear",), redraws=0, resamples=0)
_QUICK = ("identity", "gaussian_blur", "grayscale", "jpeg")
_SHOWN = {
    ("transformation", "accuracy"): "transformation",
    ("kind", "seen"): "kind, seen",
    ("kind", "held_out"): "kind, held out",
    ("class", "original"): "class",
    ("class", "transformed"): "class, transformed",
}


def run(quick: bool) -> list[Row]:
    """Rows for each backbone and precision; the short form has one backbone, few photographs and transformations."""
    settings = Settings(0, CANVAS, _QUICK if quick else suite("substance31"))
    pipeline = PixelPipeline(settings, EmbedConfig(device="cpu"))
    if quick:
        return _rows(LITE0, pipeline, 96)
    return [*(row for name, images in IMAGES.items() for row in _rows(name, pipeline, images)), _speed(VIT_B16)]


def _rows(name: str, pipeline: PixelPipeline, images: int) -> list[Row]:
    source = FolderSource(photographs.folder())
    compiled: dict[str, CompiledBackbone] = {}
    outcomes: dict[str, ProbeOutcome] = {}
    with tempfile.TemporaryDirectory(prefix="substyle-bench-") as place:
        for precision in (EXACT, AUTO, *NARROW):
            config = replace(pipeline.config, gate_cosine=_ANY_COSINE if precision in NARROW else None)
            own = PixelPipeline(pipeline.settings, config)
            plan = EmbedPlan(source, LocalPlace(place, f"{precision}.zarr"), own, limit=images)
            choice = BackboneChoice(name, precision=precision)  # type: ignore[arg-type]
            try:
                (compiled[precision],) = prepare_backbones([choice], plan.samples(), quiet=True)
            except GateError as error:
                print(f"left out: {error}", file=sys.stderr)
                continue
            embed_compiled(plan, [compiled[precision]], quiet=True)
            table = load_table(EmbeddingStore.open(plan.store_path), name)
            outcomes[precision] = run_probes(table, _PROBES, out_dir=None, quiet=True)
    differences = _differences(outcomes)
    rows = []
    for precision in [precision for precision in compiled if precision != EXACT]:
        others = {} if precision == AUTO else {"auto (bf16 through the gate)": compiled[AUTO].embed}
        timings = _timed(name, compiled[precision], others)
        facts = {"photographs": images, **_gated(compiled[precision]), **differences[precision]}
        rows.append(Row(f"{networks.SHOWN[name]} in {precision}", "images", BATCH, timings, facts=facts))
    return rows


def _speed(name: str) -> Row:
    """An untrained network in bf16: what it embeds means nothing, and no gate is asked."""
    timings = _timed(name, networks.ungated(name, "bf16"), {})
    return Row(f"{networks.SHOWN[name]} in bf16, speed alone", "images", BATCH, timings, facts={"gate": "bypassed"})


def _timed(
    name: str, narrow: CompiledBackbone, others: Mapping[str, Callable[[NDArray[np.uint8]], object]]
) -> dict[str, Timing]:
    canvas_BSSC = networks.canvases(BATCH)
    contenders: dict[str, Callable[[NDArray[np.uint8]], object]] = {
        OURS: narrow.embed,
        **others,
        "OpenVINO, float32": networks.openvino(name, "fp32"),
    }
    return interleave({key: partial(embed, canvas_BSSC) for key, embed in contenders.items()}, repeats=9)


def _gated(backbone: CompiledBackbone) -> dict[str, Any]:
    """How much of a network stays in which arithmetic, and how near its worst embedding is to float32's."""
    (gate,) = backbone.gates or ({},)
    kept = {kind: backbone.runtime.get(kind) for kind in ("float32_layers", "unquantised_layers")}
    lowest = min(found["cosine_min"] for found in (gate, gate.get("spot")) if found)
    return {"cosine_min": lowest, **{kind: count for kind, count in kept.items() if count}}


def _differences(outcomes: Mapping[str, ProbeOutcome]) -> dict[str, dict[str, Any]]:
    """Differences of accuracies of linear probes to float32 by precision, in percentage points.

    MLPs are left out: on this few photographs, two trainings on the same embeddings differ by points.
    """
    facts: dict[str, dict[str, Any]] = {precision: {} for precision in outcomes}
    for precision in outcomes:
        pair = {precision: outcomes[precision], EXACT: outcomes[EXACT]}
        for row in compare_outcomes(pair) if precision != EXACT else ():
            if (shown := _SHOWN.get((row["task"], row["metric"]))) is None or row["head"] != "linear":
                continue
            own = Estimate(**row["difference"])
            low, high = own.over_photographs or (math.nan, math.nan)
            points = f"{100 * own.value:.2f} ({100 * low:.2f} to {100 * high:.2f})"
            facts[precision][f"{shown}: points above float32"] = points
    return facts

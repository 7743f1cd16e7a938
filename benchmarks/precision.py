"""What does a backbone in 8 bits gain in speed, and what do probes on its embeddings lose?

Ours is ``precision = "int8"`` as a study runs it: quantised on packaged photographs outside the gate. Where it
does not pass the gate, which stops a study, the first eighth of its layers is left in bf16 and the row says so: it
tells what a study would lose that went past the gate. Beside it ``auto``, which is bf16 with as many first layers in
float32 as the gate asks for, and plain float32. The same photographs are embedded with each of the first two, and the
same probes trained on both; differences of accuracy are int8 - auto in percentage points, with 95 % intervals paired
by photograph. The weights are trained ones, but for the last row, which is there for speed alone; photographs are
those of SUBSTYLE_PHOTOGRAPHS.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import networks, photographs
from benchmarks.harness import OURS, Row, Timing, interleave
from benchmarks.networks import BATCH, CANVAS, LITE0, VIT_B16, VIT_S14
from substyle.engine.backbones.compile import CompiledBackbone
from substyle.engine.backbones.gate import GateError
from substyle.engine.backbones.lazy import LazyBackbone
from substyle.engine.backbones.runtimes.base import PrecisionPolicy
from substyle.engine.backbones.runtimes.openvino_builder import OpenVINOBuilder
from substyle.engine.config import BackboneChoice, EmbedConfig, Settings
from substyle.engine.devices import AUTO, INT8, graph_batch
from substyle.engine.embedding.plan import EmbedPlan
from substyle.engine.embedding.prepare import OwnSamples, PackagedSamples, PixelPipeline, prepare_backbones
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
QUESTION = "what does a backbone in 8 bits gain in speed, and what do probes on its embeddings lose?"
BACKBONES = (LITE0, VIT_S14)
IMAGES = 480
_QUICK = ("identity", "gaussian_blur", "grayscale", "jpeg")
_SHOWN = {
    ("transformation", "accuracy"): "transformation",
    ("class", "original"): "class",
    ("class", "transformed"): "class, transformed",
}


def run(quick: bool) -> list[Row]:
    """A row for each backbone; the short form has one, and few photographs and transformations."""
    settings = Settings(0, CANVAS, _QUICK if quick else suite("substance31"))
    pipeline = PixelPipeline(settings, EmbedConfig(device="cpu"))
    if quick:
        return [_row(BACKBONES[0], pipeline, 96)]
    return [*(_row(name, pipeline, IMAGES) for name in BACKBONES), _speed(VIT_B16, pipeline)]


def _row(name: str, pipeline: PixelPipeline, images: int) -> Row:
    source = FolderSource(photographs.folder())
    compiled: dict[str, CompiledBackbone] = {}
    outcomes: dict[str, ProbeOutcome] = {}
    with tempfile.TemporaryDirectory(prefix="substyle-bench-") as place:
        for precision in (INT8, AUTO):
            plan = EmbedPlan(source, LocalPlace(place, f"{precision}.zarr"), pipeline, limit=images)
            compiled[precision] = _compiled(name, precision, plan.samples())
            embed_compiled(plan, [compiled[precision]], quiet=True)
            table = load_table(EmbeddingStore.open(plan.store_path), name)
            config = ProbeConfig(tasks=("transformation", "class"), heads=("linear",))
            outcomes[precision] = run_probes(table, config, out_dir=None, quiet=True)
    timings = _timed(name, compiled[INT8], {"auto (bf16 through the gate)": compiled[AUTO].embed})
    facts = {"photographs": images, **_gated(compiled), **_differences(outcomes)}
    return Row(f"{networks.SHOWN[name]} in int8", "images", BATCH, timings, facts=facts)


def _speed(name: str, pipeline: PixelPipeline) -> Row:
    """An untrained network quantised whole: what it embeds means nothing, and no gate is asked."""
    int8 = _past_the_gate(name, pipeline, unquantised=0)
    timings = _timed(name, int8, {"OpenVINO, bf16": networks.openvino(name, "bf16")})
    return Row(f"{networks.SHOWN[name]} in int8, speed alone", "images", BATCH, timings, facts={"gate": "bypassed"})


def _timed(
    name: str, int8: CompiledBackbone, others: Mapping[str, Callable[[NDArray[np.uint8]], object]]
) -> dict[str, Timing]:
    canvas_BSSC = networks.canvases(BATCH)
    contenders: dict[str, Callable[[NDArray[np.uint8]], object]] = {
        OURS: int8.embed,
        **others,
        "OpenVINO, float32": networks.openvino(name, "fp32"),
    }
    return interleave({key: partial(embed, canvas_BSSC) for key, embed in contenders.items()}, repeats=9)


def _compiled(name: str, precision: Any, own: OwnSamples) -> CompiledBackbone:  # noqa: ANN401 - one of a Literal
    try:
        (compiled,) = prepare_backbones([BackboneChoice(name, precision=precision)], own, quiet=True)
    except GateError as error:
        print(f"past the gate: {error}", file=sys.stderr)
        return _past_the_gate(name, own.pipeline, unquantised=1 / 8)
    return compiled


def _past_the_gate(name: str, pipeline: PixelPipeline, *, unquantised: float) -> CompiledBackbone:
    """A backbone in int8 that nothing has compared with its reference, with that share of its layers left in bf16."""
    source = LazyBackbone.of(networks.load(name), canvas=CANVAS, batch=graph_batch(BATCH))
    samples = PackagedSamples(pipeline)
    artefact = OpenVINOBuilder(source, samples, batch=graph_batch(BATCH), canvas=CANVAS, threads=networks.CORES)
    policy = PrecisionPolicy(INT8, unquantised_layers=int(artefact.layers * unquantised))
    runtime = {"name": "openvino", **policy.describe(), "version": version("openvino")}
    return CompiledBackbone(source.spec, artefact.runtime(policy), runtime, None, 100.0)


def _gated(compiled: Mapping[str, CompiledBackbone]) -> dict[str, Any]:
    """How much of each network stays in which arithmetic, and how near its worst embedding is to float32's."""
    facts: dict[str, Any] = {}
    for precision, backbone in compiled.items():
        facts[f"{precision}: cosine_min"] = (
            backbone.gates[0]["cosine_min"] if backbone.gates else "does not pass the gate"
        )
        for kind in ("float32_layers", "unquantised_layers"):
            if backbone.runtime.get(kind):
                facts[f"{precision}: {kind}"] = backbone.runtime[kind]
    return facts


def _differences(outcomes: Mapping[str, ProbeOutcome]) -> dict[str, Any]:
    """Accuracies of linear probes, and differences int8 - auto in percentage points.

    MLPs are left out: on this few photographs, two trainings on the same embeddings differ by points.
    """
    facts: dict[str, Any] = {}
    for row in compare_outcomes(outcomes):
        shown = _SHOWN.get((row["task"], row["metric"]))
        if shown is None or row["head"] != "linear" or row["a"] == row["b"]:
            continue
        own = Estimate(**row["difference"])
        low, high = own.over_photographs or (math.nan, math.nan)
        points = f"{100 * own.value:.2f} ({100 * low:.2f} to {100 * high:.2f})"
        facts[f"{shown}, {row['head']}: points above auto"] = points
    for precision, outcome in outcomes.items():
        for task in ("transformation", "class"):
            found = outcome.results[task]
            if found is not None:
                key = "accuracy" if task == "transformation" else "original"
                facts[f"{precision}: {task}, linear"] = found["linear"][key]
    return facts

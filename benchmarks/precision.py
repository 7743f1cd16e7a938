"""What does a backbone in 8 bits gain in speed, and what do probes on its embeddings lose?

Ours is ``precision = "int8"`` as a study runs it: quantised on photographs that the gate does not look at. Where it
does not pass the gate, which stops a study, the first eighth of its layers is left in bf16 and the row says so: it
tells what a study would lose that went past the gate. Beside it ``auto``, which is bf16 with as many first layers in
float32 as the gate asks for, and plain float32. The same photographs are embedded with each of the first two, and the
same probes trained on both; differences of accuracy are int8 - auto in percentage points, with 95 % intervals paired
by photograph. The weights are trained ones; photographs are those of SUBSTYLE_PHOTOGRAPHS.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import networks, photographs
from benchmarks.harness import OURS, Row, interleave, main
from benchmarks.networks import BATCH, CANVAS, LITE0
from substyle.engine.backbones import registry
from substyle.engine.backbones.artefact import Artefact, Mixture
from substyle.engine.backbones.compile import CompiledBackbone
from substyle.engine.backbones.fixed_batch import graph_batch
from substyle.engine.backbones.gate import GateError
from substyle.engine.backbones.runtimes.openvino_mixed import layers
from substyle.engine.backbones.source import Source
from substyle.engine.embed import embed_compiled
from substyle.engine.plan import EmbedPlan
from substyle.engine.precision import AUTO, INT8
from substyle.engine.preparation import BackboneChoice, prepare_backbones
from substyle.engine.probes.compare import compare_outcomes
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.outcome import ProbeOutcome
from substyle.engine.probes.run import run_probes
from substyle.engine.samples import Samples
from substyle.engine.store.embeddings import EmbeddingStore
from substyle.engine.store.load import load_table
from substyle.engine.workshop import EmbedConfig, Settings, Workshop
from substyle.pipelines.sources import FolderSource
from substyle.pipelines.suites import suite

NAME = "precision"
QUESTION = "what does a backbone in 8 bits gain in speed, and what do probes on its embeddings lose?"
BACKBONES = (LITE0,)
IMAGES = 480
_QUICK = ("identity", "gaussian_blur", "grayscale", "jpeg")
_SHOWN = {
    ("fine", "accuracy"): "style",
    ("semantic", "clean"): "class",
    ("semantic", "obfuscated"): "class, transformed",
}


def run(quick: bool) -> list[Row]:
    """A row for each backbone; the short form has one, and few photographs and transformations."""
    settings = Settings(0, CANVAS, _QUICK if quick else suite("substance31"))
    workshop = Workshop(settings, EmbedConfig())
    return [_row(name, workshop, 96 if quick else IMAGES) for name in BACKBONES[: 1 if quick else None]]


def _row(name: str, workshop: Workshop, images: int) -> Row:
    source = FolderSource(photographs.folder())
    compiled: dict[str, CompiledBackbone] = {}
    outcomes: dict[str, ProbeOutcome] = {}
    with tempfile.TemporaryDirectory(prefix="substyle-bench-") as place:
        for precision in (INT8, AUTO):
            plan = EmbedPlan(source, Path(place) / f"{precision}.zarr", workshop, limit=images)
            compiled[precision] = _compiled(name, precision, plan.samples())
            embed_compiled(plan, [compiled[precision]], quiet=True)
            table = load_table(EmbeddingStore.open(plan.store_path), name)
            config = ProbeConfig(tasks=("fine", "semantic"), save=False)
            outcomes[precision] = run_probes(table, config, out_dir=None, quiet=True)
    canvas_BSSC, fp32 = networks.canvases(BATCH), networks.openvino(name, "fp32")
    timings = interleave(
        {
            OURS: lambda: compiled[INT8].embed(canvas_BSSC),
            "auto (bf16 through the gate)": lambda: compiled[AUTO].embed(canvas_BSSC),
            "OpenVINO, float32": lambda: fp32(canvas_BSSC),
        },
        repeats=9,
    )
    facts = {"photographs": images, **_gated(compiled), **_differences(outcomes)}
    return Row(f"{networks.SHOWN[name]} in int8", "images", BATCH, timings, facts=facts)


def _compiled(name: str, precision: str, samples: Samples) -> CompiledBackbone:
    try:
        (compiled,) = prepare_backbones([BackboneChoice(name, precision=precision)], samples, quiet=True)
    except GateError as error:
        print(f"past the gate: {error}", file=sys.stderr)
        context = registry.LoadContext(CANVAS, graph_batch(BATCH), 0, None, samples.canvas)
        source = Source.of(registry.load(name, context))
        artefact = Artefact(source, samples, batch=graph_batch(BATCH), canvas=CANVAS, threads=networks.CORES)
        mixture = Mixture(INT8, unquantised_layers=layers(artefact.onnx) // 8)
        runtime = {"name": "openvino", **mixture.describe(), "version": version("openvino")}
        return CompiledBackbone(source.spec, artefact.runtime(mixture), runtime, None, 100.0)
    return compiled


def _gated(compiled: Mapping[str, CompiledBackbone]) -> dict[str, Any]:
    """How much of each network stays in which arithmetic, and how near its worst embedding is to float32's."""
    facts: dict[str, Any] = {}
    for precision, backbone in compiled.items():
        facts[f"{precision}: cosine_min"] = backbone.gate["cosine_min"] if backbone.gate else "does not pass the gate"
        for kind in ("float32_layers", "unquantised_layers"):
            if backbone.runtime.get(kind):
                facts[f"{precision}: {kind}"] = backbone.runtime[kind]
    return facts


def _differences(outcomes: Mapping[str, ProbeOutcome]) -> dict[str, Any]:
    """Accuracies of the linear and MLP probes in int8 in per cent, and by how many points they lie above auto's."""
    facts: dict[str, Any] = {}
    for row in compare_outcomes(outcomes):
        shown = _SHOWN.get((row["task"], row["metric"]))
        if shown is None or row["a"] == row["b"]:
            continue
        low, high = (100 * bound for bound in row["ci95"])
        facts[f"{shown}, {row['head']}: points above auto"] = f"{100 * row['difference']:.2f} ({low:.2f} to {high:.2f})"
    for precision, outcome in outcomes.items():
        for task in ("fine", "semantic"):
            found = outcome.results[task]
            if found is not None:
                key = "accuracy" if task == "fine" else "clean"
                facts[f"{precision}: {'style' if task == 'fine' else 'class'}, linear"] = found["linear"][key]
    return facts


if __name__ == "__main__":
    main(sys.modules[__name__])

"""Commands `plan` and `profile`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import substyle.engine
from substyle.engine import observability
from substyle.engine.commands.options import changes
from substyle.engine.config import Study, names_of
from substyle.engine.devices import as_eight_bits
from substyle.engine.embedding.plan import limited
from substyle.engine.embedding.preflight import count_splits
from substyle.engine.embedding.run import embed
from substyle.engine.estimate.forecast import forecasts
from substyle.engine.estimate.measured import measured
from substyle.engine.estimate.plan import CLASSES, Plan
from substyle.engine.estimate.plan import plan as plan_study
from substyle.engine.estimate.roofline import DEFAULT, DEVICES, DISK, SOURCES, UNITS, Efficiency, card_of, device
from substyle.engine.stages.registry import stages
from substyle.engine.store.files import write_durably
from substyle.engine.store.layout import TEST
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.study.file import load_study
from substyle.engine.study.plan import plan_of
from substyle.kernels.errors import ConfigError, MissingError
from substyle.kernels.files import scratch
from substyle.pipelines.sources import describe, open_source
from substyle.pipelines.storage import place

RESULTS = Path(substyle.engine.__file__).resolve().parents[1] / "benchmarks" / "results"  # only in a checkout


def plan(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle plan STUDY.toml`: estimate the study on GPUs by counting what it runs, or here from a sample."""
    study = load_study(options.study, allow_plugins=options.allow_plugins, changes=changes(options))
    if options.sample:
        return _sampled(options, study)
    settings = study.settings()
    card, remark = (options.gpu, "") if options.gpu else _present()
    gpu = device(card)
    given = {name: value for name in ("compute", "bandwidth") if (value := getattr(options, name)) is not None}
    found, files = measured(card, options.measured or RESULTS)
    if given:  # these replace measured fractions of the same work; only decoding is left
        found = {name: value for name, value in found.items() if name == "decode_bytes"}
    efficiency = Efficiency(**{"compute": gpu.reached} | found | given)
    photographs, classes, test = _photographs(options, study)
    if options.count > photographs:
        raise ConfigError("--count", options.count, f"at most the number of photographs, {photographs:,}")
    made = plan_study(
        [choice.name for choice in study.backbones],
        settings.transformations,
        photographs,
        gpu,
        count=options.count,
        canvas=settings.canvas,
        dtype=study.embed.dtype,
        efficiency=efficiency,
        probes=study.probes,
        analyzed=study.analysis,
        classes=classes or CLASSES,
        fractions=study.splits.fractions,
    )
    assumed = SOURCES | {"compute": gpu.source}
    sources = {
        name: {"value": value, "from": "given" if name in given else "measured" if name in found else assumed[name]}
        for name, value in vars(efficiency).items()
        if value is not None
    }
    remark = "; ".join(filter(None, (remark, _eight_bits(study), _not_counted(study))))
    answer = made.describe() | {"remark": remark or None, "efficiency": sources, "measurement": files if found else []}
    answer |= {"forecast": _forecast(study, test), "goal": options.goal}
    _show(made, answer)
    return answer


def _sampled(options: argparse.Namespace, study: Study) -> dict[str, Any]:
    """Embed a sample of the photographs into a temporary store and extrapolate to all."""
    photographs, _, test = _photographs(options, study)
    with scratch() as folder:
        path = folder / "sample.zarr"
        chosen = dataclasses.replace(study, limit=min(options.sample, photographs))
        made = plan_of(chosen, options.images, place(path))
        summary = embed(made, study.backbones, quiet=options.quiet)
        store = EmbeddingStore.open(path)
        names = made.pipeline.settings.transformations
        row = sum(store.settings.chunk_bytes(entry.dim) / store.settings.shard_rows for entry in store.backbones())
    each = (summary.seconds["total"] - summary.seconds["prepare"]) / summary.images
    answer: dict[str, Any] = {
        "photographs": photographs,
        "sample": summary.images,
        "variants": len(names),
        "prepare_seconds": round(summary.seconds["prepare"], 2),
        "seconds_per_photograph": each,
        "hours": photographs * each / 3600,
        "store_bytes": round(photographs * len(names) * row),
        "remark": _not_counted(study) or None,
        "forecast": _forecast(study, test),
    }
    print(
        f"{photographs:,} photographs × {len(names)} variants on {made.pipeline.target.device}: {answer['hours']:.2f} "
        f"hours for embedding ({each:.3f} s per photograph, measured on {summary.images}), after "
        f"{answer['prepare_seconds']:.0f} s for backbones; store: {answer['store_bytes'] / 1e9:.2f} GB "
        "before compression; without probes, analysis and report"
    )
    if answer["remark"]:
        print(answer["remark"])
    _show_forecast(answer["forecast"])
    return answer


def _photographs(options: argparse.Namespace, study: Study) -> tuple[int, int, int]:
    """Numbers of photographs, of their classes, 0 if unknown, and of test photographs."""
    if options.photographs:
        return int(options.photographs), 0, round(options.photographs * study.splits.test)
    images = options.images or study.images
    if images is None:
        raise MissingError("--photographs", "pass their number, or --images PATH to count them")
    source = open_source(images, study.source)
    print(describe(source), file=sys.stderr)
    records = limited(source.records, study.seed, study.limit)
    splits = count_splits(records, source, seed=study.seed, fractions=study.splits.fractions)
    return len(records), len(source.class_names), splits.total[TEST]


def _eight_bits(study: Study) -> str:
    asked = {choice.precision or study.embed.precision for choice in study.backbones}
    if not any(map(as_eight_bits, asked)):
        return ""
    return "8-bit backbones are counted as bf16: int8 and fp8 have not been measured on a GPU"


def _not_counted(study: Study) -> str:
    """Stages of the study that are off by default: what they take is not planned."""
    default = Study(study.name, study.backbones)
    named = [each.name for each in stages() if each.of(study) is not None and each.of(default) is None]
    return f"not counted: {', '.join(named)}" if named else ""


def _forecast(study: Study, test: int) -> dict[str, Any]:
    """Half widths of the intervals of claims with a number of test photographs."""
    networks = [name for name in names_of(study.backbones) if not name.startswith("control:") and "@" not in name]
    found = forecasts(study.settings().transformations, test, len(networks))
    return {"test": test, "claims": [each.describe() for each in found]}


def _show_forecast(forecast: dict[str, Any]) -> None:
    if not forecast["claims"]:
        return
    print(
        f"\nhalf widths of 95 % intervals with {forecast['test']:,} test photographs (in brackets: the middle 90 % in "
        "kept studies):"
    )
    for row in forecast["claims"]:
        title, half = f"{row['claim']}: {row['what']}", row["half"]
        unit, scale = (" points", 100.0) if row["unit"] == "points" else ("", 1.0)
        low, median, high = (f"{scale * each:.3g}" for each in half or (0, 0, 0))
        known = f"± {median}{unit}" + f" ({low} to {high})" * (low != high)
        print(f"{title:48} {known if half else row['remark']}")


def _present() -> tuple[str, str]:
    """The GPU of this machine if known, else the default and the reason."""
    import torch

    if not torch.cuda.is_available():
        return DEFAULT, f"no GPU found, planning for {DEFAULT}; choose with --gpu: {', '.join(DEVICES)}"
    name = torch.cuda.get_device_name()
    known = card_of(name)
    if known is not None:
        return known, ""
    return DEFAULT, (
        f"unknown GPU {name}, planning for {DEFAULT}, whose peak rates and memory differ; choose with --gpu: "
        f"{', '.join(DEVICES)}"
    )


def _show(made: Plan, answer: dict[str, Any]) -> None:
    if answer["remark"]:
        print(answer["remark"])
    rate = made.embeddings_per_s
    print(
        f"{made.photographs:,} photographs × {made.variants} variants on {made.count} × {made.gpu}: "
        f"{made.hours:.2f} hours for embedding, {made.total_hours:.2f} with probes and analysis; "
        f"{'no backbone that takes time' if rate is None else f'{rate:,.0f} embeddings/s'}, "
        f"{made.of_backbone_rate:.2f} of the backbones alone; mean variant {made.mean_variant_us:.1f} µs; "
        f"limited by {made.limiting}"
    )
    _show_parts(made, answer)
    print(f"\n{'µs per photograph and process':48} {'busy':>10}")
    for name, seconds in sorted(made.busy.items(), key=lambda one: -one[1]):
        print(f"{name:48} {seconds * 1e6:10.1f}")
    print(f"\n{'per photograph':48} {'GFLOP':>10} {'MB':>10} {'µs':>10} {'launches':>10}  counted")
    for stage in made.stages:
        flop, moved = f"{stage.flop / 1e9:.1f}", f"{stage.traffic / 1e6:.1f}"
        numbers = f"{flop:>10} {moved:>10} {stage.seconds * 1e6:10.1f} {stage.launches:10,.0f}"
        print(f"{stage.name:48} {numbers}  {stage.counted}")
    print("launches are per batch; arithmetic of Triton kernels is not counted")
    if made.not_counted:
        print(f"not counted, on the host's other cores: {', '.join(made.not_counted)}")
    print("host times were measured on one Xeon core; one disk of 1 GB/s is assumed")
    print(f"\n{'per backbone':48} {'images/s':>10} {'GPU hours':>10} {'GB':>10}")
    for table in made.tables:
        rate = table.embeddings_per_s
        own = f"{'–' if rate is None else f'{rate:,.0f}':>10} {table.gpu_hours:10,.2f} {table.store_bytes / 1e9:10,.1f}"
        print(f"{table.backbone:48} {own}")
    print(
        f"\nstore: {made.store_bytes / 1e9:.1f} GB at {made.store_bytes / made.hours / 3600e6:.1f} MB/s; "
        f"GPU memory: {made.memory_bytes / 1e9:.1f} of {made.memory_available_bytes / 1e9:.0f} GB"
    )
    for table in made.tables:
        print(f"probes on {table.backbone}: {table.held}, {table.held_bytes / 1e9:.1f} GB on the GPU")
    _show_forecast(answer["forecast"])
    print("\nfractions of the GPU's peaks, bytes for whose time a photograph is decoded, seconds per kernel:")
    for name, value in answer["efficiency"].items():
        print(f"{name:14} {value['value']:10.3g}  {value['from']}")
    files = answer["measurement"]
    print(f"measured: {', '.join(files)}" if files else "nothing was measured on a GPU; run `make gpu-check` there")


def _show_parts(made: Plan, answer: dict[str, Any]) -> None:
    """The whole study, and what stands between it and a goal."""
    print(f"\n{'whole study, hours':40} {'all':>7} {'GPU':>7} {'host':>7} {'disk':>7}  {'limited by':18} source")
    for part in made.parts:
        gpu = sum(part.busy.get(unit, 0.0) for unit in UNITS)
        host = max((hours for name, hours in part.busy.items() if name.startswith("host")), default=0.0)
        hours = f"{part.hours:7.2f} {gpu:7.2f} {host:7.2f} {part.busy.get(DISK, 0.0):7.2f}"
        print(f"{f'{part.stage}: {part.name}':40} {hours}  {part.limited_by:18} {part.source}")
    print(f"{'total':40} {made.total_hours:7.2f}")
    longest = sorted(made.parts, key=lambda part: -part.hours)[:3]
    print(f"longest: {'; '.join(f'{part.name} {part.hours:.2f} ({part.limited_by})' for part in longest)}")
    if (goal := answer["goal"]) is not None:
        over = made.total_hours - goal
        print(f"goal of {goal:g} h: {f'exceeded by {over:.2f} h' if over > 0 else f'{-over:.2f} h to spare'}")
    if made.count > 1:
        print("probes and analysis of a backbone run on one GPU, those of several backbones at the same time")
    print("not counted: startup, similarity of backbones, maps, report")


def profile(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle profile STUDY.toml`, or photographs: run the study and print the time spent in each part."""
    from substyle.engine.commands import study

    with observability.recording() as recorded:
        began = observability.Mark.now()
        answer = study.run(options)
        observability.add("run", "whole run", began)
    path = Path(answer["out"]) / "trace.json"
    write_durably(path, recorded.to_json())
    totals = recorded.totals()
    whole = totals["run", "whole run"].wall
    print(f"\n{'stage':10} {'part':24} {'seconds':>9} {'share':>6} {'cores':>6} {'calls':>7} {'items/s':>10}")
    for (stage, name), total in totals.items():
        rate = f"{total.items_per_s:,.1f}" if total.items else ""
        print(
            f"{stage:10} {name[:24]:24} {total.wall:9.2f} {total.wall / whole:6.1%} {total.busy:6.2f} "
            f"{total.calls:7} {rate:>10}"
        )
    print(f"\ntrace for chrome://tracing or Perfetto: {path}")
    rows = [
        {"stage": stage, "name": name, "seconds": t.wall, "cpu_seconds": t.cpu, "items": t.items, "calls": t.calls}
        for (stage, name), t in totals.items()
    ]
    return {**answer, "trace": str(path), "profile": rows}

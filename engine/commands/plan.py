"""Command `plan`."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from typing import Any

import torch

from substyle.engine import observability
from substyle.engine.backbones.spec import without_own_name
from substyle.engine.commands.json_output import wrapped
from substyle.engine.commands.options import changes
from substyle.engine.config import Study, TrackConfig, names_of
from substyle.engine.devices import INT8
from substyle.engine.embedding.plan import limited
from substyle.engine.embedding.preflight import count_splits
from substyle.engine.embedding.run import embed
from substyle.engine.estimate.forecast import Forecast, forecasts
from substyle.engine.estimate.plan import ANALYSIS, CLASSES, PROBES, SOURCES, Plan
from substyle.engine.estimate.plan import plan as estimate_study
from substyle.engine.estimate.roofline import DEFAULT, DEVICES, GPU, HOST, STORAGE, Cluster, card_of, device
from substyle.engine.stages.registry import stages
from substyle.engine.store.layout import TEST
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.study.file import load_study
from substyle.engine.study.plan import plan_of
from substyle.engine.study.runner import run_study
from substyle.errors import ConfigError, MissingError
from substyle.files import scratch
from substyle.pipelines.sources import describe, open_source
from substyle.pipelines.storage import place

_FIRST = 32  # photographs of the first embedding: a batch on a CPU


def plan(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle plan STUDY.toml`: estimate the study on GPUs by counting what it runs, or here from a sample."""
    study = load_study(options.study, allow_plugins=options.allow_plugins, changes=changes(options))
    photographs, classes, test = _photographs(options, study)
    answer = _sampled(options, study, photographs) if options.sample else _counted(options, study, photographs, classes)
    names = [without_own_name(name) for name in names_of(study.backbones)]
    networks = [name for name in names if not name.startswith("control:") and "@" not in name]
    claims = forecasts(study.settings().transformations, test, len(networks))
    if claims:
        spread = "in brackets: middle 90 % of kept studies"
        print("\n" + wrapped(f"half widths of 95 % intervals, {test:,} test photographs ({spread}):"))
    for claim in claims:
        print(f"{f'{claim.claim}: {claim.what}':48} {_half_width(claim)}")
    return answer | {"forecast": {"test": test, "claims": list(map(dataclasses.asdict, claims))}}


def _photographs(options: argparse.Namespace, study: Study) -> tuple[int, int, int]:
    """Numbers of photographs, of their classes, and of test photographs."""
    if options.photographs:
        return options.photographs, CLASSES, round(options.photographs * study.splits.test)
    if (images := options.images or study.images) is None:
        raise MissingError("--photographs", "pass their number, or --images PATH to count them")
    source = open_source(images, study.source)
    print(describe(source), file=sys.stderr)
    records = limited(source.records, study.seed, study.limit)
    splits = count_splits(records, source, seed=study.seed, fractions=study.splits.fractions)
    return len(records), len(source.class_names) or CLASSES, splits.total[TEST]


def _half_width(claim: Forecast) -> str:
    if claim.half is None:
        return claim.remark
    unit, scale = (" points", 100.0) if claim.unit == "points" else ("", 1.0)
    low, median, high = (f"{scale * width:.3g}" for width in claim.half)
    return f"± {median}{unit}" + (f" ({low} to {high})" if low != high else "")


def _sampled(options: argparse.Namespace, study: Study, photographs: int) -> dict[str, Any]:
    """Run the study on half a sample and on all of it, and draw a line through what each part took.

    A first embedding prepares backbones and loads libraries: what it takes beyond the line is taken once.
    """
    most = min(options.sample, photographs)
    half, variants = most // 2, len(study.settings().transformations)
    if not half:
        raise ConfigError("--sample", most, "at least 2 photographs")
    few = min(half, _FIRST)
    first, _ = _measured(options, study, few, stages=False)
    small, _ = _measured(options, study, half)
    large, row_bytes = _measured(options, study, most)
    each = {name: max(took - small[name], 0.0) / (most - half) for name, took in large.items() if took >= 0.01}
    fixed = {name: large[name] - slope * most for name, slope in each.items()}
    line = fixed["embed"] + each["embed"] * few
    each["prepare"], fixed["prepare"] = 0.0, max(first["prepare"] + first["embed"] - line, 0.0)
    seconds = {name: fixed[name] + slope * photographs for name, slope in each.items()}
    hours, store_bytes = sum(seconds.values()) / 3600, round(photographs * variants * row_bytes)
    took = f"{hours:.2f} hours, by a line through {half:,} and {most:,} photographs"
    print(
        wrapped(
            f"{photographs:,} photographs × {variants} variants on this machine: {took}; "
            f"store: {store_bytes / 1e9:.2f} GB before compression"
        )
    )
    print(f"\n{'part':24} {'fixed, s':>12} {'s per 1,000':>12} {'hours':>9}")
    for name, slope in each.items():
        print(f"{name:24} {fixed[name]:12.1f} {1000 * slope:12.2f} {seconds[name] / 3600:9.3f}")
    counts = {"photographs": photographs, "samples": [half, most], "variants": variants, "fixed": fixed, "each": each}
    return counts | {"seconds": seconds, "hours": hours, "store_bytes": store_bytes}


def _measured(
    options: argparse.Namespace, study: Study, photographs: int, *, stages: bool = True
) -> tuple[dict[str, float], float]:
    """Seconds of each part of a study of so many photographs, and bytes of a variant of a photograph in its store."""
    sample = dataclasses.replace(study, limit=photographs, store=None, track=TrackConfig())
    with scratch() as folder, observability.recording() as recorded:
        path = place(folder / "sample.zarr")
        summary = embed(plan_of(sample, options.images, path), study.backbones, quiet=options.quiet)
        if stages:
            run_study(sample, folder / "out", images=options.images, store_path=path, quiet=options.quiet)
        store = EmbeddingStore.open(path)
        row = sum(store.settings.chunk_bytes(entry.dim) / store.settings.shard_rows for entry in store.backbones())
    took = {name: total.wall for (stage, name), total in recorded.totals().items() if stage == "run"}
    prepare = summary.seconds["prepare"]
    return took | {"prepare": prepare, "embed": summary.seconds["total"] - prepare}, row


def _counted(options: argparse.Namespace, study: Study, photographs: int, classes: int) -> dict[str, Any]:
    """Estimate the study on GPUs, and print it."""
    if options.count > photographs:
        raise ConfigError("--count", options.count, f"at most the number of photographs, {photographs:,}")
    installed = card_of(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    gpu, remarks = device(options.gpu or installed or DEFAULT), list[str]()
    if not options.gpu and not installed:
        remarks.append(f"none of {', '.join(DEVICES)} found, planning for {DEFAULT}; choose with --gpu")
    if any((choice.precision or study.embed.precision) == INT8 for choice in study.backbones):
        remarks.append("int8 backbones are counted as bf16: they have not been measured on a GPU")
    shared = options.storage_rate * 1e9 if options.storage_rate else math.inf
    cluster = Cluster(options.count, options.gpus_per_machine, options.machine_rate * 1e9, shared)
    estimate = estimate_study(study, photographs, gpu, cluster, classes=classes)
    others = [stage.name for stage in stages() if stage.of(study) is not None and stage.name not in (PROBES, ANALYSIS)]
    estimate = dataclasses.replace(estimate, not_counted=others + estimate.not_counted)
    remark, sources = "; ".join(remarks) or None, {"products": gpu.source} | SOURCES
    if remark:
        print(wrapped(remark))
    _show(estimate)
    price = options.gpu_price and options.gpu_price * estimate.paid_gpu_hours
    if price:
        print(f"price: {price:,.2f}, of {estimate.paid_gpu_hours:,.2f} GPU hours")
    print("\nnothing was measured on a GPU:")
    for name, source in sources.items():
        print(wrapped(f"{name:14} {source}", 15))
    return dataclasses.asdict(estimate) | {"price": price, "remark": remark, "sources": sources}


def _show(plan: Plan) -> None:
    machines = f"{plan.machines} machine{'s' * (plan.machines > 1)}"
    size = f"{plan.photographs:,} photographs × {plan.variants} variants on {plan.count} × {plan.gpu} ({machines})"
    took = f"{plan.hours:.2f} hours for embedding, {plan.total_hours:.2f} with probes and analysis"
    print(wrapped(f"{size}: {took}"))
    resources = (GPU, HOST, STORAGE)
    print(f"\n{'whole study, hours':40} {'all':>7} " + " ".join(f"{name:>7}" for name in resources) + "  limited by")
    for part in plan.parts:
        busy = " ".join(f"{part.busy.get(name, 0.0):7.2f}" for name in resources)
        print(f"{f'{part.stage}: {part.name}':40} {part.hours:7.2f} {busy}  {part.limited_by}")
    print("probes and analysis run on one machine, of one backbone at a time on each GPU")
    print(wrapped("not counted: " + ", ".join(("startup", "maps", "report", *plan.not_counted))))
    print(f"\n{'embedding':48} {'images/s':>10} {'GPU hours':>10} {'GB':>10}  in probes")
    print(f"{'decoding, variants':48} {'':10} {plan.variant_hours:10,.2f}")
    for cost in plan.backbones:
        rate = "–" if cost.embeddings_per_s is None else f"{cost.embeddings_per_s:,.0f}"
        print(f"{cost.backbone:48} {rate:>10} {cost.gpu_hours:10,.2f} {cost.store_bytes / 1e9:10,.1f}  {cost.held}")
    size = f"store: {plan.store_bytes / 1e9:.1f} GB in {plan.shards:,} shards"
    requests = f"{plan.gets:,} GET, {plan.puts:,} PUT"
    buckets = "embedding requests, if it and the photographs, in tar shards, are in buckets"
    print(wrapped(f"{size}; {buckets}: {requests}"))

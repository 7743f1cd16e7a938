"""Command `plan`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

import torch

from substyle.engine import observability
from substyle.engine.commands.options import changes
from substyle.engine.config import Study, TrackConfig, names_of
from substyle.engine.devices import as_eight_bits
from substyle.engine.embedding.plan import limited
from substyle.engine.embedding.preflight import count_splits
from substyle.engine.embedding.run import embed
from substyle.engine.estimate.forecast import forecasts
from substyle.engine.estimate.plan import CLASSES, SOURCES, Plan
from substyle.engine.estimate.plan import plan as plan_study
from substyle.engine.estimate.roofline import DEFAULT, DEVICES, DISK, GPU, HOST, card_of, device
from substyle.engine.stages.elsewhere import ElsewhereStage
from substyle.engine.stages.registry import stages
from substyle.engine.stages.stage import TrainingStage
from substyle.engine.store.layout import TEST
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.study.file import load_study
from substyle.engine.study.plan import plan_of
from substyle.engine.study.runner import REPORTED, run_study
from substyle.kernels.errors import ConfigError, MissingError
from substyle.kernels.files import scratch
from substyle.pipelines.sources import describe, open_source
from substyle.pipelines.storage import place


def plan(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle plan STUDY.toml`: estimate the study on GPUs by counting what it runs, or here from a sample."""
    study = load_study(options.study, allow_plugins=options.allow_plugins, changes=changes(options))
    photographs, classes, test = _photographs(options, study)
    if options.sample:
        answer = _sampled(options, study, photographs)
    else:
        answer = _counted(options, study, photographs, classes or CLASSES)
    networks = [name for name in names_of(study.backbones) if not name.startswith("control:") and "@" not in name]
    claims = forecasts(study.settings().transformations, test, len(networks))
    answer["forecast"] = {"test": test, "claims": list(map(dataclasses.asdict, claims))}
    _show_forecast(answer["forecast"])
    return answer


def _counted(options: argparse.Namespace, study: Study, photographs: int, classes: int) -> dict[str, Any]:
    """Estimate the study on GPUs, and print it."""
    if options.count > photographs:
        raise ConfigError("--count", options.count, f"at most the number of photographs, {photographs:,}")
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    gpu, remark = device(options.gpu or card_of(card) or DEFAULT), ""
    if not options.gpu and card_of(card) is None:
        found = f"unknown GPU {card}" if card else "no GPU found"
        remark = f"{found}, planning for {DEFAULT}; choose with --gpu: {', '.join(DEVICES)}"
    made = plan_study(study, photographs, gpu, count=options.count, classes=classes)
    remark = "; ".join(filter(None, (remark, _eight_bits(study), _not_counted(study))))
    answer = dataclasses.asdict(made) | {"remark": remark or None, "sources": {"products": gpu.source} | SOURCES}
    _show(made, answer)
    return answer


def _sampled(options: argparse.Namespace, study: Study, photographs: int) -> dict[str, Any]:
    """Run the study on a sample of the photographs in a temporary folder, and scale what it took to all of them.

    Backbones are prepared, networks fine-tuned and a report is written once, however many photographs there are.
    """
    once = {"prepare", REPORTED}
    once |= {stage.name for stage in stages() if isinstance(stage, TrainingStage | ElsewhereStage)}
    sample = min(options.sample, photographs)
    with scratch() as folder, observability.recording() as recorded:
        path = place(folder / "sample.zarr")
        chosen = dataclasses.replace(study, limit=sample, store=None, track=TrackConfig())
        made = plan_of(chosen, options.images, path)
        summary = embed(made, study.backbones, quiet=options.quiet)
        run_study(chosen, folder / "out", images=options.images, store_path=path, quiet=options.quiet)
        store = EmbeddingStore.open(path)
        row = sum(store.settings.chunk_bytes(entry.dim) / store.settings.shard_rows for entry in store.backbones())
    prepared, variants = summary.seconds["prepare"], len(made.pipeline.settings.transformations)
    took = {name: total.wall for (stage, name), total in recorded.totals().items() if stage == "run"}
    took |= {"prepare": prepared, "embed": summary.seconds["total"] - prepared}
    seconds = {
        name: each * (1 if name in once else photographs / summary.images)
        for name, each in took.items()
        if each >= 0.01
    }
    answer: dict[str, Any] = {
        "photographs": photographs,
        "sample": summary.images,
        "variants": variants,
        "seconds": seconds,
        "hours": sum(seconds.values()) / 3600,
        "store_bytes": round(photographs * variants * row),
    }
    print(
        f"{photographs:,} photographs × {variants} variants on {made.pipeline.target.device}: {answer['hours']:.2f} "
        f"hours, scaled from {summary.images}; store: {answer['store_bytes'] / 1e9:.2f} GB before compression"
    )
    print(f"\n{'part':24} {'measured, s':>12} {'hours':>9}")
    for name, each in seconds.items():
        print(f"{name:24} {took[name]:12.1f} {each / 3600:9.3f}")
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


def _show(made: Plan, answer: dict[str, Any]) -> None:
    if answer["remark"]:
        print(answer["remark"])
    print(
        f"{made.photographs:,} photographs × {made.variants} variants on {made.count} × {made.gpu}: "
        f"{made.hours:.2f} hours for embedding, {made.total_hours:.2f} with probes and analysis"
    )
    resources = (GPU, HOST, DISK)
    print(f"\n{'whole study, hours':40} {'all':>7} " + " ".join(f"{name:>7}" for name in resources) + "  limited by")
    for part in made.parts:
        busy = " ".join(f"{part.busy.get(name, 0.0):7.2f}" for name in resources)
        print(f"{f'{part.stage}: {part.name}':40} {part.hours:7.2f} {busy}  {part.limited_by}")
    print(f"{'total':40} {made.total_hours:7.2f}")
    if made.count > 1:
        print("probes and analysis of a backbone run on one GPU, those of several backbones at the same time")
    print("not counted: startup, similarity of backbones, maps, report")
    if made.not_counted:
        print(f"not counted, on the host's other cores: {', '.join(made.not_counted)}")
    print(f"\n{'embedding':48} {'images/s':>10} {'GPU hours':>10} {'GB':>10}  in probes")
    print(f"{'decoding, variants':48} {'':10} {made.variant_hours:10,.2f}")
    for each in made.backbones:
        rate = "–" if each.embeddings_per_s is None else f"{each.embeddings_per_s:,.0f}"
        print(f"{each.backbone:48} {rate:>10} {each.gpu_hours:10,.2f} {each.store_bytes / 1e9:10,.1f}  {each.held}")
    memory = f"{made.memory_bytes / 1e9:.1f} of {made.memory_available_bytes / 1e9:.0f} GB"
    print(f"store: {made.store_bytes / 1e9:.1f} GB in {made.files:,} files; GPU memory for embedding: {memory}")
    print("\nnothing was measured on a GPU:")
    for name, source in answer["sources"].items():
        print(f"{name:14} {source}")

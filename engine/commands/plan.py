"""`plan`."""

from __future__ import annotations

import argparse
from typing import Any

from substyle.engine.estimate.devices import DEFAULT, Efficiency, card_of, device
from substyle.engine.estimate.plan import Plan
from substyle.engine.estimate.plan import plan as plan_study
from substyle.engine.study import Study, load_study
from substyle.kernels.errors import ConfigError
from substyle.pipelines.sources import open_source


def plan(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle plan STUDY.toml`: what the study takes on a GPU, by the roofline."""
    study = load_study(options.study)
    settings = study.settings()
    made = plan_study(
        [choice.name for choice in study.backbones],
        settings.transformations,
        _photographs(options, study),
        device(options.gpu or _present()),
        count=options.count,
        canvas=settings.canvas,
        dtype=study.embed.dtype,
        efficiency=Efficiency(compute=options.compute, bandwidth=options.bandwidth),
    )
    _show(made, options)
    return made.describe()


def _photographs(options: argparse.Namespace, study: Study) -> int:
    if options.photographs:
        return int(options.photographs)
    images = options.images or study.images
    if images is None:
        raise ConfigError("--photographs", "nothing", "their number, or --images with what is to be counted")
    count = len(open_source(images, study.source).records)
    return min(count, study.limit) if study.limit else count


def _present() -> str:
    """The GPU of this machine if it is known, else the default."""
    import torch

    if torch.cuda.is_available():
        return card_of(torch.cuda.get_device_name()) or DEFAULT
    return DEFAULT


def _show(made: Plan, options: argparse.Namespace) -> None:
    answer = made.describe()
    print(
        f"{made.photographs:,} photographs × {made.variants} variants on {made.count} × {made.device.name}: "
        f"{answer['hours']:.2f} hours, {answer['embeddings_per_s']:,.0f} embeddings/s, "
        f"{made.backbone_share:.2f} of the backbones alone; limited by {made.limiting.name}"
    )
    print(f"\n{'for one photograph':48} {'GFLOP':>10} {'MB':>10} {'µs':>10}")
    for stage in made.stages:
        print(f"{stage.name:48} {stage.flop / 1e9:10.1f} {stage.traffic / 1e6:10.1f} {stage.seconds * 1e6:10.1f}")
    print(f"\n{'each backbone, alone':48} {'images/s':>10} {'GPU hours':>10} {'GB':>10}")
    for cost in made.costs():
        rate, hours, size = cost["embeddings_per_s"], cost["gpu_hours"], cost["store_bytes"]
        print(f"{cost['backbone']:48} {'–' if rate is None else f'{rate:,.0f}':>10} {hours:10,.2f} {size / 1e9:10,.1f}")
    backbones = {table.backbone for table in made.tables}
    shared = sum(made.hours(stage) for stage in made.stages if stage.name not in backbones)
    print(f"{'decode and variants, for all of them':48} {'':10} {shared:10,.2f}")
    store = answer["store_bytes"]
    print(
        f"\nstore: {store / 1e9:.1f} GB at {answer['store_bytes_per_s'] / 1e6:.1f} MB/s; "
        f"GPU memory: {made.memory / 1e9:.1f} of {made.device.memory / 1e9:.0f} GB"
    )
    for table in made.tables:
        print(f"probes on {table.backbone}: {table.held}, {table.held_bytes / 1e9:.1f} GB on the GPU")
    print(
        f"\nassumed: {options.compute:.2f} of the peak operations, {options.bandwidth:.2f} of the peak bandwidth; "
        f"nothing of this was run on a GPU"
    )

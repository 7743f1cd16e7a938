"""What settings of probes cost: those that take most of the time, and the cheaper ones of `run --quick`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from substyle.engine.config import Study, names_of
from substyle.engine.embedding.preflight import SplitCounts
from substyle.engine.estimate import probes
from substyle.engine.estimate.probes import ProbedTable
from substyle.engine.estimate.roofline import GPU, Device, slowest
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.dataset import FLOAT16
from substyle.engine.study.file import load_study
from substyle.errors import ConfigError

# A CPU of two cores, which products of the solver and of MLPs reach alike: shares of time are those of operations
_CPU = Device("CPU", 98e9, 98e9, 20e9, 16e9, 1.0, "measured: float32 products of a Xeon")
_WIDTH = 768  # D of a ViT-B/16, before anything is embedded
_OFF = {"rotate": "none", "redraws": 0, "resamples": 0, "mlp_resamples": 0}
_COSTS: dict[str, Callable[[Any], int]] = {
    **dict.fromkeys(("redraws", "resamples", "mlp_resamples", "mlp_steps", "multitask_steps"), int),
    **dict.fromkeys(("mlp_learning_rates", "multitask_learning_rates"), len),
    "widths": sum,
    "rotate": ("none", "networks", "all").index,
}


def quick(study: Study, asked: Collection[str] = ()) -> Study:
    """Return a study of few photographs with those settings of the demo that cost less than its own.

    It has another name and a store of its own: its results are of fewer photographs.

    Args:
        asked: fields that keep their values.
    """
    demo = load_study("demo")
    if "probes" in asked:
        raise ConfigError("--set probes", "a table", "single fields beside --quick, such as probes.redraws=20")
    cheaper = {name: value for name, value in _cheaper(study.probes).items() if f"probes.{name}" not in asked}
    limit = study.limit if "limit" in asked else min(study.limit or demo.limit, demo.limit)
    probed = replace(study.probes, **cheaper)
    return replace(study, name=f"{study.name}-quick", store=None, limit=limit, probes=probed)


def _cheaper(config: ProbeConfig) -> dict[str, Any]:
    """Settings of the demo that cost less."""
    demo = load_study("demo").probes
    both = {name: (getattr(config, name), getattr(demo, name)) for name in _COSTS}
    return {name: theirs for name, (own, theirs) in both.items() if _COSTS[name](theirs) < _COSTS[name](own)}


def costly(study: Study, counts: SplitCounts) -> list[str]:
    """Describe each setting that takes more than half of the time of probes, by counts of operations and rows.

    Time is compared with that of probes where the setting is off, or for grids and steps as in the demo.

    Args:
        counts: of the photographs.
    """
    lines, whole, cheaper = [], _seconds(study, study.probes, counts), _cheaper(study.probes)
    for name, value in (cheaper | _OFF).items():
        share = 1 - _seconds(study, replace(study.probes, **{name: value}), counts) / whole
        if share > 0.5:
            instead = f"; --quick has {cheaper[name]!r}" if name in cheaper else ""
            own = getattr(study.probes, name)
            lines.append(f"probes.{name} = {own!r} takes about {share:.0%} of the time of probes{instead}")
    return lines


def _seconds(study: Study, config: ProbeConfig, counts: SplitCounts) -> float:
    total = sum(counts.total)
    of_splits = [count / total for count in counts.total]
    transformations = study.settings().transformations
    classes, (train, _, test) = len(counts.class_names), of_splits
    table = ProbedTable(_WIDTH, 2, FLOAT16, GPU, transformations, total, classes, train, test)
    names = names_of(study.backbones)
    parts = [probes.parts(table, config, _CPU, backbone=name, others=len(names) - 1) for name in names]
    return sum(slowest(busy)[1] for of_backbone in parts for busy in of_backbone.values())

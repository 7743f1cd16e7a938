"""`bench` and `profile`."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import substyle.engine
from substyle.engine import trace
from substyle.engine.store.files import write_durably
from substyle.kernels.errors import ConfigError

ROOT = Path(substyle.engine.__file__).resolve().parents[1]


def bench(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle bench [NAME …]`."""
    harness = _benchmarks("harness")
    names = options.names or list(harness.BENCHMARKS)
    for name in names:
        if name not in harness.BENCHMARKS:
            raise ConfigError("bench", name, ", ".join(harness.BENCHMARKS))
    out = options.out or (Path("runs") / "bench-quick" if options.quick else harness.RESULTS)
    answers = {name: harness.save(_benchmarks(name), quick=options.quick, out=out) for name in names}
    return {"out": str(out), "benchmarks": answers}


def _benchmarks(name: str) -> ModuleType:
    if not (ROOT / "benchmarks" / "harness.py").is_file():
        raise ConfigError(
            "bench", "an installed wheel", "an editable installation of a checkout, which has benchmarks/"
        )
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return importlib.import_module(f"benchmarks.{name}")


def profile(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle profile STUDY.toml`, or of photographs: run the study and show where its time went."""
    from substyle.engine.commands import pipeline

    with trace.recording() as recorded:
        began = trace.Mark.now()
        answer = pipeline.run(options)
        trace.add("run", "whole run", began)
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

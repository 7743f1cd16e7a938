"""Benchmarks are no part of the installed package: their tests find them at the root of the repository."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

Run = Callable[..., tuple[int, dict[str, Any]]]


def rehearse(out: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Rehearse gpu_check on the CPU; gives the exit code and the document."""
    from benchmarks.gpu_check import rows
    from benchmarks.gpu_check.__main__ import main

    code = main([*arguments, "--fake-device", "--out", str(out)])
    data: dict[str, Any] = json.loads(out.read_text())
    rows.check(data)
    return code, data


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """:func:`rehearse` without TensorRT, which could build for no CPU."""
    from substyle.engine.backbones.runtimes import tensorrt

    monkeypatch.setattr(tensorrt, "installed", lambda: None)
    return lambda *arguments: rehearse(tmp_path / "results" / "gpu.json", *arguments)


@pytest.fixture
def steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The part on probes without fits and whole trainings, which take most of its time."""
    from benchmarks.gpu_check import probe_solver, probe_tables

    for module, name in ((probe_tables, "jobs"), (probe_solver, "correct")):
        monkeypatch.setattr(module, name, lambda bench: iter(()))

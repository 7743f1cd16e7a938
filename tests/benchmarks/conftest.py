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


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Rehearse gpu_check; gives the exit code and the document."""
    from benchmarks.gpu_check import rows
    from benchmarks.gpu_check.__main__ import main

    from substyle.engine.backbones.runtimes import tensorrt

    monkeypatch.setattr(tensorrt, "installed", lambda: None)  # it could build for no CPU

    def runs(*arguments: str) -> tuple[int, dict[str, Any]]:
        out = tmp_path / "results" / "gpu.json"
        code = main([*arguments, "--fake-device", "--out", str(out)])
        data: dict[str, Any] = json.loads(out.read_text())
        rows.check(data)
        return code, data

    return runs

"""The plain script has the transformations of the engine's suite, finds the same accuracies, and stands alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import paper

from substyle.engine.backbones import registry
from substyle.engine.results.model import Estimate
from substyle.engine.study.file import study_of
from substyle.engine.study.runner import run_study
from substyle.pipelines import packaged_photographs
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import load_all

ROOT, SIDE = Path(__file__).parents[2], 96
# task of the script: task and score of the engine
SCORES = {
    "transformation": ("transformation", "accuracy"),
    "kind, seen": ("kind", "seen"),
    "kind, held out": ("kind", "held_out"),
    "class": ("class", "original"),
    "class, transformed": ("class", "transformed"),
}


def test_transformations_have_the_kind_classes_and_roles_of_the_suite() -> None:
    load_all()
    for function, (kind, seen) in paper.SUITE.items():
        known = base.get(function.__name__)
        assert (known.kind, known.role == "train") == (kind, seen)


def test_it_is_short_and_needs_nothing_of_substyle() -> None:
    text = (ROOT / "benchmarks" / "paper.py").read_text()
    assert len(text.splitlines()) <= 300
    assert "import substyle" not in text
    assert "from substyle" not in text


@pytest.mark.slow
def test_accuracies_agree_within_their_intervals(tmp_path: Path) -> None:
    """On the same photographs in the same splits; strengths are drawn anew."""
    photographs, name = tmp_path / "photographs", "package:efficientnet_lite0"
    packaged_photographs.ensure(photographs)
    for path in sorted(photographs.glob("*/*/*.*"))[1::2]:
        path.unlink()
    module = registry.load(name, registry.LoadContext(SIDE, 1, 0)).module
    assert module is not None
    torch.save(module.get_submodule("network").state_dict(), tmp_path / "weights.pth")
    command = [sys.executable, "benchmarks/paper.py", photographs, "--model", "tf_efficientnet_lite0"]
    command += ["--checkpoint", tmp_path / "weights.pth", "--side", SIDE]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=True)
    plain = json.loads(done.stdout)
    study: dict[str, Any] = {
        "name": "paper",
        "suite": ",".join(function.__name__ for function in paper.SUITE),
        "canvas": SIDE,
        "backbones": [{"name": name, "precision": "fp32"}],
        "gallery": 0,
        "probes": {"heads": ["linear"], "rotate": "none", "resamples": 0, "expert": {"equal_width": 0}},
    }
    results = run_study(study_of(study), tmp_path / "out", images=photographs, quiet=True)
    assert plain["photographs"] == results["images"]
    ours = results["backbones"][name]
    for task, (kind, score) in SCORES.items():
        found, own = plain["accuracy"][task], Estimate(**ours[kind]["linear"][score])
        (low, high), (lowest, highest) = found["ci95"], own.over_photographs or (1.0, 0.0)
        assert low <= own.value <= high, task
        assert lowest <= found["accuracy"] <= highest, task
    assert np.mean([plain["accuracy"][task]["accuracy"] for task in SCORES]) > 0.4  # far above chance

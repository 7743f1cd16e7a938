"""Each extension can be removed: nothing else needs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.test_layers import ROOT

FOLDER = ROOT / "engine" / "extensions"
NAMES = sorted(path.name for path in FOLDER.iterdir() if (path / "__init__.py").exists())
STUDY = """
name = "small"
suite = "identity,grayscale,jpeg,brightness"
backbones = ["control:pixels"]
gallery = 1
bootstrap = 100

[probes]
heads = ["linear"]
resamples = 1
redraws = 1
"""


@pytest.mark.slow
@pytest.mark.parametrize("removed", NAMES)
def test_a_study_runs_without(removed: str, tmp_path: Path, two_classes: Path) -> None:
    for folder in ("engine", "kernels", "pipelines", "studies"):
        left_out = shutil.ignore_patterns("__pycache__", *([removed] if folder == "engine" else []))
        shutil.copytree(ROOT / folder, tmp_path / "src" / "substyle" / folder, ignore=left_out)
    for file in (ROOT / "src" / "substyle").glob("*.py"):
        shutil.copy(file, tmp_path / "src" / "substyle")
    assert not (tmp_path / "src" / "substyle" / "engine" / "extensions" / removed).exists()
    (tmp_path / "small.toml").write_text(STUDY)
    command = [sys.executable, "-m", "substyle", "run", "small.toml", "--images", str(two_classes), "--out", "out"]
    given = os.environ | {"PYTHONPATH": str(tmp_path / "src")}
    done = subprocess.run([*command, "--quiet"], check=False, cwd=tmp_path, env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in subprocess.run(
        [sys.executable, "-c", "import substyle; print(substyle.__file__)"], cwd=tmp_path, env=given, text=True,
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["backbones"]["control:pixels"]["transformation"]
    assert "Traceback" not in done.stderr
    assert "None" not in (tmp_path / "out" / "report.html").read_text()

"""`substyle plan`: output, GPU selection and sources of its numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from substyle.engine import cli
from substyle.engine.estimate.roofline import DEVICES

pytestmark = pytest.mark.usefixtures("counted_once")

VIT = "timm:vit_base_patch16_224"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "s.toml"
    path.write_text(f'name = "s"\nbackbones = ["{VIT}", "control:pixels"]\n')
    return path


def planned(
    study: Path, capsys: pytest.CaptureFixture[str], *more: str, gpu: tuple[str, ...] = ("--gpu", "h100")
) -> tuple[str, dict[str, Any]]:
    assert cli.main(["plan", str(study), "--photographs", "1331167", "--json", *gpu, *more]) == 0
    out, shown = capsys.readouterr()
    return shown, json.loads(out)


def test_the_command(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown, answer = planned(study, capsys, "--count", "8", gpu=("--gpu", "a100"))
    assert (answer["gpu"], answer["count"], answer["photographs"]) == ("A100 SXM 80GB", 8, 1_331_167)
    assert f"{answer['hours']:.2f} hours for embedding, {answer['total_hours']:.2f} with probes and analysis" in shown
    assert answer["total_hours"] == pytest.approx(sum(part["hours"] for part in answer["parts"]))
    lines = shown.splitlines()
    for part in answer["parts"]:
        (line,) = (line for line in lines if line.startswith(f"{part['stage']}: {part['name']} "))
        assert line.endswith(part["limited_by"])
    assert "one backbone at a time" in shown
    assert f"store: {answer['store_bytes'] / 1e9:.1f} GB" in shown
    assert answer["forecast"]["test"] == round(1_331_167 * 0.2)
    low, median, high = (f"{100 * each:.3g}" for each in answer["forecast"]["claims"][0]["half"])
    assert f"± {median} points ({low} to {high})" in shown
    assert answer["sources"]["products"] == DEVICES["a100"].source
    for source in answer["sources"].values():
        assert source in shown
        assert source.partition(":")[0] in ("assumed", "counted", "measured", "published")
    assert cli.main(["plan", str(study), "--gpu", "a100"]) == 2
    assert "--photographs is required" in capsys.readouterr().err


def test_a_sample_is_scaled(two_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All stages but preparation and the report grow with the photographs; nothing is left behind."""
    study = tmp_path / "study.toml"
    quick = 'bootstrap = 100\n[probes]\nheads = ["linear"]\ntasks = ["transformation"]\nresamples = 0\n'
    study.write_text(f'name = "n"\nbackbones = ["control:pixels"]\nsuite = "identity,grayscale"\ncanvas = 64\n{quick}')
    command = ["plan", str(study), "--images", str(two_classes), "--sample", "20", "--json", "--quiet"]
    assert cli.main(command) == 0
    out, shown = capsys.readouterr()
    found = json.loads(out)
    assert (found["photographs"], found["sample"], found["variants"]) == (40, 20, 2)
    assert {"embed", "probes", "analysis"} <= found["seconds"].keys()
    assert found["hours"] == pytest.approx(sum(found["seconds"].values()) / 3600)
    assert f"{found['hours']:.2f} hours, scaled from 20" in shown
    (line,) = (line for line in shown.splitlines() if line.startswith("probes "))
    assert float(line.split()[1]) == pytest.approx(found["seconds"]["probes"] / 2, abs=0.06)
    assert found["store_bytes"] == 40 * 2 * 768 * 2  # float16
    assert [each.name for each in tmp_path.iterdir()] == ["study.toml"]

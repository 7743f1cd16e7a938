"""The check of GPU claims, run in a tiny form on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarks.gpu_check.__main__ import PARTS, main
from benchmarks.gpu_check.rows import FAILED

from substyle.engine.backbones.runtimes import tensorrt
from substyle.kernels import noise

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
def test_everything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "installed", lambda: None)
    assert main(["--fake-device", "--out", str(tmp_path / "gpu.json")]) == 0
    data = json.loads((tmp_path / "gpu.json").read_text())
    assert {row["part"] for row in data["rows"]} == set(PARTS)


def test_a_wrong_kernel_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    right = noise.gaussian_noise
    monkeypatch.setattr(noise, "gaussian_noise", lambda *given: right(*given) ^ 1)
    assert main(["--only", "kernels", "--fake-device", "--out", str(tmp_path / "gpu.json")]) == 1
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    failed = [row["name"] for row in rows if row["status"] == FAILED]
    assert failed == ["gaussian_noise, images of 34 × 46", "gaussian_noise, batch 3, side 32"]


def test_without_a_gpu_nothing_is_checked_and_that_is_no_success(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--out", str(tmp_path / "gpu.json")]) == 1
    said = capsys.readouterr()
    assert "NOTHING WAS CHECKED" in said.err
    assert "no CUDA device" in said.err
    assert said.out.count("| skipped |") == len(PARTS)
    assert not list(tmp_path.iterdir())

"""`substyle plan`: output, GPU selection and sources of its numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import the_json

from substyle.engine import cli
from substyle.engine.commands.arguments import BadUsage
from substyle.engine.estimate.measured import fact
from substyle.engine.estimate.roofline import DEVICES

pytestmark = pytest.mark.usefixtures("counted_once")

VIT = "timm:vit_base_patch16_224"
H100_NAME = "NVIDIA H100 80GB HBM3"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """An empty folder for results of gpu-check."""
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "s.toml"
    path.write_text(f'name = "s"\nbackbones = ["{VIT}", "control:pixels"]\n')
    return path


def keep(
    folder: Path, rows: dict[str, dict[str, float]], *, card: str = "h100", created: str = "2026-01-01", **more: bool
) -> None:
    """Write results with facts of rows."""
    about = {"card": card, "device": H100_NAME, "created": created, **more}
    made = [{"name": name, "facts": {fact(field): v for field, v in said.items()}} for name, said in rows.items()]
    data = {"benchmark": "gpu_check", "environment": about, "rows": made}
    (folder / f"gpu-{card}-{created}.json").write_text(json.dumps(data))


def planned(
    study: Path, results: Path, capsys: pytest.CaptureFixture[str], *more: str, gpu: tuple[str, ...] = ("--gpu", "h100")
) -> tuple[str, dict[str, Any]]:
    command = ["plan", str(study), "--photographs", "1331167", "--json", "--measured", str(results), *gpu, *more]
    assert cli.main(command) == 0
    out, shown = capsys.readouterr()
    return shown, json.loads(out)


def test_the_command(study: Path, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown, answer = planned(study, results, capsys, "--count", "8", gpu=("--gpu", "a100"))
    assert (answer["gpu"], answer["count"], answer["photographs"]) == ("A100 SXM 80GB", 8, 1_331_167)
    assert f"{answer['hours']:.2f} hours for embedding, {answer['total_hours']:.2f} with probes and analysis" in shown
    assert answer["total_hours"] == pytest.approx(sum(part["hours"] for part in answer["parts"]))
    for part in answer["parts"]:
        assert f"{part['stage']}: {part['name']}" in shown
        assert f"{part['limited_by']:18} {part['source']}" in shown
    longest = max(answer["parts"], key=lambda part: part["hours"])
    assert f"longest: {longest['name']} {longest['hours']:.2f} ({longest['limited_by']})" in shown
    assert "of several backbones at the same time" in shown
    assert f"{answer['of_backbone_rate']:.2f} of the backbones alone" in shown
    assert answer["forecast"]["test"] == round(1_331_167 * 0.2)
    low, median, high = (f"{100 * each:.3g}" for each in answer["forecast"]["claims"][0]["half"])
    assert f"± {median} points ({low} to {high})" in shown
    assert f"mean variant {answer['mean_variant_us']:.1f} µs" in shown
    assert f"limited by {answer['limiting']}" in shown
    assert all(stage["counted"] in shown for stage in answer["stages"])
    assert all(name in shown for name in answer["busy"])
    assert "nothing was measured on a GPU" in shown
    assert cli.main(["plan", str(study), "--gpu", "a100"]) == 2
    assert "--photographs is required" in capsys.readouterr().err


def test_without_results_all_is_assumed(study: Path, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown, answer = planned(study, results, capsys)
    said = {name: said["from"] for name, said in answer["efficiency"].items()}
    assert set(said) == {"compute", "bandwidth", "decode_bytes", "launch", "replay"}
    assert said["compute"] == DEVICES["h100"].source
    assert answer["efficiency"]["compute"]["value"] == DEVICES["h100"].reached
    for source in said.values():
        assert source in shown
        assert source.partition(":")[0] in ("assumed", "measured", "published")
    assert answer["measurement"] == []
    assert "measured: gpu-" not in shown


def test_the_newest_measurement_of_each_field_is_taken(
    study: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(results, {"decode": {"decode_bytes": 1e8}, "26 variants": {"variants": 0.1}}, created="2025-12-31")
    keep(results, {"ViT-B/16, TensorRT": {"backbones": 0.9}}, card="a100", created="2026-05-05")  # another card
    keep(results, {
        "ViT-B/16, TensorRT, bf16": {"backbones": 0.5},
        "ResNet-50, TensorRT, bf16": {"backbones": 0.3},
        "26 variants in one pass": {"variants": 1.2},
    })  # fmt: skip
    shown, answer = planned(study, results, capsys)
    said = answer["efficiency"]
    assert said["backbones"] == {"value": 0.4, "from": "measured"}  # the median
    assert said["variants"] == {"value": 1.0, "from": "measured"}  # no more than all
    assert said["decode_bytes"] == {"value": 1e8, "from": "measured"}  # of an earlier call
    assert all(said[name]["from"].startswith("assumed: ") for name in ("compute", "bandwidth"))
    assert answer["measurement"] == ["gpu-h100-2025-12-31.json", "gpu-h100-2026-01-01.json"]
    assert f"measured: {', '.join(answer['measurement'])}" in shown
    assumed, _ = planned(study, results, capsys, gpu=("--gpu", "l4"))
    assert "measured: gpu-" not in assumed


def test_a_goal_says_what_is_left(study: Path, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown, answer = planned(study, results, capsys)
    assert (answer["goal"], "goal of" in shown) == (None, False)
    total = answer["total_hours"]
    shown, answer = planned(study, results, capsys, "--goal", "1")
    assert answer["goal"] == 1.0
    assert f"goal of 1 h: exceeded by {total - 1:.2f} h" in shown
    shown, _ = planned(study, results, capsys, "--goal", "500")
    assert f"goal of 500 h: {500 - total:.2f} h to spare" in shown
    for given in ("0", "-1", "inf", "x"):
        with pytest.raises(BadUsage):
            cli.main(["plan", str(study), "--photographs", "9", "--goal", given])
        assert f"argument --goal: got '{given}'; allowed: a number above 0" in capsys.readouterr().err


def test_shares_that_are_given_come_first(study: Path, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(results, {"ViT-B/16, TensorRT": {"backbones": 0.5}, "decode": {"decode_bytes": 1e8}})
    _, answer = planned(study, results, capsys, "--compute", "0.25")
    assert "backbones" not in answer["efficiency"]
    assert answer["efficiency"]["compute"] == {"value": 0.25, "from": "given"}
    assert answer["efficiency"]["decode_bytes"] == {"value": 1e8, "from": "measured"}
    keep(results, {"ViT-B/16, TensorRT": {"backbones": 0.5}})
    _, answer = planned(study, results, capsys, "--bandwidth", "0.5")
    assert answer["measurement"] == []


def test_a_rehearsal_is_no_measurement(study: Path, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(results, {"decode": {"decode_bytes": 1e8}}, fake=True)
    assert cli.main(["plan", str(study), "--photographs", "9", "--gpu", "h100", "--measured", str(results)]) == 1
    assert "gpu-h100-2026-01-01.json: " in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[]", '{"benchmark": "gpu_check"}', '{"benchmark": "x", "environment": {}}'])
def test_results_that_are_none_are_named(
    study: Path, results: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (results / "gpu-x.json").write_text(text)
    assert cli.main(["plan", str(study), "--photographs", "9", "--gpu", "h100", "--measured", str(results)]) == 1
    assert "gpu-x.json: " in capsys.readouterr().err


def test_an_unknown_card_is_refused(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(study), "--photographs", "9", "--gpu", "b200"]) == 2
    assert "--gpu: got 'b200'; allowed: h100, h200, a100, l4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "gpu", "remark"),
    [
        (None, "H100 SXM", "planning for h100; choose with --gpu: h100, h200, a100, l4"),
        ("NVIDIA H100 PCIe", "H100 SXM", "unknown GPU NVIDIA H100 PCIe, planning for h100"),
        ("NVIDIA L4", "L4", None),
    ],
)
def test_the_card_that_is_here(
    study: Path, results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    name: str | None, gpu: str, remark: str | None,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: name is not None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    shown, answer = planned(study, results, capsys, gpu=())
    assert answer["gpu"] == gpu
    if remark is None:
        assert answer["remark"] is None
    else:
        assert remark in answer["remark"]
        assert shown.startswith(answer["remark"])


def test_backbones_in_8_bits_are_counted_as_others(
    study: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, answer = planned(study, results, capsys)
    assert "int8" not in plain
    study.write_text(study.read_text() + '[embed]\nprecision = "int8"\n')
    shown, quantised = planned(study, results, capsys)
    assert "counted as bf16: int8 and fp8" in shown
    assert quantised["hours"] == answer["hours"]


def test_more_gpus_than_photographs_are_refused(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(study), "--gpu", "a100", "--photographs", "10", "--count", "11"]) == 2
    assert "--count: got 11" in capsys.readouterr().err


def test_what_is_not_counted_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "study.toml"
    more = 'corruptions = "imagenet_c@3"\n[finetune]\nbackbones = ["control:random:test_vit"]\nseeds = 2\n'
    study.write_text(f'name = "n"\nbackbones = ["control:random:test_vit"]\nsuite = "identity,jpeg"\n{more}')
    assert cli.main(["plan", str(study), "--photographs", "100", "--gpu", "h100"]) == 0
    assert "not counted: finetune, shift" in capsys.readouterr().out


def test_a_sample_is_extrapolated(two_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "study.toml"
    study.write_text('name = "n"\nbackbones = ["control:pixels"]\nsuite = "identity,grayscale"\ncanvas = 64\n')
    command = ["plan", str(study), "--images", str(two_classes), "--sample", "10", "--json", "--quiet"]
    assert cli.main(command) == 0
    found = the_json(capsys)
    assert (found["photographs"], found["sample"], found["variants"]) == (40, 10, 2)
    assert found["hours"] == pytest.approx(40 * found["seconds_per_photograph"] / 3600)
    assert found["store_bytes"] == 40 * 2 * 768 * 2  # float16
    assert [each.name for each in tmp_path.iterdir()] == ["study.toml"]

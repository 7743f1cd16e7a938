"""The check of GPU claims, run in a tiny form on the CPU: all parts, what is missing, what crashes, what is kept."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.gpu_check import (
    kernels,
    neighbours,
    networks,
    parts,
    pixels,
    probe_ways,
    rows,
    tolerances,
)
from benchmarks.gpu_check.__main__ import main
from benchmarks.gpu_check.bench import TINY, Bench, OutOfTime, card_of
from benchmarks.gpu_check.cases import EXACT, PRINTED, SAMPLED, Tolerance
from benchmarks.gpu_check.clock import Clock
from benchmarks.gpu_check.rows import FAILED, MEASURED, PASSED, SKIPPED, Row
from tests.benchmarks.conftest import Run

from substyle.engine.backbones.runtimes import tensorrt, tensorrt_build, typed_export
from substyle.kernels import dispatch, noise
from substyle.kernels.probe_heads import Heads
from substyle.pipelines.decode import Decoder
from substyle.pipelines.suites import suite

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


def test_everything_runs(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code, data = run()
    failed = [row for row in data["rows"] if row["status"] == FAILED]
    assert (code, failed) == (0, [])
    assert list(data["parts"]) == list(parts.PARTS)
    assert {row["part"] for row in data["rows"]} == set(parts.PARTS)
    measured = {row["part"] for row in data["rows"] if row["status"] == MEASURED}
    assert measured == {"ceilings", "kernels", "pixels", "probes", "neighbours", "runtimes", "end_to_end"}
    assert data["counts"] == {s: sum(row["status"] == s for row in data["rows"]) for s in rows.STATUSES}
    table = capsys.readouterr().out
    assert all(row["name"] in table for row in data["rows"])


def test_the_loop_is_held_against_the_backbone_alone(run: Run) -> None:
    code, data = run("--only", "end_to_end")
    assert code == 0
    by_tensorrt, by_torch = data["rows"]
    assert (by_tensorrt["status"], by_torch["status"]) == (SKIPPED, MEASURED)
    assert by_torch["unit"] == "embeddings"
    assert by_torch["of_ceiling"] == pytest.approx(by_torch["per_s"] / by_torch["ceiling_per_s"])
    assert by_torch["facts"]["goal of that share"] == 0.95
    assert by_torch["text"].startswith("goals ")


def test_every_file_of_triton_kernels_is_covered(run: Run) -> None:
    """Each ``*_triton.py`` has rows of both kinds; a new file needs a case here and a name in this list."""
    files = {path.name for path in (Path(__file__).parents[2] / "kernels").glob("*_triton.py")}
    cases = {
        "difference_triton.py": ("difference",),
        "dropout_triton.py": ("dropout masks", "relu_drop"),
        "gather_triton.py": ("rows of float16", "rows of int8"),
        "noise_triton.py": ("gaussian_noise", "impulse_noise", "shot_noise"),
        "overlay_triton.py": ("overlay",),
        "philox_triton.py": ("bits16",),
        "pointwise_triton.py": ("mean", "colours"),
        "probe_triton.py": ("cross-entropy", "AdamW"),
        "remap_triton.py": ("remap",),
        "screen_triton.py": ("dots", "lines"),
        "warp_triton.py": ("swirl", "grid", "elastic"),
        "zoom_triton.py": ("zoom_blur",),
    }
    assert set(cases) == files
    _, data = run("--only", "kernels", "--only", "probes")
    for name in (name for names in cases.values() for name in names):
        found = {row["status"] for row in data["rows"] if row["name"].startswith(name)}
        assert found == {PASSED, MEASURED}, name


def test_a_wrong_kernel_fails(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    right = noise.gaussian_noise
    monkeypatch.setattr(noise, "gaussian_noise", lambda *given: right(*given) ^ 1)
    code, data = run("--only", "kernels")
    failed = [row["name"] for row in data["rows"] if row["status"] == FAILED]
    assert code == 1
    assert failed == ["gaussian_noise, images of 34 × 46", "gaussian_noise, batch 3, side 32"]


def test_every_variant_is_held_against_the_cpu_and_measured(run: Run) -> None:
    code, data = run("--only", "pixels")
    found = [(row["name"].split(",")[0], row["status"]) for row in data["rows"]]
    assert code == 0
    for name in suite("substance31"):
        assert (name, PASSED) in found
        assert (name, MEASURED) in found
    assert list(tolerances.VARIANTS) == list(suite("substance31"))
    (decoding,) = [row for row in data["rows"] if row["name"].startswith("decode")]
    assert decoding["ceiling"] == "DALI's decoder alone"


def test_wrong_pixels_fail(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One transformation that moves by two levels, and a decoder that accepts everything, on the second device."""
    right_maker = pixels._maker

    def maker(bench: Bench, names: tuple[str, ...], batch: int, device: str, made: Any = None) -> Any:  # noqa: ANN401
        return right_maker(bench, names, batch, device, made) if device == "cpu" else wrong(names)

    def wrong(names: tuple[str, ...]) -> Any:  # noqa: ANN401
        def variants(canvas: torch.Tensor, keys: list[str], test_B: Any = None) -> Iterator[Any]:  # noqa: ANN401
            for variant in right_maker(Bench(CPU, TINY), names, len(keys), "cpu")(canvas, keys, test_B):
                yield replace(variant, pixels_BSSC=variant.pixels_BSSC ^ (2 if variant.name == "swirl" else 0))

        return variants

    def decoders(bench: Bench, batch: int) -> Any:  # noqa: ANN401
        right = Decoder(TINY.canvas, batch, 1)
        return [right, lambda blobs: replace(right(blobs), reasons=[None] * len(blobs))]

    monkeypatch.setattr(pixels, "_device", lambda bench: "another")
    monkeypatch.setattr(pixels, "_maker", maker)
    monkeypatch.setattr(pixels, "_decoders", decoders)
    monkeypatch.setattr(pixels, "_decoding", lambda bench: rows.skipped("pixels", "decoding", "not here"))
    monkeypatch.setattr(pixels, "_rate", lambda *given: rows.skipped("pixels", "rate", "not here"))
    code, data = run("--only", "pixels")
    assert code == 1
    failed = [row["name"] for row in data["rows"] if row["status"] == FAILED]
    assert failed == ["quarantine of damaged files", "swirl"]


def test_without_dali_pixels_are_skipped(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("nvidia.dali")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    code, data = run("--only", "pixels")
    assert code == 0
    reasons = {row["name"]: row["text"] for row in data["rows"] if row["status"] == SKIPPED}
    assert {"canvas", "jpeg", "decoding"} <= set(reasons)
    assert all("not installed" in text and "nvidia.dali" in text for text in reasons.values())


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


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--only", "everything"], device=CPU, sizes=TINY)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert all(name in said for name in parts.PARTS)


def test_without_a_gpu_all_is_skipped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--out", str(tmp_path / "gpu.json")]) == 0
    said = capsys.readouterr()
    assert "no CUDA device" in said.err
    assert said.out.count("| skipped |") == len(parts.PARTS)
    assert not list(tmp_path.iterdir())


def test_tensorrt_rows(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of a TensorRT engine, with a library that stands for it; export and build have tests of their own."""
    made: list[torch.nn.Module] = []

    def graph(module: Any, precision: Any, *, canvas: int, batch: int) -> SimpleNamespace:  # noqa: ANN401
        made.append(typed_export.Typed(module, precision).eval())
        return SimpleNamespace(SerializeToString=lambda: b"graph")

    class Engine:
        stream = None

        def __init__(self, engine: bytes, device: torch.device) -> None:
            assert engine == b"engine of graph"

        def __call__(self, canvas: torch.Tensor) -> np.ndarray:  # type: ignore[type-arg]
            with torch.no_grad():
                return np.asarray(made[-1](canvas).numpy())

        start = __call__

    monkeypatch.setattr(tensorrt_build, "installed", lambda: "tensorrt")
    monkeypatch.setattr(tensorrt_build, "build", lambda onnx, *, batch, canvas: b"engine of " + onnx)
    monkeypatch.setattr(typed_export, "typed_graph", graph)
    monkeypatch.setattr(tensorrt, "TensorRTGraph", Engine)
    code, data = run("--only", "runtimes")
    assert code == 0
    found = [row for row in data["rows"] if "TensorRT" in row["name"]]
    assert [row["status"] for row in found] == [PASSED, MEASURED]
    assert list(found[1]["peers"]) == ["eager torch, bf16, channels_last"]


@pytest.mark.parametrize("right", [True, False])
def test_the_engine_s_search(run: Run, monkeypatch: pytest.MonkeyPatch, right: bool) -> None:
    """As where FAISS has a GPU, with a search that stands for it."""
    found = pytest.importorskip("substyle.engine.analysis.neighbours")
    device_search = pytest.importorskip("substyle.engine.analysis.device_search")
    pytest.importorskip("faiss")
    monkeypatch.setattr(found.device, "resources", object)

    def search(query: Any, bank: Any, k: int) -> Any:  # noqa: ANN401
        best = neighbours.search(torch.from_numpy(bank), torch.from_numpy(query), k)[1].numpy()
        return best if right else np.repeat(best[:, :1], k, axis=1)

    def search_tensors(query: torch.Tensor, bank: torch.Tensor, k: int) -> torch.Tensor:
        best = neighbours.search(bank.float(), query.float(), k)[1]
        return best if right else best[:, :1].expand(-1, k)

    monkeypatch.setattr(found, "search", search)
    monkeypatch.setattr(device_search, "search", search_tensors)
    code, data = run("--only", "neighbours")
    for what, searches in (("FAISS", 1), ("search of tensors", 2)):
        statuses = [row["status"] for row in data["rows"] if what in row["name"]]
        assert statuses == [PASSED if right else FAILED, MEASURED] * searches
    assert code == (0 if right else 1)


def test_launches_are_counted_and_the_way_is_given_back() -> None:
    before, ran = dispatch.launch, []

    class Kernel:
        def __getitem__(self, programs: tuple[int, int]) -> Callable[..., None]:
            return lambda *arguments, **constants: ran.append(programs)

    def work() -> torch.Tensor:
        x = torch.zeros(1)
        dispatch.launch(Kernel(), (1, 2), x, N=3)
        dispatch.launch(Kernel(), (3, 4), x, N=3)
        return x

    assert kernels.launched(work)[1] == len(ran) == 2
    assert dispatch.launch is before


def test_the_clock_of_a_gpu_times_between_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a CUDA that only writes down what it is asked."""
    said: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            said.append("event")

        def synchronize(self) -> None:
            said.append("wait")

        def elapsed_time(self, end: Event) -> float:
            return 6.0  # milliseconds

    for name in ("device", "stream"):
        monkeypatch.setattr(torch.cuda, name, nullcontext)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: said.append("sleep"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: said.append("wait"))
    timed = Clock(torch.device("cuda"), 2).seconds(lambda: said.append("work"), warm=1, flush=False, calls=3)
    assert timed == {"median": 0.002, "p20": 0.002, "p80": 0.002, "repeats": 2}
    assert said == ["work", "wait", *["sleep", "event", "work", "work", "work", "event", "wait"] * 2]
    said.clear()
    Clock(torch.device("cuda"), 1).seconds(lambda: said.append("work"), warm=0, flush=False, ahead=False)
    assert said == ["wait", "event", "work", "event", "wait"]


@pytest.mark.parametrize(
    ("got", "tolerance", "good"),
    [
        ([5.0, 7.0], EXACT, True),
        ([5.0, 7.1], EXACT, False),
        ([5.0, 8.0], SAMPLED, True),  # one value may always differ
        ([6.0, 8.0], SAMPLED, False),
        ([5.0, 9.0], SAMPLED, False),
        ([5.0, 9.0], PRINTED, False),
        ([5.0, 9.0], Tolerance(1, 0.5, 0.5), True),
        ([5.0, float("nan")], Tolerance(1, 0.0, 0.9), False),
    ],
)
def test_verdicts(got: list[float], tolerance: Tolerance, good: bool) -> None:
    assert kernels.verdict(torch.tensor(got), torch.tensor([5.0, 7.0]), tolerance)[0] is good


def test_embeddings_are_compared_without_their_mean() -> None:
    reference = torch.randn(8, 4) + 100
    assert networks.compared(reference, reference).least > 0.999999
    assert networks.compared(reference + torch.randn(8, 4), reference).least < 0.99
    reference_and_none = reference.clone()
    reference_and_none[3] = float("nan")
    assert networks.compared(reference_and_none, reference).least == -1.0


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", None),
        ("cpu", None),
    ],
)
def test_cards_by_the_names_of_their_drivers(name: str, card: str | None) -> None:
    assert card_of(name) == card


def test_ceilings_of_a_known_card() -> None:
    bench = Bench(CPU, TINY)
    bench.__dict__["name"] = "NVIDIA H100 80GB HBM3"
    found, basis = kernels.ceiling(bench, kernels.Least(1, 10**15))
    assert found == pytest.approx(10**15 / 66.9e12)
    assert "data sheet" in basis
    assert kernels.ceiling(bench, kernels.Least(10**9, 1))[1] == "the measured copy"


def test_time_that_is_left() -> None:
    bench = Bench(CPU, TINY)
    bench.require(1e6)
    bench.deadline = time.monotonic() - 1
    with pytest.raises(OutOfTime, match="0 s of this part's time"):
        bench.require(1.0)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"schema": 0}, "schema"),
        ({"rows": None}, "rows"),
        ({"rows": [{"status": "good"}]}, "status"),
        ({"rows": [{"status": SKIPPED, "text": ""}]}, "text"),
        ({"rows": [{"status": MEASURED, "text": "", "unit": "", "per_s": 1.0, "seconds": {}}]}, "per_s"),
    ],
)
def test_the_schema_refuses(change: dict[str, Any], field: str) -> None:
    good = rows.document({}, [Row("part", "name", PASSED, facts={"off": float("nan")})], {})
    rows.check(good)
    assert json.loads(json.dumps(good, allow_nan=False))["rows"][0]["facts"] == {"off": "nan"}
    with pytest.raises(ValueError, match=field):
        rows.check({**good, **change})


def test_ratios() -> None:
    row = Row("part", "a | b", MEASURED, unit="images", per_s=50.0, ceiling_per_s=200.0, ceiling="x", peers={"p": 25.0})
    assert row.of_ceiling == 0.25
    assert row.times_faster == {"p": 2.0}
    assert "| part | a / b | measured | 50 images/s | 0.25 of x | 2.00 × p |" in rows.table([row])

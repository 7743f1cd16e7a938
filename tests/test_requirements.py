"""Locked versions, and their installation by uv or pip."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.kernels.test_ahead_of_time import PINNED

REQUIREMENTS = Path(__file__).parents[1] / "requirements"
SPEC = importlib.util.spec_from_file_location("install", REQUIREMENTS / "install.py")
assert SPEC is not None
assert SPEC.loader is not None
install = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(install)


def locked(name: str) -> set[str]:
    return set((REQUIREMENTS / name).read_text().replace("\\\n", "").splitlines())


def test_what_the_demo_runs_is_locked_at_the_versions_of_all() -> None:
    assert {line.split("==")[0] for line in locked("py3.11-cpu.txt")} >= {"numpy", "setuptools", "timm", "zarr"}
    assert locked("py3.11-cpu.txt") < locked("py3.11-cpu-dev.txt")


def test_every_locked_package_has_hashes() -> None:
    for file in (*REQUIREMENTS.glob("py*.txt"), REQUIREMENTS / "uv.txt", REQUIREMENTS / "weights.txt"):
        lines = [line for line in locked(file.name) if "==" in line]
        assert lines, file
        assert [line for line in lines if "--hash=sha256:" not in line] == [], file


def test_uv_is_given_what_pip_is_configured_with() -> None:
    listing = r"""
:env:.find-links='/wheels https://host/wheels'
global.cert='/ca.pem'
global.find-links='/others'
global.constraint='\n/a.txt\n/b.txt'
install.index-url='https://install/simple'
global.index-url='https://global/simple'
global.timeout='9'
freeze.constraint='/c.txt'
"""
    assert install.settings(listing) == {
        "UV_FIND_LINKS": "/wheels,https://host/wheels",
        "SSL_CERT_FILE": "/ca.pem",
        "UV_CONSTRAINT": "/a.txt /b.txt",
        "UV_DEFAULT_INDEX": "https://install/simple",
    }
    assert install.settings("") == {}
    several = {"UV_INDEX": "https://a https://b", "UV_INDEX_STRATEGY": "unsafe-best-match"}
    assert install.settings(":env:.extra-index-url='https://a https://b'") == several


@pytest.mark.parametrize(
    ("fails", "ran"),
    [((), ["pip", "uv"]), (("uv.txt",), ["pip", "pip"]), (("uv",), ["pip", "uv", "pip"])],
    ids=["with uv", "uv cannot be installed", "uv fails"],
)
def test_pip_installs_where_uv_cannot(fails: Sequence[str], ran: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def run(command: list[str], env: dict[str, str] | None = None, **_: object) -> subprocess.CompletedProcess[str]:
        if command[3:] == ["config", "list"]:
            return subprocess.CompletedProcess(command, 0, "global.constraint='/c.txt'\n")
        commands.append(command[2])
        assert env is None or ("UV_CONSTRAINT" in env) == ("--require-hashes" not in command)
        failed = any(command[2] == name or command[-1].endswith(f"/{name}") for name in fails)
        return subprocess.CompletedProcess(command, int(failed))

    monkeypatch.delenv("UV_CONSTRAINT", raising=False)
    monkeypatch.setattr(subprocess, "run", run)
    for arguments in (["-e", ".[cpu]"], ["--no-deps", "--require-hashes", "-r", "a.txt"]):
        commands.clear()
        assert install.main(arguments) == 0
        assert commands == ran


@pytest.mark.slow
@pytest.mark.parametrize(("torch", "triton"), PINNED.items())
def test_the_extra_gpu_resolves_with_the_torch_that_is_there(torch: str, triton: str, tmp_path: Path) -> None:
    """No other torch and no other CUDA, but for what FAISS needs."""
    (tmp_path / "torch.txt").write_text(f"torch=={torch}.0\n")
    resolve = [sys.executable, "-m", "uv", "pip", "compile", "--no-annotate", "--no-header", "--no-python-downloads"]
    resolve += ["--python-version", "3.12", "--python-platform", "x86_64-unknown-linux-gnu", "--extra", "gpu"]
    resolve += ["--extra", "weights", "-c", "torch.txt", str(REQUIREMENTS.parent / "pyproject.toml")]
    done = subprocess.run(resolve, check=False, capture_output=True, text=True, cwd=tmp_path)
    unreachable = ("No module named uv", "Failed to fetch", "error sending request")
    if done.returncode and any(words in done.stderr for words in unreachable):
        pytest.skip(f"no package index can be asked: {done.stderr}")
    assert done.returncode == 0, done.stderr
    versions = dict(line.split("==") for line in done.stdout.splitlines() if "==" in line)
    assert (versions["torch"], versions["triton"]) == (f"{torch}.0", triton)
    assert versions["nvidia-dali-cuda130"].startswith("2.")
    assert {name for name in versions if name.endswith("-cu12")} == {
        "nvidia-cublas-cu12", "nvidia-cuda-nvrtc-cu12", "nvidia-cuda-runtime-cu12", "nvidia-curand-cu12"
    }  # fmt: skip

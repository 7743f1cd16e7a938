"""Locked versions, and their installation by uv or pip."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

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

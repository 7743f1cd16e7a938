"""The wheel has all that the package opens, and works in a folder without the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import substyle

ROOT = Path(__file__).parents[1]
FOLDERS = ("src", "kernels", "pipelines", "engine", "studies")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the checkout: a build in the checkout would take files of earlier builds."""
    checkout = tmp_path_factory.mktemp("checkout")
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, checkout / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", str(out), str(checkout)], check=True)
    (made,) = out.glob("*.whl")
    return made


def test_the_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        assert f"\nVersion: {substyle.__version__}\n" in file.read(metadata).decode()
    found = [path for part in FOLDERS for path in (ROOT / part).rglob("*") if path.is_file() and not path.is_symlink()]
    # jobs of SLURM and Kubernetes are examples to copy from the repository
    left_out = {".pyc", ".sh", ".yaml"}
    ours = {path.relative_to(ROOT) for path in found if path.suffix not in left_out and "egg-info" not in str(path)}
    expected = {str(path) if path.parts[0] == "src" else f"src/substyle/{path}" for path in ours}
    assert names == {name.removeprefix("src/") for name in expected}
    for part in ("engine/report/templates/style.css", "kernels/philox_native.c", "studies/study.schema.json"):
        assert f"substyle/{part}" in names


def test_citation_and_changelog_have_the_version_of_the_code() -> None:
    assert f"\nversion: {substyle.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    headings = [line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## ")]
    assert headings[0].split()[1] == substyle.__version__


@pytest.mark.slow
def test_an_installed_wheel_runs_the_demo_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    target, folder = tmp_path / "site", tmp_path / "empty"
    folder.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*pip, str(wheel)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(target)}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "substyle", *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    located = [sys.executable, "-c", "import substyle.engine; print(substyle.engine.__file__)"]
    where = subprocess.run(located, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout
    assert where.startswith(str(target))
    assert "variants" in run("--help")
    assert len(run("transforms").splitlines()) == 31
    answer = json.loads(run("run", "smallest", "--packaged", "--json"))
    assert answer["images"] == 48
    assert (folder / "runs" / "smallest" / "report.html").stat().st_size > 100_000
    assert json.loads(run("run", "smallest", "--images", "runs/photographs", "--json"))["images"] == 48

"""Code of other people: compiled artefacts, plug-ins, hubs, and what other users of the machine can reach."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.security.conftest import Outside

import substyle
from substyle import files
from substyle.engine import cache
from substyle.engine.backbones.runtimes import torch_compile
from substyle.engine.cli import main
from substyle.engine.config import ExecutorConfig
from substyle.engine.embedding import ray_cluster
from substyle.engine.stages import at_once
from substyle.engine.study.file import load_study
from substyle.errors import ConfigError
from substyle.files import UnsafeFileError
from substyle.kernels import native
from substyle.pipelines.libraries.processes import Pool
from substyle.pipelines.processes import Block

# --- a cache that others can write to ---------------------------------------------------------------------------------

OTHER = 12345  # a user id


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache that does not exist yet."""
    monkeypatch.setenv("SUBSTYLE_CACHE", str(tmp_path / "cache"))
    native.load.cache_clear()
    yield tmp_path / "cache"
    native.load.cache_clear()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_cache_is_for_this_user_alone(own_cache: Path) -> None:
    before = os.umask(0)
    try:
        cache.write("gates/x.json", b"1")
        native.load("philox_native")
    finally:
        os.umask(before)
    for path in (own_cache, *own_cache.rglob("*")):
        assert mode(path) & 0o077 == 0, path
    assert (own_cache / "gates" / "x.json").is_file()
    assert native.load("philox_native") is None or list((own_cache / "native").glob("*.so"))


def writable(path: Path) -> None:
    path.chmod(0o777)


def of_another_user(path: Path) -> None:
    os.chown(path, OTHER, OTHER)


def replaced_by_a_link(path: Path) -> None:
    path.rename(path.with_name(f"{path.name}-moved"))
    path.symlink_to(f"{path.name}-moved")


CHANGES = (
    writable,
    pytest.param(of_another_user, marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root changes owners")),
)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", [".", "native", "native/*.so"])
def test_a_native_library_that_others_can_change_is_not_loaded(own_cache: Path, change: object, name: str) -> None:
    if native.load("philox_native") is None:
        pytest.skip("no C compiler")
    for path in own_cache.glob(name) if name != "." else [own_cache]:
        change(path)  # type: ignore[operator]
    native.load.cache_clear()
    with pytest.raises(UnsafeFileError, match=r"another user|writable by other users"):
        native.load("philox_native")


@pytest.mark.parametrize("change", [*CHANGES, replaced_by_a_link])
@pytest.mark.parametrize("name", ["gates", "gates/x.json"])
def test_an_entry_that_others_can_change_is_not_read(own_cache: Path, change: object, name: str) -> None:
    cache.write("gates/x.json", b"1")
    assert cache.read("gates/x.json") == b"1"
    change(own_cache / name)  # type: ignore[operator]
    if change is replaced_by_a_link and name == "gates":
        with pytest.raises(UnsafeFileError):
            cache.write("gates/x.json", b"2")
        return
    with pytest.raises((UnsafeFileError, OSError)):
        cache.read("gates/x.json")


def test_links_in_the_cache_are_not_followed(own_cache: Path, outside: Outside) -> None:
    cache.write("gates/x.json", b"1")
    (own_cache / "gates" / "y.json").symlink_to(outside.secret)
    (own_cache / "gates" / "z.json.lock").symlink_to(outside.secret)
    (own_cache / "graphs").symlink_to(outside.path)
    cache.write("gates/y.json", b"2")
    assert files.is_regular(own_cache / "gates" / "y.json")
    with pytest.raises(OSError, match=r"symbolic links"):
        cache.fetch_once("gates/z.json", lambda: b"3")
    with pytest.raises(UnsafeFileError):
        cache.write("graphs/x", b"4")
    cache.clean()


FOLDERS = """
import os, sys, tempfile
sys.path.insert(0, {root!r})
import substyle.{module}
import torch, torch._inductor.codecache
from torch._inductor.runtime.cache_dir_utils import cache_dir
print(cache_dir(), os.environ["TRITON_CACHE_DIR"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("module", ["engine.backbones.runtimes.torch_compile", "kernels.native", "engine.cuda"])
def test_torch_loads_compiled_code_from_our_cache(tmp_path: Path, module: str) -> None:
    """And not from a folder of a foreseeable name in $TMPDIR, which another user may have made."""
    environment = {k: v for k, v in os.environ.items() if k not in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
    environment |= {"SUBSTYLE_CACHE": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
    script = FOLDERS.format(root=str(Path(substyle.__file__).parents[1]), module=module)
    ran = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [str(tmp_path / "cache" / name) for name in ("inductor", "triton")]


@pytest.mark.parametrize("variable", ["TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"])
def test_torch_does_not_compile_in_a_folder_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    import torch

    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    files.require_compiler_caches()
    assert all(mode(path) == 0o700 for path in tmp_path.iterdir())
    writable(tmp_path / variable)
    with pytest.raises(UnsafeFileError, match=variable):
        torch_compile.compiled(torch.nn.Identity(), torch.zeros(1), "default")


def test_importing_the_package_does_not_import_torch(tmp_path: Path) -> None:
    script = "import substyle, sys; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


# --- Ray --------------------------------------------------------------------------------------------------------------


def test_ray_is_for_this_user_alone_and_imports_nothing_of_the_current_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray gives its own folder mode 0777, and its workers import from the folder of the driver."""
    ray = pytest.importorskip("ray")
    given: dict[str, Any] = {}

    def init(*, _temp_dir: str, **options: object) -> None:
        given.update(options, place=Path(_temp_dir), safe=os.environ["PYTHONSAFEPATH"])
        given["place"].mkdir()
        given["place"].chmod(0o777)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with ray_cluster.joined(ExecutorConfig("ray"), {"CPU": 1.0}):
        folder = given["place"].parent
        assert mode(folder) == 0o700
        assert folder != Path("/tmp")
        # the longest socket of Ray must have a path of less than 108 bytes
        longest = "session_2026-12-31_23-59-59_999999_4194304/sockets/raylet.4194304"
        assert len(str(given["place"] / longest)) < 108
        assert given["safe"] == "1"
        assert given["job_config"]._runtime_env_has_working_dir()  # Ray would add the current folder otherwise
        assert not given["job_config"]._py_driver_sys_path
    assert not folder.exists()


# --- plug-ins ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study of somebody else, with a plug-in that leaves a trace."""
    (tmp_path / "p.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    file = tmp_path / "s.toml"
    file.write_text('name = "s"\nbackbones = ["control:pixels"]\nsuite = "identity"\nplugins = ["p.py"]\n')
    return file


def test_plug_ins_of_a_study_run_with_permission(
    study: Path,
    embedded: Path,
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("SUBSTYLE_ALLOW_PLUGINS", raising=False)
    more = f"{embedded} --study {study} --out {tmp_path / 'out'}"
    for words in (
        f"plan {study} --photographs 5",
        f"run {study} --images {photographs} --out {tmp_path / 'out'}",
        f"report {more}",
        *(f"stage {name} {more}" for name in ("probes", "analysis,similarity", "adapt", "attack")),
    ):
        assert main([*words.split(), "--quiet"]) == 2, words
        assert "pass --allow-plugins" in capsys.readouterr().err, words
    assert not (tmp_path / "ran").exists()


def test_permission_for_plug_ins(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUBSTYLE_ALLOW_PLUGINS", raising=False)
    for value in ("", "0", "yes"):
        monkeypatch.setenv("SUBSTYLE_ALLOW_PLUGINS", value)
        with pytest.raises(ConfigError, match="plugins"):
            load_study(study)
    assert load_study(study, allow_plugins=True).plugins == (tmp_path / "p.py",)
    monkeypatch.setenv("SUBSTYLE_ALLOW_PLUGINS", "1")
    load_study(study).settings()
    assert (tmp_path / "ran").exists()


# --- hubs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["timm:hf-hub:attacker/tracker", "timm:vit_small_patch16_224.dino", "open_clip:hf-hub:attacker/tracker"]
)
def test_a_probe_does_not_choose_what_is_contacted(
    tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    import numpy as np
    import torch
    from huggingface_hub import constants

    from substyle.engine.probes.checkpoint import save_probe
    from substyle.engine.probes.dataset import Standardizer
    from substyle.kernels.probe_heads import Heads

    heads = Heads(torch.zeros(1, 2, 3), torch.zeros(1, 2), None, None)
    standard = Standardizer(np.zeros(3, np.float32), np.ones(3, np.float32))
    probe = tmp_path / "p.safetensors"
    outputs = {"transformation": ("identity", "jpeg")}
    save_probe(probe, heads, standard, task="transformation", head="linear", outputs=outputs, backbone=name, setting={},
               calibration={"transformation": {"temperature": 1.0}}, extra={"network": {"weights": "w"}})  # fmt: skip
    contacted: list[object] = []

    def connect(*arguments: object, **_: object) -> None:
        contacted.append(arguments)
        raise OSError("no network")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for owner, what in ((socket, "create_connection"), (socket, "getaddrinfo"), (socket.socket, "connect")):
        monkeypatch.setattr(owner, what, connect)
    assert main(["predict", str(probe), str(photographs), "--quiet"]) == 1
    assert contacted == []
    assert "--download" in capsys.readouterr().err
    assert not constants.HF_HUB_OFFLINE
    assert main(["predict", str(probe), str(photographs), "--download", "--quiet"]) == 1
    assert contacted


@pytest.mark.parametrize("pool", ["library", "stage"])
def test_processes_that_are_started_import_nothing_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: str
) -> None:
    (tmp_path / "pickle.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    if pool == "library":
        started = Pool(1)
        assert started.submit(str, "done").result() == "done"
        started.end()
    else:
        units = at_once._Pool(at_once.Places(1, 1), Block(8))
        assert units.compute(0, Path.exists, tmp_path) is True
        units.end(stopped=False)
    assert not (tmp_path / "ran").exists()
    assert dict(os.environ) == before


def test_the_program_imports_nothing_of_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "argparse.py").write_text("print('ran')")
    command = [sys.executable, "-m", "substyle", "--version"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "ran" not in ran.stdout


def test_the_folder_of_ray_is_for_this_user_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray gives its own folder mode 0777."""
    ray = pytest.importorskip("ray")
    seen: list[Path] = []

    def init(*, _temp_dir: str, **_: object) -> None:
        place = Path(_temp_dir)
        place.mkdir()
        place.chmod(0o777)
        seen.append(place)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with ray_cluster.joined(ray_cluster.ExecutorConfig(kind="ray"), {}):
        assert mode(seen[0].parent) == 0o700
        assert seen[0].parent != Path("/tmp")
        # the longest socket of Ray must have a path of less than 108 bytes
        longest = "session_2026-12-31_23-59-59_999999_4194304/sockets/raylet.4194304"
        assert len(str(seen[0] / longest)) < 108
    assert not seen[0].parent.exists()


def test_workers_of_ray_import_nothing_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    given: dict[str, Any] = {}
    monkeypatch.setattr(ray, "init", lambda **options: given.update(options, safe=os.environ["PYTHONSAFEPATH"]))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # by another test
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with ray_cluster.joined(ExecutorConfig("ray"), {"CPU": 1.0}):
        assert given["safe"] == "1"
        assert given["job_config"]._runtime_env_has_working_dir()  # Ray would add the current folder otherwise
        assert not given["job_config"]._py_driver_sys_path

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import photograph
from torch import nn

from substyle.engine import cache
from substyle.engine.backbones.export import Preprocessed, export
from substyle.engine.backbones.runtimes.openvino import OpenVINOGraph
from substyle.engine.backbones.spec import IMAGENET_MEAN, IMAGENET_STD

SIDE = 32


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SUBSTYLE_CACHE", str(tmp_path))
    return tmp_path


def damages(path: Path) -> list[bytes]:
    """Kinds of damage: truncation, a flipped bit, an empty file, a file of an older version."""
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    return [whole[:-1], whole[: len(whole) // 2], whole[:9], b"", bytes(flipped), whole[40:], b"x" * len(whole)]


def test_fetch_makes_once() -> None:
    made: list[int] = []

    def make() -> bytes:
        made.append(1)
        return b"data"

    assert cache.fetch("a/b", make) == cache.fetch("a/b", make) == b"data"
    assert len(made) == 1


def test_a_damaged_entry_is_made_anew_and_said(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache.fetch("a/b", lambda: b"what it is" * 10)
    whole = (own / "a/b").read_bytes()
    for damaged in damages(own / "a/b"):
        (own / "a/b").write_bytes(damaged)
        assert cache.fetch("a/b", lambda: b"what it is" * 10) == b"what it is" * 10
        assert "a/b: checksum mismatch" in capsys.readouterr().err
        assert (own / "a/b").read_bytes() == whole
    assert cache.read("a/b") is not None
    assert capsys.readouterr().err == ""


def test_a_failed_write_leaves_nothing(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("substyle.files.os.replace", full)
    with pytest.raises(OSError, match="No space"):
        cache.write("a/b", b"data")
    assert [path for path in own.rglob("*") if path.is_file()] == []


def test_a_renamed_module_changes_the_key(tmp_path: Path) -> None:
    package = Path(cache.__file__).parents[1]
    for name in ("kernels", "pipelines", "engine"):
        shutil.copytree(package / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    found = [cache.hash_of(tmp_path)]
    assert found[0] == cache.code_hash()
    for module in (
        "kernels/native",
        "kernels/philox_native",
        "engine/backbones/families/timm",
        "engine/embedding/loop",
    ):
        source = next(path for path in (tmp_path / f"{module}.py", tmp_path / f"{module}.c") if path.exists())
        source.rename(source.with_stem("renamed"))
        found.append(cache.hash_of(tmp_path))
        source.with_stem("renamed").rename(source)
        (tmp_path / "kernels" / "philox_native.c").write_text(module)
        found.append(cache.hash_of(tmp_path))
    assert len(set(found)) == len(found)
    shutil.rmtree(tmp_path / "engine" / "backbones")
    with pytest.raises(FileNotFoundError, match="no source code"):
        cache.hash_of(tmp_path)


def graph() -> bytes:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    module = Preprocessed(network, canvas=SIDE, side=SIDE, mean=IMAGENET_MEAN, std=IMAGENET_STD).eval()
    return bytes(export(module, canvas=SIDE, batch=2).SerializeToString())


def test_a_blob_computes_the_same_bits_and_is_the_key_s_own(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx = graph()
    pixels = np.stack([np.array(photograph(i, SIDE, SIDE)) for i in range(2)])

    def run(**how: object) -> np.ndarray:  # type: ignore[type-arg]
        made = OpenVINOGraph(onnx, **{"precision": "fp32", "threads": 1, "cache_dir": "blobs", **how})  # type: ignore[arg-type]
        return next(iter(made(pixels).values()))

    fresh = run(cache_dir=None)
    np.testing.assert_array_equal(run(), fresh)
    (blob,) = (own / "blobs").iterdir()
    np.testing.assert_array_equal(run(), fresh)
    assert len(list((own / "blobs").iterdir())) == 1
    for damaged in damages(blob):
        blob.write_bytes(damaged)
        np.testing.assert_array_equal(run(), fresh)
        assert "checksum mismatch" in capsys.readouterr().err
    for i, how in enumerate(({"precision": "bf16"}, {"streams": 2, "threads": 2}, {"identity": "other"})):
        run(**how)
        assert len(list((own / "blobs").iterdir())) == i + 2


def test_a_blob_that_openvino_refuses_is_compiled_anew(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx = graph()
    first = OpenVINOGraph(onnx, precision="fp32", threads=1, cache_dir="blobs")
    (blob,) = (own / "blobs").iterdir()
    cache.write(f"blobs/{blob.name}", b"whole, but no blob")
    second = OpenVINOGraph(onnx, precision="fp32", threads=1, cache_dir="blobs")
    assert blob.name in capsys.readouterr().err
    assert second.inputs == first.inputs
    OpenVINOGraph(onnx, precision="fp32", threads=1, cache_dir="blobs")
    assert capsys.readouterr().err == ""


def test_a_graph_is_not_asked_for_where_a_blob_is_kept() -> None:
    onnx = graph()
    OpenVINOGraph(lambda: onnx, precision="fp32", threads=1, cache_dir="blobs", identity="x")
    OpenVINOGraph(lambda: pytest.fail("read again"), precision="fp32", threads=1, cache_dir="blobs", identity="x")


MAKER = """
import os, sys, time
import subprocess
import sys
from pathlib import Path
from substyle.engine import cache

def make():
    with Path(sys.argv[1]).open("a") as said:
        said.write("made\\n")
    time.sleep(0.3)
    return os.urandom(1 << 16)

Path(sys.argv[1] + f".{os.getpid()}").touch()
while len(list(Path(sys.argv[1]).parent.glob("said.*"))) < 3:
    time.sleep(0.01)
sys.stdout.write(cache.fetch_once("engines/a.engine", make).hex())
"""


def test_of_several_processes_one_makes_it_and_all_get_the_same(own: Path) -> None:
    command = [sys.executable, "-c", MAKER, str(own / "said")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(answers) == 1
    assert len(answers.pop()) == 2 << 16
    assert (own / "said").read_text() == "made\n"


def test_where_the_maker_dies_the_next_one_makes_it(own: Path) -> None:
    def die() -> bytes:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.fetch_once("engines/a.engine", die)
    assert cache.fetch_once("engines/a.engine", lambda: b"engine") == b"engine"
    assert cache.fetch_once("engines/a.engine", die) == b"engine"


def test_the_folder_is_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBSTYLE_CACHE", str(tmp_path / "mine"))
    assert cache.root() == tmp_path / "mine"
    monkeypatch.delenv("SUBSTYLE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.root() == tmp_path / "xdg" / "substyle"

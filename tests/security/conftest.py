"""A folder that nothing may touch, and things that somebody else has made: stores, run folders and photographs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import jpeg, photograph
from tests.engine.store.test_verify import finished

import substyle
from substyle.pipelines.storage import LocalPlace

_watched: list[tuple[str, list[str]]] = []
_READS = ("open", "os.listdir", "os.scandir")
_CHANGES = ("os.remove", "os.rmdir", "os.rename", "os.mkdir", "os.link", "shutil.rmtree")  # of a link, not its target


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if not _watched or event not in (*_READS, *_CHANGES):
        return
    flags = arguments[2] if event == "open" else 0
    itself = event in _CHANGES or (isinstance(flags, int) and flags & os.O_NOFOLLOW)
    for given in arguments[:1] if event in _READS else arguments[:2]:
        if isinstance(given, str | bytes | os.PathLike) and os.fspath(given):
            name = os.fsdecode(given)
            folder, last = os.path.split(os.path.abspath(name))
            path = os.path.join(os.path.realpath(folder), last) if itself else os.path.realpath(name)
            for root, seen in _watched:
                if path == root or path.startswith(root + os.sep):
                    seen.append(f"{event} {path}")


sys.addaudithook(_hook)


class Outside:
    """A folder outside of all that a command was given, with files that are read and written by nobody.

    Attributes:
        path: the folder; secret: a file in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.secret = path / "secret.json"
        path.mkdir()
        self.secret.write_text('{"kind": "secret"}')
        (path / "folder").mkdir()
        (path / "folder" / "file").write_bytes(b"mine")
        photograph(1).save(path / "picture.png")
        self._before = self._state()

    def _state(self) -> dict[str, object]:
        return {
            p.relative_to(self.path).as_posix(): (p.lstat().st_mode, p.read_bytes() if p.is_file() else None)
            for p in [self.path, *self.path.rglob("*")]
        }

    def require_untouched(self) -> None:
        assert self._state() == self._before


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    """Fails the test if a file or folder in it is opened, listed, written or deleted."""
    made, seen = Outside(tmp_path / "outside"), list[str]()
    _watched.append((os.path.realpath(made.path), seen))
    yield made
    _watched.pop()
    made.require_untouched()
    assert seen == []


@pytest.fixture(scope="session")
def _sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("foreign") / "s.zarr"
    finished(path)
    return path


@pytest.fixture
def foreign(_sound: Path, tmp_path: Path) -> Path:
    """A store of two backbones, without photographs."""
    return shutil.copytree(_sound, LocalPlace(tmp_path, "s.zarr"))


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photographs")
    for i in range(6):
        (root / "ab"[i % 2]).mkdir(exist_ok=True)
        (root / "ab"[i % 2] / f"{i}.jpg").write_bytes(jpeg(photograph(i)))
    return root


@pytest.fixture(scope="session")
def _embedded(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("embedded") / "s.zarr"
    substyle.embed(photographs, path, ["control:pixels"], transformations=["identity"], canvas=64)
    return path


@pytest.fixture
def embedded(_embedded: Path, tmp_path: Path) -> Path:
    """A store that this user has made of `photographs`."""
    return shutil.copytree(_embedded, tmp_path / "embedded.zarr")

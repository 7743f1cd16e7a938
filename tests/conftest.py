"""Photographs and folders that many tests use; nothing here needs a network."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.object_server import BUCKET, Server, served

from substyle.pipelines.storage import Place, place

# no test may wait for a hub that is out of reach
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# with Python's defaults a tenth of the time goes to looking for garbage among everything that was imported
gc.set_threshold(10_000, 10, 50)

# each worker of pytest-xdist computes on a core of its own, as do the processes that it starts: threads of several
# workers on the same cores wait for each other
if _worker := os.environ.get("PYTEST_XDIST_WORKER"):
    _cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {_cores[int(_worker.removeprefix("gw")) % len(_cores)]})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the longest files, so that workers of pytest-xdist end at about the same time."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/scenarios/"))


def slow_after(count: int, cases: Iterable[Any]) -> list[Any]:
    """The cases of a parametrized test; those after the first few are slow."""
    made: list[Any] = []
    for case in cases:
        param = case
        if not isinstance(case, type(pytest.param())):
            param = pytest.param(*(case if isinstance(case, tuple) else (case,)))
        made.append(param if len(made) < count else param._replace(marks=(*param.marks, pytest.mark.slow)))
    return made


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Compiled artefacts of the tests go to a folder of their own, which workers of pytest-xdist share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    folder.mkdir(exist_ok=True)
    before = os.environ.get("SUBSTYLE_CACHE")
    os.environ["SUBSTYLE_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["SUBSTYLE_CACHE"]
    else:
        os.environ["SUBSTYLE_CACHE"] = before


@pytest.fixture(scope="session")
def _server() -> Iterator[Server]:
    with served() as server:
        yield server


@pytest.fixture
def server(_server: Server) -> Iterator[Server]:
    """A server with buckets, as it is before anybody has broken it."""
    _server.faults, _server.requests, _server.conditional = [], [], True
    _server.sent.clear()
    yield _server
    _server.faults, _server.conditional = [], True


@pytest.fixture
def bucket(server: Server, request: pytest.FixtureRequest) -> Place:
    """An empty place in a bucket, of this test alone."""
    del server
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())
    return place(f"s3://{BUCKET}/{name}-{secrets.token_hex(4)}")


@pytest.fixture
def disk(tmp_path: Path) -> Place:
    return place(tmp_path)


@pytest.fixture(params=["disk", "bucket"])
def home(request: pytest.FixtureRequest) -> Place:
    """An empty place on a disk, and one in a bucket; tests/pipelines/test_storage.py says what both do."""
    found: Place = request.getfixturevalue(request.param)
    return found


def shards_of(store: Path) -> dict[str, str]:
    files = sorted((store / "embeddings").glob("*/*/c.*"))
    return {str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def put(there: Path | Place, data: bytes) -> None:
    there = place(there)
    there.write(data)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that were written a moment ago have marks already."""
    monkeypatch.setattr("substyle.pipelines.sources.files.UNSETTLED_S", 0.0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread: small work gains nothing from a second one, which costs much on a busy machine."""
    import torch  # most tests of files and formats need none

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def photograph(seed: int, width: int = 96, height: int = 80) -> Image.Image:
    """A smooth colour picture with some structure: two classes by hue, so that class probes have something to learn."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    kind[..., seed % 2] //= 3
    return Image.fromarray(kind).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(picture: Image.Image, quality: int = 92) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def two_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photographs")
    for i in range(40):
        folder = root / ("even" if i % 2 == 0 else "odd")
        folder.mkdir(exist_ok=True)
        (folder / f"{i:02d}.jpg").write_bytes(jpeg(photograph(i, 80 + i, 100 - i)))
    return root


def the_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    answer = json.loads(capsys.readouterr().out)
    assert isinstance(answer, dict)
    return answer


def setting(*fields: str) -> list[str]:
    """Words of the command line that set fields, such as ``limit=4``."""
    return [word for field in fields for word in ("--set", field)]

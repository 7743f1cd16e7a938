"""One Ray for all tests of this folder: it takes seconds to start."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engine.embedding.ray.shards import TROUBLE, photographs

from substyle.engine.config import RAY, ExecutorConfig
from substyle.engine.embedding.ray_cluster import joined
from substyle.pipelines.transforms import base, registry

# Ray gives its workers a niceness of 15: beside workers of pytest-xdist on the same core they take minutes
os.environ.setdefault("RAY_worker_niceness", "0")

COUNT = 22  # photographs: six shards, the last one not full


@pytest.fixture(scope="package")
def ray_address(private_cache: Path) -> Iterator[str]:
    """A Ray of our own, on this machine alone, to which this process is connected; its address for others."""
    del private_cache  # workers inherit the environment it sets
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setattr(registry, "_loaded", [])  # workers load what tests of this folder load, not those before
        with joined(ExecutorConfig(RAY), {"CPU": 1.0}, cpus=2):
            import ray

            yield ray.get_runtime_context().gcs_address


@pytest.fixture(scope="package")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs."""
    return photographs(tmp_path_factory.mktemp("executors") / "images", COUNT)


@pytest.fixture(scope="package")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file with the transformation `trouble`: see `TROUBLE`."""
    path = tmp_path_factory.mktemp("plugin") / "trouble.py"
    path.write_text(TROUBLE)
    yield path
    base.REGISTRY.pop("trouble", None)


@pytest.fixture
def how(plugin: Path) -> Iterator[Path]:
    """Where it is said what trouble there is."""
    path = plugin.with_name("how")
    yield path
    path.unlink(missing_ok=True)

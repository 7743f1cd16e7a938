"""Run the examples of docs/contributing.md."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import jpeg, photograph

from substyle.engine.backbones import registry
from substyle.engine.config import BackboneChoice, EmbedConfig, Settings
from substyle.engine.embedding.plan import EmbedPlan
from substyle.engine.embedding.prepare import PixelPipeline
from substyle.engine.embedding.run import embed
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table
from substyle.pipelines.sources import Source, open_source
from substyle.pipelines.sources.base import KINDS
from substyle.pipelines.storage import place
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import load_all, load_plugin, suite

PAGE = Path(__file__).parents[1] / "docs" / "contributing.md"
NAMES = [f"{'cat' if i % 2 else 'dog'}/{i}.jpg" for i in range(12)]


@pytest.fixture
def example(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Writes the file of an example; registrations are undone afterwards."""
    load_all()
    registered = (base.REGISTRY, registry.FAMILIES, KINDS)
    before = [dict(each) for each in registered]
    blocks = re.findall(r"```python\n(# (\w+\.py)\n.*?)```", PAGE.read_text(), re.S)
    written = {name: text for text, name in blocks}

    def write(name: str) -> Path:
        path = tmp_path / name
        path.write_text(written[name])
        return path

    yield write
    for each, names in zip(registered, before, strict=True):
        each.clear()
        each.update(names)  # type: ignore[arg-type]


def write_photographs(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("notes.txt", "no image")
        for i, name in enumerate(NAMES):
            file.writestr(name, jpeg(photograph(i)))


@pytest.fixture
def photographs(example: Callable[[str], Path], tmp_path: Path) -> Source:
    write_photographs(tmp_path / "photographs.zip")
    load_plugin(example("zip_file.py"))
    return open_source(tmp_path / "photographs.zip")


def test_a_source(photographs: Source, tmp_path: Path) -> None:
    assert [record.key for record in photographs.records] == sorted(NAMES)
    assert [photographs.class_names[record.label or 0] for record in photographs.records] == [
        name.split("/")[0] for name in sorted(NAMES)
    ]
    found = {record.key: record.read() for record in photographs.records}
    assert found == {name: jpeg(photograph(i)) for i, name in enumerate(NAMES)}
    (tmp_path / "photographs.zip").write_bytes(b"no ZIP file")
    with pytest.raises(OSError, match=r"photographs\.zip"):
        photographs.records[0].read()


@pytest.mark.slow
def test_a_transformation(photographs: Source, example: Callable[[str], Path], tmp_path: Path) -> None:
    load_plugin(example("solarize.py"))
    names = suite("identity,solarize")
    pipeline = PixelPipeline(Settings(0, 64, names), EmbedConfig(batch=4, threads=1, shard_rows=8))
    embed(EmbedPlan(photographs, place(tmp_path / "s.zarr"), pipeline), [BackboneChoice("control:pixels")], quiet=True)

    table = load_table(EmbeddingStore.open(tmp_path / "s.zarr"), "control:pixels")
    assert table.transformations == names
    x_TND = table.in_memory().x_TND
    assert x_TND.shape[:2] == (2, 12)
    assert np.isfinite(x_TND).all()
    assert np.abs(x_TND[0] - x_TND[1]).max() > 0.1


def test_a_family_of_backbones(example: Callable[[str], Path]) -> None:
    load_plugin(example("mine.py"))
    context = registry.LoadContext(224, 4, 0, None)
    backbone = registry.load("mine:first", context)
    assert backbone.module is not None
    canvas_BSSC = torch.zeros((2, 224, 224, 3), dtype=torch.uint8)
    assert backbone.module(canvas_BSSC).shape == (2, backbone.spec.dim)


@pytest.mark.slow
def test_a_package(example: Callable[[str], Path], tmp_path: Path) -> None:
    """The three examples as one installed package, in one command."""
    package, dist = tmp_path / "site" / "my_extras", tmp_path / "site" / "my_extras-1.0.dist-info"
    package.mkdir(parents=True)
    dist.mkdir()
    (package / "__init__.py").touch()
    for name in ("solarize.py", "mine.py", "zip_file.py"):
        example(name).rename(package / name)
    declared = tomllib.loads(re.findall(r"```toml\n(# pyproject.toml\n.*?)```", PAGE.read_text(), re.S)[0])["project"]
    (dist / "METADATA").write_text(f"Name: {declared['name']}\nVersion: {declared['version']}\n")
    groups = declared["entry-points"].items()
    lines = [line for group, points in groups for line in (f"[{group}]", *(f"{n} = {v}" for n, v in points.items()))]
    (dist / "entry_points.txt").write_text("\n".join(lines))
    write_photographs(tmp_path / "photographs.zip")
    command = (
        "embed photographs.zip --store s.zarr --backbone mine:first --suite identity,solarize --set canvas=64 --quiet"
    )
    subprocess.run(
        [sys.executable, "-m", "substyle", *command.split()],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site"), "SUBSTYLE_CACHE": str(tmp_path / "cache")},
        check=True,
    )
    store = EmbeddingStore.open(tmp_path / "s.zarr")
    (entry,) = store.backbones()
    assert (entry.name, len(entry.facts["spec"]["graph"])) == ("mine:first", 16)
    assert store.manifest().sources[0].kind == "zip"
    assert load_table(store, "mine:first").transformations == ("identity", "solarize")

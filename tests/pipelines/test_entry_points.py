"""Entry points of installed packages: imported when they are needed, each on its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from substyle.engine.backbones import registry
from substyle.errors import ConfigError
from substyle.pipelines import entry_points
from substyle.pipelines.plugins import files_digest
from substyle.pipelines.sources import SourceConfig, open_source
from substyle.pipelines.sources.base import KINDS
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import load_all

TRANSFORMATION = """
from substyle.pipelines.transforms.base import kernel
from pkg_of_a_test import helper

@kernel("mine_same", kind="tone", role="train")
def same(canvas_BSSC, args, keys_B):
    return canvas_BSSC + helper.VALUE
"""


FAMILY = """
from substyle.engine.backbones import registry

def load(name, rest, context):
    return registry.load("control:pixels", context)

registry.register_family(registry.Family("mine", "<name>", "mine", load))
"""


SOURCE = """
from dataclasses import replace
from substyle.pipelines.sources import FolderSource
from substyle.pipelines.sources.base import register_source
from substyle.pipelines.sources.wrapped import Changed

@register_source("mine", members=(".mine",), endings=(".mine",))
class Mine(Changed):
    def __init__(self, root, config):
        super().__init__(FolderSource(root), lambda record: replace(record, read=lambda: b"mine"))
        self.config = config

    @property
    def options(self):
        return self.config.options()
"""


POINTS = """
[substyle.transformations]
a_broken = pkg_of_a_test.nothing
same = pkg_of_a_test.same
[substyle.backbones]
mine = pkg_of_a_test.family:load
[substyle.sources]
mine = pkg_of_a_test.source
quits = pkg_of_a_test.quits
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Installs a package; what it registers and imports is undone afterwards."""
    load_all()
    registered = (base.REGISTRY, registry.FAMILIES, KINDS)
    before = [dict(each) for each in registered]
    monkeypatch.setattr(entry_points, "_loaded", set())
    monkeypatch.syspath_prepend(tmp_path / "site-packages")

    def forget() -> None:
        for each, names in zip(registered, before, strict=True):
            each.clear()
            each.update(names)  # type: ignore[arg-type]
        for name in [name for name in sys.modules if name.startswith("pkg_of_a_test")]:
            del sys.modules[name]
        entry_points._loaded.clear()
        files_digest.cache_clear()

    def write(value: int) -> None:
        forget()
        package = tmp_path / "site-packages" / "pkg_of_a_test"
        dist = package.with_name("pkg_of_a_test-2.1.dist-info")
        for folder in (package, dist):
            folder.mkdir(parents=True, exist_ok=True)
        files = {"same": TRANSFORMATION, "family": FAMILY, "source": SOURCE, "quits": "raise SystemExit(3)"}
        for name, text in (files | {"__init__": "", "helper": f"VALUE = {value}"}).items():
            (package / f"{name}.py").write_text(text)
        (package / "template.py").write_text("class {{ name }}:")
        (dist / "METADATA").write_text("Name: pkg-of-a-test\nVersion: 2.1\n")
        (dist / "entry_points.txt").write_text(POINTS)

    yield write
    forget()


@pytest.mark.usefixtures("settled")
def test_photographs_are_read_again_after_an_edit_of_the_package(
    install: Callable[[int], None], tmp_path: Path
) -> None:
    """Also of modules that one imports, though the package is installed."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"1")
    assert open_source(folder, SourceConfig(kind="folder")).records[0].read() == b"1"
    digests = []
    for value in (1, 1, 2):
        install(value)
        source = open_source(folder, SourceConfig(kind="mine"))
        assert source.records[0].read() == b"mine"
        digests.append((KINDS["mine"].code, source.records[0].mark()))
    first, again, edited = digests
    assert first == again
    assert all(one != other and one for one, other in zip(first, edited, strict=True))


def test_a_source_that_a_store_would_reopen_as_another_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").touch()
    monkeypatch.setitem(KINDS, "mine", replace(KINDS["folder"], name="mine"))
    with pytest.raises(ConfigError, match="options of source kind mine"):
        open_source(tmp_path, SourceConfig(kind="mine", splits="none"))

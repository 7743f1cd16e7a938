"""Entry points of installed packages: imported when they are needed, each on its own."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from substyle.engine.backbones import registry
from substyle.errors import ConfigError
from substyle.pipelines import entry_points
from substyle.pipelines.plugins import files_digest
from substyle.pipelines.sources import SourceConfig
from substyle.pipelines.sources.base import KINDS, register_source
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import load_all, load_plugin, suite

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
from substyle.pipelines.sources import FolderSource
from substyle.pipelines.sources.base import register_source

@register_source("mine", members=(".mine",), endings=(".mine",))
class Mine(FolderSource):
    def __init__(self, root, config):
        super().__init__(root)
        self.options = config.options()

    def _read(self, place):
        return b"mine"
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


def test_one_that_fails_is_named_and_hinders_no_other(
    install: Callable[[int], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install(0)
    with caplog.at_level(logging.WARNING):
        assert suite("mine_same") == ("identity", "mine_same")
        assert "pkg_of_a_test.source" not in sys.modules
        assert SourceConfig(kind="mine").kind == "mine"
        with pytest.raises(ConfigError, match="npz, imagenet, variants, mine"):
            SourceConfig(kind="other")
    assert [record.getMessage() for record in caplog.records] == [
        "pkg-of-a-test 2.1: entry point a_broken = pkg_of_a_test.nothing of substyle.transformations failed: "
        "ModuleNotFoundError: No module named 'pkg_of_a_test.nothing'",
        "pkg-of-a-test 2.1: entry point quits = pkg_of_a_test.quits of substyle.sources failed: SystemExit: 3",
    ]


def test_a_name_that_is_taken_is_refused(
    install: Callable[[int], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install(0)
    for name in ("tar", "auto"):
        with pytest.raises(ConfigError) as caught:
            register_source(name)
        assert (caught.value.field, caught.value.given) == ("source kind", name)
    with pytest.raises(ConfigError, match="colour"):
        register_source("new", options=("names", "colour"))
    (tmp_path / "same.py").write_text(SOURCE)
    load_plugin(tmp_path / "same.py")
    with caplog.at_level(logging.WARNING):
        entry_points.load_entry_points(entry_points.SOURCES)
    assert "pkg_of_a_test.source of substyle.sources failed: ConfigError: source kind: got 'mine'" in caplog.text

"""Plug-ins are files or packages, each a module of its own, or entry points of installed packages."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from substyle.errors import ConfigError
from substyle.pipelines import entry_points
from substyle.pipelines.plugins import failed_line, files_digest, run_file
from substyle.pipelines.sources import SourceConfig
from substyle.pipelines.sources.base import KINDS, register_source
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import load_all, load_plugin, suite

INNER = """from __future__ import annotations
from dataclasses import dataclass

@dataclass
class D:
    x: int = 0

    def get(self) -> int:
        from .helper import VALUE
        return VALUE + self.x
"""


@pytest.fixture
def unchanged() -> Iterator[None]:
    """Plug-ins leave the program's path as it is, and have no modules outside their own package."""
    before, path = set(sys.modules), list(sys.path)
    yield
    assert sys.path == path
    assert not [name for name in {*sys.modules} - before if "helper" in name and not name.startswith("substyle_")]


def package(folder: Path, value: int, init: str = "from .inner import D\nf = D().get\n") -> Path:
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(init)
    (folder / "inner.py").write_text(INNER)
    (folder / "helper.py").write_text(f"VALUE = {value}\n")
    return folder


@pytest.mark.usefixtures("unchanged")
def test_each_package_has_its_own_modules(tmp_path: Path) -> None:
    first, second = (run_file(package(tmp_path / name / "plug", value)).f for name, value in (("a", 1), ("b", 2)))
    assert [second(), first(), second()] == [2, 1, 2]  # also of what is imported late


@pytest.mark.usefixtures("unchanged")
def test_a_file_beside_a_plug_in_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("VALUE = 1\n")
    (tmp_path / "plug.py").write_text("from helper import VALUE\n")
    with pytest.raises(ConfigError, match=r"a folder with an __init__\.py .*from \. import helper"):
        run_file(tmp_path / "plug.py")


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("place", ["__init__.py", "helper.py"])
def test_an_error_names_the_line_of_the_plug_in(tmp_path: Path, place: str) -> None:
    folder = package(tmp_path / "plug", 1, "from .helper import VALUE\nfrom . import helper\n")
    with (folder / place).open("a") as file:
        file.write("def f():\n    return [][0]\n")
    module = run_file(folder)
    with pytest.raises(IndexError) as used:
        (module if place == "__init__.py" else module.helper).f()
    lines = (folder / place).read_text().count("\n")
    assert failed_line(used.value) == f"{folder / place}:{lines}: IndexError: list index out of range"
    with (folder / place).open("a") as file:
        file.write("raise OSError('no weights')\n")
    with pytest.raises(ConfigError) as caught:
        run_file(folder)
    assert f"({folder / place}:{lines + 1}: OSError: no weights)" in str(caught.value)


# --- entry points -----------------------------------------------------------------------------------------------------

TRANSFORMATION = """
from substyle.pipelines.transforms.base import kernel

@kernel("mine_same", kind="tone", role="train")
def same(canvas_BSSC, args, keys_B):
    return canvas_BSSC
"""
SOURCE = """
from substyle.pipelines.sources import FolderSource
from substyle.pipelines.sources.base import register_source

@register_source("mine", members=(".mine",), endings=(".mine",))
class Mine(FolderSource):
    pass
"""
POINTS = """
[substyle.transformations]
a_broken = pkg_of_a_test.nothing
same = pkg_of_a_test.same
[substyle.sources]
mine = pkg_of_a_test.source
quits = pkg_of_a_test.quits
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package is installed; what it registers and imports is undone afterwards."""
    load_all()
    before = [(each, dict(each)) for each in (base.REGISTRY, KINDS)]
    monkeypatch.setattr(entry_points, "_loaded", set())
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    package = tmp_path / "site-packages" / "pkg_of_a_test"
    dist = package.with_name("pkg_of_a_test-2.1.dist-info")
    package.mkdir(parents=True)
    dist.mkdir()
    for name, text in {
        "same": TRANSFORMATION,
        "source": SOURCE,
        "quits": "raise SystemExit(3)",
        "__init__": "",
    }.items():
        (package / f"{name}.py").write_text(text)
    (dist / "METADATA").write_text("Name: pkg-of-a-test\nVersion: 2.1\n")
    (dist / "entry_points.txt").write_text(POINTS)
    yield
    for each, names in before:
        each.clear()
        each.update(names)  # type: ignore[arg-type]
    for name in [name for name in sys.modules if name.startswith("pkg_of_a_test")]:
        del sys.modules[name]
    files_digest.cache_clear()


@pytest.mark.usefixtures("installed")
def test_one_that_fails_is_named_and_hinders_no_other(caplog: pytest.LogCaptureFixture) -> None:
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


@pytest.mark.usefixtures("installed")
def test_a_name_that_is_taken_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("tar", "auto"):
        with pytest.raises(ConfigError, match=f"source kind: got '{name}'"):
            register_source(name)
    with pytest.raises(ConfigError, match="colour"):
        register_source("new", options=("names", "colour"))
    (tmp_path / "same.py").write_text(SOURCE)
    load_plugin(tmp_path / "same.py")
    with caplog.at_level(logging.WARNING):
        entry_points.load_entry_points(entry_points.SOURCES)
    assert "pkg_of_a_test.source of substyle.sources failed: ConfigError: source kind: got 'mine'" in caplog.text

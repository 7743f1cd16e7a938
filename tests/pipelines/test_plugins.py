"""Plug-ins are files or packages, each a module of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from substyle.errors import ConfigError
from substyle.pipelines.plugins import failed_line, run_file

INNER = """from __future__ import annotations
from dataclasses import dataclass

@dataclass
class D:
    x: int = 0

    def get(self) -> int:
        from .helper import VALUE
        return VALUE + self.x
"""


@pytest.fixture(autouse=True)
def unchanged() -> Iterator[None]:
    """Plug-ins leave the program's path as it is, and have no modules outside their own package."""
    before, path = set(sys.modules), list(sys.path)
    yield
    assert sys.path == path
    assert {
        name for name in set(sys.modules) - before if "helper" in name and not name.startswith("substyle_")
    } == set()


def package(folder: Path, value: int, init: str = "from .inner import D\nf = D().get\n") -> Path:
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(init)
    (folder / "inner.py").write_text(INNER)
    (folder / "helper.py").write_text(f"VALUE = {value}\n")
    return folder


def test_each_package_has_its_own_modules(tmp_path: Path) -> None:
    first, second = (run_file(package(tmp_path / name / "plug", value)).f for name, value in (("a", 1), ("b", 2)))
    assert [second(), first(), second()] == [2, 1, 2]  # also of what is imported late


def test_a_file_beside_a_plug_in_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("VALUE = 1\n")
    (tmp_path / "plug.py").write_text("from helper import VALUE\n")
    with pytest.raises(ConfigError, match=r"a folder with an __init__\.py .*from \. import helper"):
        run_file(tmp_path / "plug.py")


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

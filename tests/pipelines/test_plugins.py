"""Plug-ins are files or packages, each a module of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from substyle.errors import ConfigError
from substyle.pipelines import plugins
from substyle.pipelines.plugins import failed_line, files_digest, in_package, run_file

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


def test_other_errors_have_no_line_of_a_plug_in(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run_file(package(tmp_path / "plug", 1)).f() / 0
    assert failed_line(caught.value) == ""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import not_there_at_all\n", "ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("from . import broken\n", "SyntaxError"),
    ],
)
def test_one_that_fails_is_named_and_leaves_no_module(tmp_path: Path, text: str, why: str) -> None:
    folder = package(tmp_path / "failing", 1, text)
    (folder / "broken.py").write_text("def f(:\n")
    before = set(sys.modules)
    with pytest.raises(ConfigError, match=why) as caught:
        run_file(folder)
    assert caught.value.field == "plugin"
    assert not [name for name in set(sys.modules) - before if name.startswith("substyle_plugins.")]


def digest_of(path: Path) -> str:
    files_digest.cache_clear()
    return files_digest(run_file(path).__name__)


def test_the_digest_covers_all_files_of_a_package(tmp_path: Path) -> None:
    folder = package(tmp_path / "a" / "plug", 1)
    (folder / "settings.json").write_text("1")
    digests = [digest_of(folder), digest_of(folder)]
    assert digests[0] == digests[1]  # bytecode does not count
    for name in ("helper.py", "settings.json"):
        (folder / name).write_text("VALUE = 5\n")
        digests.append(digest_of(folder))
    (folder / "settings.json").rename(folder / "other.json")
    digests.append(digest_of(folder))
    assert len(set(digests)) == 4
    single = tmp_path / "plug.py"
    single.write_text("VALUE = 1\n")
    before = digest_of(single)
    (tmp_path / "beside.py").write_text("VALUE = 1\n")
    assert digest_of(single) == before


def test_code_without_a_file_is_new_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    files_digest.cache_clear()
    monkeypatch.setitem(sys.modules, "a_notebook", type(sys)("a_notebook"))
    first = files_digest("a_notebook")
    assert files_digest("a_notebook") == first
    files_digest.cache_clear()
    assert files_digest("a_notebook") != first


def test_what_a_partial_holds_counts() -> None:
    own, other = plugins.failed_line, test_what_a_partial_holds_counts
    assert in_package(None)
    assert in_package(partial(own, 1))
    assert not in_package(partial(other))
    assert not in_package(partial(own, other))

"""Plug-ins have modules of their own, and their digest covers what was run."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from substyle.kernels.errors import ConfigError
from substyle.pipelines.code import source_digest
from substyle.pipelines.plugins import failed_line, run_file

EAGER = "import sys\nsys.path.insert(0, FOLDER)\nimport helper\ndef f():\n    return helper.VALUE\n"
LATE = "import sys\nsys.path.insert(0, FOLDER)\ndef f():\n    import helper\n    return helper.VALUE\n"
BY_NAME = (
    "import importlib, sys\nsys.path.insert(0, FOLDER)\nhelper = importlib.import_module('helper')\n"
    "def f():\n    return helper.VALUE\n"
)
INNER = """from __future__ import annotations
from dataclasses import dataclass

@dataclass
class D:
    x: int = 0

    def get(self) -> int:
        from .other import VALUE
        return VALUE + self.x
"""
FROM_LIB = EAGER.replace("FOLDER", "__file__.rpartition('/')[0] + '/lib'")


@pytest.fixture(autouse=True)
def unchanged() -> Iterator[None]:
    """Plug-ins leave the program's modules and its path as they are."""
    modules, path = {name: module for name, module in sys.modules.items() if "helper" in name}, list(sys.path)
    yield
    assert sys.path == path
    assert {name: module for name, module in sys.modules.items() if name in ("helper", "deep")} == {
        name: module for name, module in modules.items() if name in ("helper", "deep")
    }


def write(folder: Path, value: int, text: str = EAGER, helper: str = "helper.py", name: str = "plug.py") -> Path:
    (folder / helper).parent.mkdir(parents=True, exist_ok=True)
    (folder / helper).write_text(f"VALUE = {value}\n")
    (folder / name).write_text(text.replace("FOLDER", "__file__.rpartition('/')[0]"))
    return folder / name


@pytest.mark.parametrize(
    ("text", "helper"), [(EAGER, "helper.py"), (LATE, "helper.py"), (BY_NAME, "helper.py"), (FROM_LIB, "lib/helper.py")]
)
def test_each_has_its_own_helpers(tmp_path: Path, text: str, helper: str) -> None:
    files = [write(tmp_path / name, value, text, helper) for name, value in (("a", 1), ("b", 2), ("c", 1))]
    first, second, third = (run_file(file).f for file in files)
    assert [second(), first(), second(), third()] == [2, 1, 2, 1]
    digests = [source_digest(each) for each in (first, second, third)]
    assert digests[0] != digests[1]
    assert digests[0] == digests[2]  # wherever it is, and in whatever order


FAILS = "def f():\n    return [][0]\n"


@pytest.mark.parametrize("place", ["plug.py", "helper.py"])
def test_an_error_names_the_line_of_the_plug_in(tmp_path: Path, place: str) -> None:
    file = write(tmp_path, 1, EAGER.replace("helper.VALUE", "helper.f()"))
    (tmp_path / "helper.py").write_text(FAILS)
    (tmp_path / place).write_text((tmp_path / place).read_text() + "raise OSError('no weights')\n")
    with pytest.raises(ConfigError, match=r"no weights") as caught:
        run_file(file)
    line = 1 + (tmp_path / place).read_text()[:-1].count("\n")
    assert f"({tmp_path / place}:{line}: OSError: no weights)" in str(caught.value)
    (tmp_path / place).write_text((tmp_path / place).read_text().replace("raise OSError('no weights')\n", ""))
    with pytest.raises(IndexError) as used:
        run_file(file).f()
    assert failed_line(used.value) == f"{tmp_path / 'helper.py'}:2: IndexError: list index out of range"


def test_other_errors_have_no_line_of_a_plug_in(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run_file(write(tmp_path, 1)).f() / 0
    assert failed_line(caught.value) == ""


def test_a_program_s_module_of_the_same_name_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "helper.py").write_text("VALUE = 7\n")
    monkeypatch.syspath_prepend(tmp_path / "host")
    own = importlib.import_module("helper")
    assert run_file(write(tmp_path / "a", 1)).f() == 1
    assert sys.modules["helper"] is own
    del sys.modules["helper"]


def test_stale_bytecode_is_not_run(tmp_path: Path) -> None:
    file = write(tmp_path, 1, BY_NAME)
    before = source_digest(run_file(file).f)
    helper = tmp_path / "helper.py"
    sys.path.insert(0, str(tmp_path))
    importlib.import_module("helper")  # writes its bytecode
    del sys.modules["helper"], sys.path[0]
    stat = helper.stat()
    helper.write_text("VALUE = 2\n")  # of the same size and time
    os.utime(helper, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = run_file(file).f
    assert after() == 2
    assert source_digest(after) != before


def test_what_is_imported_later_must_be_what_was_digested(tmp_path: Path) -> None:
    late = run_file(write(tmp_path / "a", 1, LATE)).f
    (tmp_path / "a" / "helper.py").write_text("VALUE = 2\n")
    with pytest.raises(ImportError, match=r"helper\.py: has changed since the plug-in"):
        late()
    computed = LATE.replace("import helper", "helper = __import__('hel' + 'per')")
    unknown = run_file(write(tmp_path / "b", 1, computed)).f
    with pytest.raises(ImportError, match=r"helper\.py: was not imported when the plug-in"):
        unknown()


def test_packages_dataclasses_and_relative_imports(tmp_path: Path) -> None:
    file = write(tmp_path, 3, "import sys\nsys.path.insert(0, FOLDER)\nfrom deep.inner import D\nf = D().get\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "__init__.py").write_text("from . import other\n")
    (tmp_path / "deep" / "other.py").write_text("import helper\nVALUE = helper.VALUE\n")
    (tmp_path / "deep" / "inner.py").write_text(INNER)
    assert run_file(file).f() == 3


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import not_there_at_all\n", "ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("import sys\nsys.path.insert(0, FOLDER)\nimport broken\n", "broken"),
    ],
)
def test_one_that_fails_is_named(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "broken.py").write_text("def f(:\n")
    with pytest.raises(ConfigError, match=why) as caught:
        run_file(write(tmp_path, 1, text, name="failing.py"))
    assert caught.value.field == "plugin"
    assert "substyle_plugin_failing" not in sys.modules


def test_code_without_builtins_of_its_own_is_no_plugin() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        eval("1 / 0", {"__builtins__": {}})
    assert failed_line(caught.value) == ""

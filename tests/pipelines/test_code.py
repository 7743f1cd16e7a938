"""Which edits of source code a digest tells of."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import linecache
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from substyle.pipelines.code import in_package, source_digest
from substyle.pipelines.plugins import load_all
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.base import OnGPU, Transformation
from substyle.pipelines.variants import VariantMaker

PLUGIN = '''
import sys
from dataclasses import dataclass
from functools import partial, cache

import numpy as np
import torch

from substyle.pipelines.transforms.base import Choice, kernel
sys.path.insert(0, __file__.rpartition("/")[0])
import beside
from beside import twice as doubled

LEVEL = 64
TABLE = np.arange(4)
BY_NAME = {"half": lambda x: x / 2}
CLIP = partial(np.clip, a_min=0, a_max=255)


@dataclass
class Curve:
    gain: float = 1.5

    def at(self, x):
        return x * self.gain + offset()


def offset():
    return 3


@cache
def kept(x):
    return x + 7


def unrelated():
    return 11


def stronger(factor):
    def inner(x):
        return x * factor

    return inner


STRONG = stronger(5)


@kernel("{name}", coarse="tone", role="train", parameters=[Choice("threshold", (64, 128), unit="level")])
def changed(canvas_BSSC, args, keys_B, *, extra=13):
    """What it does."""
    import late

    # a comment
    x = doubled(canvas_BSSC) + LEVEL + TABLE.sum() + BY_NAME["half"](1) + kept(2) + STRONG(2)
    return CLIP(Curve().at(x)) + beside.SHIFT + late.later()
'''
BESIDE = "SHIFT = 17\nOTHER = 19\n\n\ndef twice(x):\n    return _scaled(x)\n\n\ndef _scaled(x):\n    return x * 2\n"
LATE = "def later():\n    return 23\n"

PRINT = """
import sys
from substyle.pipelines.plugins import load_plugin
from substyle.pipelines.plugins import load_all
from substyle.pipelines.transforms import base
load_plugin(sys.argv[1])
print(base.get("edited").definition_hash())
"""


def loaded(folder: Path, **edits: tuple[str, str]) -> str:
    """The definition hash of the plug-in's transformation in a process of its own, after edits of its three files."""
    folder.mkdir(exist_ok=True)
    for name, text in (("plugin", PLUGIN.replace("{name}", "edited")), ("beside", BESIDE), ("late", LATE)):
        old, new = edits.get(name, ("", ""))
        assert old in text
        (folder / f"{name}.py").write_text(text.replace(old, new, 1))
    command = [sys.executable, "-B", "-c", PRINT, str(folder / "plugin.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


Load = Callable[[str], ModuleType]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Runs a text as a module of its own."""
    names: list[str] = []

    def run(text: str) -> ModuleType:
        name = f"a_module_of_tests_{len(names)}"
        file = tmp_path / f"{name}.py"
        file.write_text(text)
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        names.append(name)
        spec.loader.exec_module(module)
        return module

    yield run
    for name in names:
        del sys.modules[name]


def test_an_edited_plugin_has_another_definition_in_another_process(tmp_path: Path) -> None:
    before = loaded(tmp_path / "a")
    assert loaded(tmp_path / "elsewhere") == before
    assert loaded(tmp_path / "a", plugin=("# a comment", "# another, longer one\n\n")) == before
    assert loaded(tmp_path / "a", plugin=("What it does.", "It does something.")) == before
    assert loaded(tmp_path / "a", plugin=("return 11", "return 12")) == before  # nothing refers to it
    edits: list[dict[str, tuple[str, str]]] = [
        {"plugin": ("+ LEVEL", "- LEVEL")},
        {"plugin": ("LEVEL = 64", "LEVEL = 65")},
        {"plugin": ("return 3", "return 4")},
        {"beside": ("x * 2", "x * 3")},
        {"late": ("return 23", "return 24")},
    ]
    found = [loaded(tmp_path / "a", **edit) for edit in edits]
    assert len({before, *found}) == 1 + len(edits)


@pytest.mark.parametrize(
    ("file", "old", "new", "seen"),
    [
        ("plugin", "np.arange(4)", "np.arange(5)", True),
        ("plugin", "x / 2", "x / 4", True),
        ("plugin", "a_max=255", "a_max=254", True),
        ("plugin", "gain: float = 1.5", "gain: float = 1.6", True),
        ("plugin", "x * self.gain", "x + self.gain", True),
        ("plugin", "x + 7", "x + 8", True),
        ("plugin", "stronger(5)", "stronger(6)", True),
        ("plugin", "extra=13", "extra=14", True),
        ("plugin", "import twice as doubled", "import _scaled as doubled", True),
        ("beside", "SHIFT = 17", "SHIFT = 18", True),
        ("beside", "OTHER = 19", "OTHER = 20", False),
        ("plugin", 'role="train"', 'role="held_out"', False),
        ("plugin", "LEVEL = 64", "LEVEL = (\n    64\n)", False),
    ],
)
def test_what_a_function_refers_to(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch, file: str, old: str, new: str, seen: bool
) -> None:
    texts = {"plugin": PLUGIN.replace("{name}", "once"), "beside": BESIDE, "late": LATE}
    assert old in texts[file]
    edited = texts | {file: texts[file].replace(old, new, 1)}
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two texts of one file in one second
    digests = set()
    for now in (texts, edited):
        linecache.clearcache()
        importlib.invalidate_caches()
        for name in ("beside", "late"):
            (tmp_path / f"{name}.py").write_text(now[name])
            sys.modules.pop(name, None)
        digests.add(source_digest(load(now["plugin"]).changed))
        del base.REGISTRY["once"]
    for name in ("beside", "late"):
        sys.modules.pop(name, None)
    assert (len(digests) == 2) == seen


def test_functions_of_a_loop_differ_by_their_closures(load: Load) -> None:
    text = "def make(k):\n    return lambda x: x + k\n\nmade = [make(k) for k in range(3)]\nf, g, h = made\n"
    module = load(text)
    assert len({source_digest(function) for function in module.made}) == 3
    assert source_digest(module.make(1)) == source_digest(module.g)


def test_lambdas_of_one_line(load: Load) -> None:
    module = load("f, g = lambda x: x + 1, lambda x: x + 2\nh = (lambda x: x + 1)\n")
    assert source_digest(module.f) != source_digest(module.g)
    assert source_digest(module.f) == source_digest(module.h)


def test_what_has_no_source() -> None:
    scope: dict[str, Any] = {"__name__": "nowhere"}
    exec("def f(x):\n    return x + 1\n\ndef g(x):\n    return x + 2\n\ndef h(y):\n    return y + 1\n", scope)
    assert source_digest(scope["f"]) != source_digest(scope["g"])
    assert source_digest(scope["f"]) == source_digest(scope["f"])


class _Adder:
    def __init__(self, amount: object) -> None:
        self.amount = amount

    def __call__(self, x: int) -> object:
        return x, self.amount

    def more(self, x: int) -> object:
        return self(x)


@pytest.mark.parametrize(
    "make",
    [
        lambda k: functools.partial(np.clip, a_min=k, a_max=9),
        lambda k: functools.partial(lambda x, k: x + k, k=k),
        _Adder,
        lambda k: _Adder(k).more,
        lambda k: _Adder(np.full(3, k)),
        lambda k: _Adder({"a": [k, object()]}),
        lambda k: lambda x, amount=k: x + amount,
    ],
)
def test_whatever_can_be_called(make: Callable[[int], Callable[..., Any]]) -> None:
    assert source_digest(make(1)) == source_digest(make(1))
    assert source_digest(make(1)) != source_digest(make(2))


def test_objects_that_raise_are_no_error() -> None:
    class Hostile:
        def __getattribute__(self, name: str) -> object:
            raise RuntimeError(name)

    hostile = Hostile()
    loop: list[object] = []
    loop.append(loop)
    assert len(source_digest(len, np.add, np.clip, None, lambda: (hostile, loop))) == 16


def test_an_object_of_a_library_counts_by_the_statement_that_makes_it(load: Load) -> None:
    text = "from decimal import Decimal\nD = Decimal({})\n\ndef f(x):\n    return x * D\n"
    assert (
        source_digest(load(text.format(1)).f)
        == source_digest(load(text.format("1 ")).f)
        != source_digest(load(text.format(2)).f)
    )


def test_a_name_of_a_library_counts_by_what_it_is_imported_as(load: Load) -> None:
    text = "from numpy import {} as op\n\ndef f(x):\n    return op(x, 2)\n"
    assert source_digest(load(text.format("add")).f) != source_digest(load(text.format("subtract")).f)


def test_values_of_a_library_do_not_count(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("from os import environ\nfrom sys import path\n\ndef f(x):\n    return environ, path\n")
    before = source_digest(module.f)
    monkeypatch.setenv("SUBSTYLE_ANY", "thing")
    monkeypatch.syspath_prepend("/nowhere")
    assert source_digest(module.f) == before


def test_a_moved_module_is_the_same(load: Load, tmp_path: Path) -> None:
    text = "from pathlib import Path\nHERE = Path(__file__).parent / '{}'\n\ndef f(x):\n    return HERE, __file__\n"
    before = source_digest(load(text.format("a")).f)
    (tmp_path / "moved").mkdir()
    file = tmp_path / "moved" / "other.py"
    file.write_text(text.format("a"))
    scope: dict[str, Any] = {"__name__": "other", "__file__": str(file)}
    exec(compile(text.format("a"), str(file), "exec"), scope)
    assert source_digest(scope["f"]) == before
    assert source_digest(load(text.format("b")).f) != before


def test_definitions_of_the_package_do_not_change_when_they_are_used() -> None:
    load_all()
    names = ("identity", "jpeg", "icon_overlay", "dot_halftone", "gaussian_noise", "swirl")

    def digests() -> list[str]:
        return [dataclasses.replace(base.get(name)).definition_hash() for name in names]

    before = digests()
    maker = VariantMaker(names, side=64, seed=0, batch=2, threads=1)
    assert [variant.name for variant in maker(torch.zeros(2, 64, 64, 3, dtype=torch.uint8), ["a", "b"])] == list(names)
    assert digests() == before


def test_a_conditional_definition(load: Load) -> None:
    text = "K = {}\nif K > 1:\n    def g(x):\n        return 1\nelse:\n    def g(x):\n        return 2\n\ndef f(x):\n"
    text += "    return g(x)\n"
    assert source_digest(load(text.format(0)).f) != source_digest(load(text.format(2)).f)


def test_all_functions_of_a_transformation_count() -> None:
    def one(*arguments: object) -> None: ...

    def other(*arguments: object) -> None:
        raise NotImplementedError

    def made(**functions: Any) -> str:  # noqa: ANN401 - any of its functions
        return Transformation("t", "tone", "train", "dali", **functions).definition_hash()

    plain = made(function=one)
    found = {
        made(function=other),
        made(function=one, prepare=one),
        made(function=one, prepare=other),
        made(function=one, on_gpu=OnGPU(function=one)),
        made(function=one, on_gpu=OnGPU(function=other)),
        made(function=one, on_gpu=OnGPU(colours=one)),
        made(function=one, on_gpu=OnGPU(function=one, prepare=one)),
        made(function=one, split_assets=True),
        made(function=one, network="n"),
    }
    assert len({plain, *found}) == 10


def test_which_functions_are_the_package_s() -> None:
    assert in_package(source_digest)
    assert in_package(None)
    assert in_package(functools.partial(source_digest, None))
    assert not in_package(len)
    assert not in_package(lambda: None)

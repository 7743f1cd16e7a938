"""Which edits change the digest of source code."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from substyle.kernels.errors import ConfigError
from substyle.pipelines.code import in_package, source_digest, sources_of
from substyle.pipelines.transforms.base import OnGPU, Transformation
from substyle.pipelines.transforms.registry import load_plugin

FILES = {
    "mine.py": '''"""My transformations."""
import sys
import numpy as np
from substyle.pipelines.transforms.base import kernel
sys.path.insert(0, __file__.rpartition("/")[0])
import beside
LEVEL = 64


def offset():
    return 3


@kernel("edited", coarse="tone", role="train")
def changed(canvas_BSSC, args, keys_B):
    """What it does."""
    from below.late import later
    # a comment
    return beside.twice(canvas_BSSC) + LEVEL + offset() + later()
''',
    "beside.py": "from below import SHIFT\n\ndef twice(x):\n    return x * 2 + SHIFT\n",
    "below/__init__.py": "SHIFT = 17\n",
    "below/late.py": "from . import deep\nfrom .deep import later\n",
    "below/deep.py": "def later():\n    return 23\n",
}
PRINT = """
import sys
from substyle.pipelines.transforms.registry import load_plugin
from substyle.pipelines.transforms import base
load_plugin(sys.argv[1])
print(base.get("edited").code)
"""


def write(folder: Path, file: str = "mine.py", old: str = "", new: str = "") -> Path:
    for name, text in FILES.items():
        assert name != file or old in text
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.replace(old, new, 1) if name == file else text)
    return folder / "mine.py"


@pytest.mark.slow
def test_processes_agree_wherever_the_plug_in_is(tmp_path: Path) -> None:
    plugins = write(tmp_path / "a"), write(tmp_path / "b")
    commands = [[sys.executable, "-B", "-c", PRINT, str(plugin)] for plugin in plugins]
    found = [subprocess.run(each, capture_output=True, text=True, check=True).stdout for each in commands]
    assert found[0] == found[1] != ""


@pytest.mark.parametrize(
    ("file", "old", "new", "seen"),
    [
        ("mine.py", "# a comment", "# another, longer one\n\n", False),
        ("mine.py", "What it does.", "It does\n    something.", False),
        ("mine.py", "LEVEL = 64", "LEVEL = (\n    64\n)", False),
        ("mine.py", "LEVEL = 64", "LEVEL = 65", True),
        ("mine.py", "return 3", "return 4", True),
        ("beside.py", "x * 2", "x * 3", True),
        ("below/__init__.py", "17", "18", True),
        ("below/deep.py", "23", "24", True),
    ],
)
def test_edits_of_a_plug_in(tmp_path: Path, file: str, old: str, new: str, seen: bool) -> None:
    before, after = (sources_of(path := write(tmp_path, *how), path.read_bytes()) for how in ((), (file, old, new)))
    assert (before != after) == seen


def test_the_source_that_was_run_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "substyle.pipelines.transforms.registry._loaded", []
    )  # workers of later tests load all registered plug-ins
    plugin = tmp_path / "edited_later.py"
    plugin.write_text("def f(x):\n    return 1\n")
    load_plugin(plugin)
    function = sys.modules["substyle_plugin_edited_later"].f
    before = source_digest(function)
    plugin.write_text("def f(x):\n    return 2\n")
    assert source_digest(function) == before


@pytest.mark.parametrize("text", [b"def f(:\n", b"\xff\xfe", b"x = 1\0"])
@pytest.mark.parametrize("name", ["mine.py", "beside.py"])
def test_a_file_that_cannot_be_parsed_is_named(tmp_path: Path, name: str, text: bytes) -> None:
    plugin = write(tmp_path)
    (tmp_path / name).write_bytes(text)
    with pytest.raises(ConfigError, match=name):
        load_plugin(plugin)


def test_the_package_counts_by_what_a_function_names(tmp_path: Path) -> None:
    text = "K = 1\n\n@marked\ndef f(x):\n    return g(x)\n\ndef g(x):\n    return x + K\n\nh = lambda x: f(x)\n"
    digests = []
    for old, new in (("", ""), ("K = 1", "# c\nK = 1"), ("@marked", "@other"), ("K = 1", "K = 2"), ("x +", "x -")):
        file = tmp_path / f"m{len(digests)}.py"
        file.write_text(text.replace(old, new, 1) if old else text)
        scope: dict[str, Any] = {"__name__": "substyle.m", "__file__": str(file)}
        scope |= dict.fromkeys(("marked", "other"), lambda f: f)
        exec(file.read_text(), scope)
        digests.append((source_digest(scope["f"]), source_digest(scope["h"])))
    for found in zip(*digests, strict=True):
        assert (len(set(found[:3])), len(set(found))) == (1, 3)


def made(amount: object) -> Any:  # noqa: ANN401 - a function
    return lambda x: (x, amount)


def test_what_partials_and_closures_hold() -> None:
    assert len({source_digest(made(each)) for each in (0, 1, "a", (1, 2), (2, 1), made, made(0), len)}) == 8
    assert source_digest(made("/a/b")) == source_digest(made("/c"))
    assert source_digest(functools.partial(np.clip, a_max=1)) != source_digest(functools.partial(np.clip, a_max=2))
    loop: list[object] = []
    loop.append(loop)
    odd = (len, np.add, "a".join, torch.nn.ReLU(), functools.cache(made), source_digest, made(loop), Path().stat, None)
    assert len(source_digest(*odd)) == 16
    scope: dict[str, Any] = {}
    exec("f = lambda x: x + 1\ng = lambda x: x + 2", scope)
    assert source_digest(scope["f"]) != source_digest(scope["g"])


def test_all_functions_of_a_transformation_count() -> None:
    def one(*arguments: object) -> None: ...
    def other(*arguments: object) -> None: ...
    def hashed(**functions: Any) -> str:  # noqa: ANN401 - any of its functions
        return Transformation("t", "tone", "train", "dali", **functions).definition_hash()

    more = [{"prepare": one}, {"prepare": other}, {"network": "n"}, {"split_assets": True}]
    more += [{"on_gpu": each} for each in (OnGPU(one), OnGPU(other), OnGPU(colours=one), OnGPU(one, prepare=one))]
    assert len({hashed(function=other), hashed(function=one), *(hashed(function=one, **each) for each in more)}) == 10


def test_which_functions_are_the_package_s() -> None:
    assert all(map(in_package, (source_digest, None, functools.partial(source_digest, None))))
    assert not any(map(in_package, (len, made(source_digest))))

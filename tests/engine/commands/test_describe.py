"""Commands that list transformations, backbones and fields, and names and weights of backbones on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from substyle.engine.cli import main
from substyle.pipelines.transforms import base

FAILS = """from substyle.pipelines.transforms.base import kernel
@kernel('fails_test', kind='tone', role='train', parameters=[])
def fails(canvas_BSSC, args, keys_B):
    return canvas_BSSC.nothing
"""


def test_a_plug_in_that_fails_in_use_is_an_error_of_one_line(
    tmp_path: Path, two_classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "fails.py"
    plugin.write_text(FAILS)
    made = ["embed", str(two_classes), "--store", str(tmp_path / "s.zarr"), "--backbone", "control:pixels", "--quiet"]
    assert main([*made, "--set", "limit=4", "--plugin", str(plugin), "--suite", "identity,fails_test"]) == 1
    *_, last = capsys.readouterr().err.splitlines()
    failed = (
        f"substyle: embed: a plug-in failed: {plugin}:4: AttributeError: 'Tensor' object has no attribute 'nothing'"
    )
    assert last == failed
    del base.REGISTRY["fails_test"]
    works = tmp_path / "works.py"
    works.write_text(FAILS.replace("canvas_BSSC.nothing", "255 - canvas_BSSC"))
    assert main([*made, "--set", "limit=4", "--plugin", str(works), "--suite", "identity,fails_test"]) == 0
    del base.REGISTRY["fails_test"]  # as in a later process, without --plugin
    assert main(["embed", "--store", str(tmp_path / "s.zarr"), "--backbone", "control:statistics"]) == 2
    needed = f"--plugin is required: the file that registers fails_test, a transformation of {tmp_path / 's.zarr'}"
    assert needed in capsys.readouterr().err


def test_a_search_that_finds_nothing_says_what_to_try(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backbones", "--search", "dinvo2", "--json"]) == 0
    answer, said = capsys.readouterr()
    assert "'dinvo2'" in said
    assert "dinov2" in said
    assert json.loads(answer) == {"search": "dinvo2", "names": []}

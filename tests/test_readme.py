"""What the README says is what the repository holds."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

from substyle.engine.cli import _parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def study_table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("study_table", ROOT / "benchmarks" / "study_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_result_table_is_generated() -> None:
    made = study_table()
    kept = json.loads((ROOT / "benchmarks" / "results" / "study-imagenette.json").read_text())
    assert made.written(README, made.table(kept)) == README


def test_commands_parse() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.S)
    lines = [part.split("#")[0].strip() for block in blocks for line in block.splitlines() for part in line.split("&&")]
    commands = [line.split()[1:] for line in lines if line.startswith("substyle ")]
    assert len(commands) >= 12
    for command in commands:
        _parser().parse_args(command)


def test_files_named_are_there() -> None:
    for name in re.findall(r"(?:docs|studies|engine|kernels|benchmarks)/[\w/.-]+\.\w+", README):
        assert (ROOT / name).is_file(), name

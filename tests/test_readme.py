"""What the README says is what the repository holds."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

from substyle.engine.commands.arguments import parser
from substyle.engine.estimate.plan import plan
from substyle.engine.estimate.roofline import DEVICES
from substyle.pipelines.transforms.registry import suite

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
        parser().parse_args(command)


def test_files_named_are_there() -> None:
    for name in re.findall(r"(?:docs|studies|engine|kernels|benchmarks)/[\w/.-]+\.\w+", README):
        assert (ROOT / name).is_file(), name


def test_performance_table_is_that_of_the_kept_results() -> None:
    """And every kept result is as its schema says."""
    sys.path.insert(0, str(ROOT))
    try:
        from benchmarks import performance_table as kept
    finally:
        sys.path.remove(str(ROOT))
    documents = kept.documents()
    assert {d["benchmark"] for d in documents} == set(kept.BENCHMARKS)
    assert not any(d["quick"] for d in documents)
    shown = README.partition(kept.START)[2].partition(kept.END)[0].strip()
    assert shown == kept.table(documents)


def test_the_hours_of_imagenet_are_what_the_plan_says() -> None:
    made = plan(["timm:vit_base_patch16_224"], suite("substance31"), 1_331_167, DEVICES["h100"])
    assert f"alone: {made.describe()['hours']:.2f} hours on one H100" in README.replace("\n", " ")

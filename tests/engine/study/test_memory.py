"""What is in memory while a study runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import photograph

STUDY = """
name = "small"
suite = "identity,jpeg,style_wave"
canvas = 64
backbones = ["package:efficientnet_lite0", "control:pixels"]
bootstrap = 200
gallery = 1
[embed]
precision = "fp32"
[probes]
tasks = ["transformation"]
heads = ["linear"]
Cs = [1e-2]
resamples = 2
"""
# prints what is alive before memory is freed, and where a stage begins to compute
LOOK = """
import gc, json, sys
from pathlib import Path
from substyle.engine.stages import execution, stage
from substyle.engine.study.file import load_study
from substyle.engine.study.runner import run_study

LARGE = {"Decoder", "DaliDecoder", "Graph", "VariantMaker", "StyleNetwork", "CompiledBackbone", "CompiledModel"}
places, release, seen = execution.places, stage.Embedding.release, {}

def look(name):
    ours = (type(each) for each in gc.get_objects() if str(type(each).__module__).startswith(("substyle", "openvino")))
    seen.setdefault(name, sorted({each.__name__ for each in ours} & LARGE))

def freed(embedding):
    look("before")
    release(embedding)

def begin(stage, *rest):
    look(stage.name)
    return places(stage, *rest)

execution.places, stage.Embedding.release = begin, freed
run_study(load_study(Path(sys.argv[1])), Path(sys.argv[2]), images=sys.argv[3], quiet=True)
print(json.dumps(seen))
"""


@pytest.mark.slow
def test_networks_and_decoders_are_freed_before_probes(tmp_path: Path) -> None:
    for i in range(12):
        path = tmp_path / "photographs" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(i).save(path)
    (tmp_path / "small.toml").write_text(STUDY)
    arguments = [str(tmp_path / name) for name in ("small.toml", "out", "photographs")]
    ran = subprocess.run([sys.executable, "-c", LOOK, *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout.splitlines()[-1])
    assert {"Decoder", "Graph", "VariantMaker", "StyleNetwork"} <= set(seen["before"])
    assert seen["probes"] == seen["analysis"] == []

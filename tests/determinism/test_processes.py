"""Processes with other hash seeds and thread counts compute the same variants."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import load_all, suite
from substyle.pipelines.variants import VariantMaker

SIDE, COUNT, SEED = 64, 5, 3
SCRIPT = "import json; from tests.determinism import test_processes; print(json.dumps(test_processes.digests(1)))"


def digests(threads: int) -> dict[str, str]:
    """Of the pixels of each transformation that is no network."""
    load_all()
    names = [*suite("substance31"), *(name for name in suite("styles48") if base.get(name).made_by == "kernel")]
    names = [name for name in names if base.get(name).made_by != "network"]
    rng = np.random.default_rng(8)
    canvas = rng.integers(0, 256, (COUNT, 8, 8, 3), np.uint8).repeat(SIDE // 8, axis=1).repeat(SIDE // 8, axis=2)
    canvas[-1] = 77
    made = VariantMaker(tuple(names), side=SIDE, seed=SEED, batch=COUNT, threads=threads)
    variants = made(torch.from_numpy(canvas), [f"ß/{i}.jpg" for i in range(COUNT)], np.arange(COUNT) % 2 == 0)
    return {v.name: hashlib.sha256(v.pixels_BSSC.numpy().tobytes()).hexdigest() for v in variants}


@pytest.mark.slow
def test_another_process_makes_the_same_variants() -> None:
    torch.set_num_threads(2)
    here = digests(2)
    assert len(set(here.values())) == len(here) == 26 + 40
    environment = os.environ | {"PYTHONHASHSEED": "4242", "OMP_NUM_THREADS": "1"}
    command, root = [sys.executable, "-c", SCRIPT], Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == here

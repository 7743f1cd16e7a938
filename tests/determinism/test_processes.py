"""Processes with other hash seeds and thread counts compute the same variants."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import suite
from substyle.pipelines.variants import VariantMaker, load_all

SIDE, COUNT, SEED = 64, 5, 3


def digests(names: tuple[str, ...], threads: int, networks: dict[str, base.Network] | None = None) -> dict[str, str]:
    """Hash of the pixels of each transformation."""
    load_all()
    rng = np.random.default_rng(8)
    canvas = rng.integers(0, 256, (COUNT, 8, 8, 3), np.uint8).repeat(SIDE // 8, axis=1).repeat(SIDE // 8, axis=2)
    canvas[-1] = 77
    made = VariantMaker(names, side=SIDE, seed=SEED, batch=COUNT, threads=threads, networks=networks)
    variants = made(torch.from_numpy(canvas), [f"ß/{i}.jpg" for i in range(COUNT)], np.arange(COUNT) % 2 == 0)
    return {v.name: hashlib.sha256(v.pixels_BSSC.numpy().tobytes()).hexdigest() for v in variants}


def without_networks(threads: int) -> dict[str, str]:
    load_all()
    names = [*suite("substance31"), *(name for name in suite("styles48") if base.get(name).made_by == "kernel")]
    return digests(tuple(n for n in names if base.get(n).made_by != "network"), threads)


SCRIPT = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("processes", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(json.dumps(getattr(module, sys.argv[2])(int(sys.argv[3]))))
"""


def elsewhere(what: str, threads: int, **environment: str) -> dict[str, str]:
    """Hashes computed by another process."""
    command = [sys.executable, "-c", SCRIPT, __file__, what, str(threads)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_another_process_makes_the_same_variants() -> None:
    torch.set_num_threads(2)
    here = without_networks(2)
    assert len(set(here.values())) == len(here) == 26 + 40
    assert elsewhere("without_networks", 1, PYTHONHASHSEED="4242", OMP_NUM_THREADS="1") == here

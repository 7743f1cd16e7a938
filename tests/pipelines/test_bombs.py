"""Decompression bombs are rejected before any allocation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")

ALLOWED = 50_000  # kB that images of 30,000 x 30,000 pixels may add to the peak memory; decoded, one takes 2.7 GB

CODE = """
import json, resource, sys
from tests.pipelines import crafted
from tests.pipelines.conftest import encode, scene
from substyle.pipelines.decode import Decoder

made = crafted.bombs()
decoder = Decoder(64, 16, 2)
decoder([encode(scene(90, 120)), encode(scene(90, 120), "PNG"), encode(scene(90, 120), "WEBP")])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
reasons = decoder(list(made.values())).reasons
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"kB": after - before, "reasons": dict(zip(made, reasons))}))
"""


def test_bombs_take_no_memory() -> None:
    root = Path(__file__).parents[2]
    # a cluster of Ray that another test holds keeps the current folder out of the path
    env = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", CODE], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert all(answer["reasons"].values())
    assert answer["kB"] < ALLOWED

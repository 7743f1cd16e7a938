"""Decompression bombs are rejected before any allocation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tests.pipelines import crafted

from substyle.pipelines.decode import Decoder

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


def test_pillows_own_limit_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some programs disable it for the whole process."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    made = crafted.bombs()
    reasons = Decoder(64, 16, 2)(list(made.values())).reasons
    for name, reason in zip(made, reasons, strict=True):
        assert reason is not None
        assert "pixels" in reason or "too few data" in reason, name


def test_bombs_with_data_for_a_part_of_the_picture() -> None:
    """Within the limit of pixels, decoding fails and the images are quarantined."""
    reasons = Decoder(64, 16, 2)(list(crafted.bombs(3000).values())).reasons
    assert all(reasons)

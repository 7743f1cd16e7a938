"""The numbers of a run, recomputed without the engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import reference_probes
from tests.conftest import jpeg, photograph

from substyle.engine.cli import main

STUDY = """
name = "reference"
suite = "identity,gaussian_blur,defocus_blur,grayscale,channel_permute,jpeg,low_resolution"
canvas = 64
bootstrap = 200
backbones = ["control:statistics"]
[splits]
train = 0.5
val = 0.2
test = 0.3
[probes]
heads = ["linear"]
multitask_steps = 40
widths = [64]
expert = { tolerance = 1e-5, doublings = 1 }
resamples = 2
redraws = 2
[analysis]
ks = [1, 5]
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run with a near-duplicate, photographs that are grey already, and one that is broken."""
    root = tmp_path_factory.mktemp("reference")
    for i in range(60):
        folder = root / "photographs" / ("even" if i % 2 == 0 else "odd")
        folder.mkdir(parents=True, exist_ok=True)
        picture = photograph(i)
        (folder / f"{i:02d}.jpg").write_bytes(jpeg(picture.convert("L").convert("RGB") if i % 9 == 0 else picture))
    for i in range(8):
        (root / "photographs" / "even" / f"again-{i}.jpg").write_bytes(jpeg(photograph(2 * i + 10), quality=80))
    (root / "photographs" / "odd" / "broken.jpg").write_bytes(b"\xff\xd8nothing")
    (root / "study.toml").write_text(STUDY)
    arguments = ["run", str(root / "study.toml"), "--images", str(root / "photographs"), "--out", str(root / "out")]
    assert main([*arguments, "--quiet"]) == 0
    return root / "out"


@pytest.fixture(scope="module")
def rows(finished: Path) -> dict[str, reference_probes.Row]:
    return {row.quantity: row for row in reference_probes.compare(finished)}


@pytest.mark.slow
def test_what_is_arithmetic_agrees(rows: dict[str, reference_probes.Row]) -> None:
    exact = [row for name, row in rows.items() if name.startswith(("1-NN", "5-NN", "nearest", "sens", "equi", "steer"))]
    assert len(exact) == 4 + 3 + 6
    assert [row for row in exact if row.difference is None or abs(row.difference) > 1e-3] == []
    for name in ("AMI, transformation", "AMI, class"):
        assert rows[name].holds

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.engine.probes.conftest import CPU

from substyle.engine.probes.checkpoint import FORMAT, Probe, save_probe
from substyle.engine.probes.dataset import Standardizer
from substyle.engine.probes.heads import initial
from substyle.errors import SubstyleError


def standard(width: int) -> Standardizer:
    rng = np.random.default_rng(0)
    scale = rng.random(width).astype(np.float32) + 0.5
    scale[0] = 0.0
    return Standardizer(rng.normal(size=width).astype(np.float32), scale)


def good() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors = {"w1": torch.zeros(1, 2, 3), "b1": torch.zeros(1, 2)}
    metadata = {
        "format": FORMAT, "task": "transformation", "head": "linear", "outputs": [{"name": "t", "labels": ["a", "b"]}],
        "backbone": "b", "dim": 3, "setting": {},
    }  # fmt: skip
    return tensors, metadata


Spoil = Callable[[dict[str, torch.Tensor], dict[str, Any]], object]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t, m: t.pop("b1"),
        lambda t, m: t.update(b1=torch.zeros(1, 3)),
        lambda t, m: t.update(w1=torch.full((1, 2, 3), float("nan"))),
        lambda t, m: t.update(w1=torch.zeros(1, 2, 3, dtype=torch.float16)),
        lambda t, m: m.update(format="other"),
        lambda t, m: m.update(outputs=[{"name": "t", "labels": ["a"]}]),
        lambda t, m: m.update(outputs=[{"labels": ["a", "b"]}]),
    ],
)
def test_a_spoilt_file_is_refused(tmp_path: Path, spoil: Spoil) -> None:
    tensors, metadata = good()
    path = tmp_path / "probe.safetensors"
    save_file(tensors, path, {"substyle": json.dumps(metadata)})
    assert Probe.load(path).predict(np.ones((1, 3))).tolist() == [[0.5, 0.5]]
    spoil(tensors, metadata)
    save_file(tensors, path, {"substyle": json.dumps(metadata)})
    with pytest.raises(SubstyleError, match=r"probe\.safetensors"):
        Probe.load(path)


def test_another_width_is_refused(tmp_path: Path) -> None:
    save_probe(
        tmp_path / "p", initial(0, 5, 2, 1, [0], CPU), standard(5), task="transformation", head="linear",
        outputs={"transformation": ("a", "b")}, backbone="b", setting={},
    )  # fmt: skip
    for bad in (np.ones((2, 6)), np.ones(5)):
        with pytest.raises(SubstyleError, match=r"\(B, 5\)"):
            Probe.load(tmp_path / "p").predict(bad)

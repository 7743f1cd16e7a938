from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.special import softmax
from tests.engine.probes.conftest import CPU

from substyle.engine.probes.checkpoint import FORMAT, Probe, save_probe
from substyle.engine.probes.dataset import Standardizer
from substyle.engine.probes.heads import initial
from substyle.errors import SubstyleError

AS_IT_IS = {"temperature": 1.0, "ece": None, "ece_before": None}


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
        lambda t, m: m["outputs"][0].update(calibration=None),
        lambda t, m: m["outputs"][0].update(calibration=AS_IT_IS | {"temperature": 0}),
        lambda t, m: m["outputs"][0].update(calibration=AS_IT_IS | {"temperature": float("nan")}),
        lambda t, m: m["outputs"][0].update(calibration=AS_IT_IS | {"ece": 1.5}),
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


def test_a_temperature_is_applied(tmp_path: Path) -> None:
    """Those of two seeds to their mean, so that no prediction changes; a file without one has temperature 1."""
    rng = np.random.default_rng(0)
    weights, x = rng.normal(size=(2, 7, 5)).astype(np.float32), rng.normal(size=(50, 5)).astype(np.float32)
    outputs = [{"name": "transformation", "labels": list("abc")}, {"name": "class", "labels": list("wxyz")}]
    answers = []
    for temperatures in ((None, None), (0.5, None), (0.5, 3.0)):
        for output, temperature in zip(outputs, temperatures, strict=True):
            if temperature is not None:
                output["calibration"] = AS_IT_IS | {"temperature": temperature}
        metadata = good()[1] | {"outputs": outputs, "dim": 5}
        tensors = {"w1": torch.from_numpy(weights), "b1": torch.zeros(2, 7)}
        save_file(tensors, tmp_path / "p", {"substyle": json.dumps(metadata)})
        answers.append(Probe.load(tmp_path / "p").predict_all(x))
    before, first, both = answers
    logits = np.einsum("scd,bd->sbc", weights.astype(np.float64), x)
    for name, own, temperature in (("transformation", slice(0, 3), 0.5), ("class", slice(3, 7), 3.0)):
        plain = softmax(logits[..., own], axis=2).mean(0)
        np.testing.assert_allclose(before[name], plain, atol=1e-6)
        scaled = plain ** (1 / temperature)
        np.testing.assert_allclose(both[name], scaled / scaled.sum(1, keepdims=True), atol=1e-6)
        np.testing.assert_array_equal(both[name].argmax(1), before[name].argmax(1))
    np.testing.assert_array_equal(first["class"], before["class"])
    np.testing.assert_array_equal(first["transformation"], both["transformation"])


def test_another_width_is_refused(tmp_path: Path) -> None:
    save_probe(
        tmp_path / "p", initial(0, 5, 2, 1, [0], CPU), standard(5), task="transformation", head="linear",
        outputs={"transformation": ("a", "b")}, backbone="b", setting={}, calibration={"transformation": AS_IT_IS},
    )  # fmt: skip
    for bad in (np.ones((2, 6)), np.ones(5)):
        with pytest.raises(SubstyleError, match=r"\(B, 5\)"):
            Probe.load(tmp_path / "p").predict(bad)

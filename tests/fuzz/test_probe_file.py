"""Probe files of any content: refused by name, or they predict with the labels that their headers give."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save
from tests.fuzz.harness import attempt, examine, put
from tests.fuzz.mutations import changed, spoilt, spoilt_json, written

from substyle.engine.probes.checkpoint import FORMAT, Probe
from substyle.errors import SubstyleError

TENSORS = {
    "w1": torch.arange(24, dtype=torch.float32).reshape(2, 4, 3),
    "b1": torch.zeros(2, 4),
    "w2": torch.ones(2, 5, 4),
    "b2": torch.arange(10, dtype=torch.float32).reshape(2, 5),
}
HEADER = {
    "format": FORMAT,
    "task": "multitask",
    "head": "mlp",
    "outputs": [{"name": "transformation", "labels": ["a", "b", "c"]}, {"name": "class", "labels": ["x", "ü"]}],
    "backbone": "control:pixels",
    "dim": 3,
    "setting": {"lr": 0.1},
    "canvas": 224,
    "seed": 0,
    "orientation": "ignore",
    "crop_pct": 0.875,
    "weights_hash": "w",
}


def file(header: bytes) -> bytes:
    return bytes(save(TENSORS, {"substyle": header.decode("utf-8", "replace")}))


def spliced(safetensors: Any) -> bytes:  # noqa: ANN401
    text = written(safetensors)
    data = file(json.dumps(HEADER).encode())
    (length,) = struct.unpack("<Q", data[:8])
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def whole() -> bytes:
    return file(json.dumps(HEADER).encode())


@pytest.mark.parametrize("part", ["header", "tensors", "bytes"])
def test_any_probe_file(tmp_path: Path, part: str, cases: int) -> None:
    path = tmp_path / "probe.safetensors"
    data = whole()
    (length,) = struct.unpack("<Q", data[:8])
    kinds = {
        "header": spoilt_json(json.dumps(HEADER).encode()).map(file),
        "tensors": changed(json.loads(data[8 : 8 + length])).map(spliced),
        "bytes": st.one_of(
            spoilt(data), spoilt(data[: 8 + length]).map(lambda head: head + data[8 + length :]), st.none()
        ),
    }

    def check(content: bytes | None) -> None:
        put(path, content)
        probe = attempt(Probe.load, path, names=(path.name,))
        if probe is None:
            return
        labels = probe.labels
        assert all(isinstance(label, str) for names in labels.values() for label in names)
        facts = probe.metadata
        assert isinstance(facts["backbone"], str)
        assert 32 <= int(facts.get("canvas", 224)) <= 1024
        assert 0 <= int(facts.get("seed", 0)) < 2**63
        answers = probe.predict_all(np.ones((2, facts["dim"]), np.float32))
        assert {name: answer.shape for name, answer in answers.items()} == {
            name: (2, len(told)) for name, told in labels.items()
        }
        assert sum(map(len, labels.values())) == probe.heads.outputs
        for answer in answers.values():
            np.testing.assert_allclose(answer.sum(1), 1.0, atol=1e-5)

    examine(check, kinds[part], cases=cases // 3)


LABELS = [{"name": "transformation", "labels": ["a", "b", "c"]}, {"name": "transformation", "labels": ["x", "y"]}]


@pytest.mark.parametrize(
    "changes",
    [
        {"outputs": LABELS},  # one name for two outputs: the second was read in place of the first
        {"outputs": [{"name": "transformation", "labels": [True, 1, None, "d", "e"]}]},
        {"outputs": [{"name": "x", "labels": []}, {"name": "y", "labels": list("abcde")}]},
        {"outputs": []},
        {"canvas": "224"},
        {"canvas": 10**9},
        {"seed": -3},
        {"seed": None},
        {"dim": True},
    ],
)
def test_headers_that_no_probe_has_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "probe.safetensors"
    path.write_bytes(file(json.dumps(HEADER | changes).encode()))
    with pytest.raises(SubstyleError, match=r"probe\.safetensors: .*header"):
        Probe.load(path)

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from substyle.engine import cache
from substyle.engine.backbones.export import Preprocessed, export
from substyle.engine.backbones.runtimes.openvino import OpenVINOGraph
from substyle.engine.backbones.spec import IMAGENET_MEAN, IMAGENET_STD

SIDE = 32


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SUBSTYLE_CACHE", str(tmp_path))
    return tmp_path


def graph() -> bytes:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    module = Preprocessed(network, canvas=SIDE, side=SIDE, mean=IMAGENET_MEAN, std=IMAGENET_STD).eval()
    return bytes(export(module, canvas=SIDE, batch=2).SerializeToString())


def test_a_blob_that_openvino_refuses_is_compiled_anew(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx = graph()
    first = OpenVINOGraph(onnx, precision="fp32", threads=1, cache_dir="blobs")
    (blob,) = (own / "blobs").iterdir()
    cache.write(f"blobs/{blob.name}", b"whole, but no blob")
    second = OpenVINOGraph(onnx, precision="fp32", threads=1, cache_dir="blobs")
    assert blob.name in capsys.readouterr().err
    assert second.inputs == first.inputs
    OpenVINOGraph(onnx, precision="fp32", threads=1, cache_dir="blobs")
    assert capsys.readouterr().err == ""


def test_openvino_takes_any_layout_and_reuses_requests() -> None:
    compiled = OpenVINOGraph(graph(), precision="fp32", threads=2, streams=2)
    canvas = np.random.default_rng(0).integers(0, 256, (40, SIDE, SIDE, 3), dtype=np.uint8)
    (name,) = compiled.outputs
    alone = [compiled(canvas[i : i + 2])[name] for i in range(0, 40, 2)]
    assert len({one.tobytes() for one in alone}) == len(alone)  # copies, that later runs do not overwrite
    assert not np.shares_memory(alone[0], alone[1])
    canvas.flags.writeable = False
    pieces = ([canvas[i : i + 2]] for i in range(0, 40, 2))
    for one, outputs in zip(alone, compiled.run(pieces), strict=True):
        assert np.array_equal(one, outputs[name])
    turned = np.ascontiguousarray(canvas[:2, ::-1])
    assert np.array_equal(compiled(canvas[:2, ::-1])[name], compiled(turned)[name])
    assert len(compiled.idle) <= compiled.waiting

from __future__ import annotations

from pathlib import Path

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

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, save

from substyle.engine.backbones import registry
from substyle.engine.backbones.packages import SHIPPED, package_identity
from substyle.engine.backbones.registry import LoadContext


def context(checkpoint: Path | None = None, seed: int = 0, canvas: int = 224) -> LoadContext:
    return LoadContext(canvas, 8, seed, checkpoint)


def test_a_checkpoint_is_known_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    seen = []
    for value in (0, 0, 1):
        torch.save({"x": torch.full((3,), value)}, path)
        seen.append(registry.identity("timm:test_vit", context(path)))
    assert seen[0] == seen[1] != seen[2]
    assert registry.identity("timm:test_resnet", context(path)) != seen[2]
    assert registry.identity("timm:test_vit", context(path, canvas=96)) != seen[2]
    assert registry.identity("open_clip:ViT-B-32/" + str(path), context()) is not None


def test_hubs_are_asked_each_time() -> None:
    assert registry.identity("timm:resnet18", context()) is None
    assert registry.identity("open_clip:ViT-B-32/openai", context()) is None


def test_packages_are_known_by_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_model"
    package.mkdir()
    row = replace(SHIPPED["efficientnet_lite0"], module="some_model", file="weights.bin")
    monkeypatch.setitem(SHIPPED, "some", row)
    (package / "__init__.py").write_text("")
    (package / "weights.bin").write_bytes(b"1")
    monkeypatch.syspath_prepend(tmp_path)
    first = package_identity("some")
    assert first is not None
    (package / "weights.bin").write_bytes(b"2")
    second = package_identity("some")
    assert second not in (None, first)
    (package / "__init__.py").write_text("x = 1")
    assert package_identity("some") == second
    (package / "weights.bin").unlink()
    assert package_identity("some") is None
    assert package_identity("not_there") is None
    assert package_identity("not.even/a name") is None


def test_an_onnx_file_is_known_by_its_files(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    tensor = numpy_helper.from_array(np.arange(64, dtype=np.float32), "w")
    node = helper.make_node("Add", ["x", "w"], ["y"])
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [64]) for name in "xy"]
    model = helper.make_model(helper.make_graph([node], "g", value[:1], value[1:], [tensor]))
    save(model, path)
    assert registry.identity(f"onnx:{path}", context()) is None  # no preprocessing beside it
    (tmp_path / "m.json").write_text("{}")
    first = registry.identity(f"onnx:{path}", context())
    (tmp_path / "m.json").write_text("{ }")
    assert registry.identity(f"onnx:{path}", context()) not in (None, first)
    save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    apart = registry.identity(f"onnx:{path}", context())
    data = tmp_path / "m.data"
    data.write_bytes(data.read_bytes()[::-1])
    assert registry.identity(f"onnx:{path}", context()) not in (None, apart)
    data.rename(tmp_path.parent / "outside.data")
    data.symlink_to(tmp_path.parent / "outside.data")
    assert registry.identity(f"onnx:{path}", context()) is None  # onnx refuses it, too

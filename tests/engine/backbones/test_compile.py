from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from tests.conftest import photograph
from tests.engine.backbones.small_networks import GivenSamples
from torch import nn

from substyle.engine.backbones import onnx_graph, registry
from substyle.engine.backbones.compile import CompiledBackbone, CompileOptions, compile_source
from substyle.engine.backbones.gate import GateError
from substyle.engine.backbones.lazy import LazyBackbone
from substyle.engine.backbones.runtimes.openvino import FixedBatch, OpenVINOGraph
from substyle.engine.backbones.spec import Backbone
from substyle.engine.store.layout import network_identity
from substyle.errors import ConfigError

BATCH = 4


def samples() -> list[NDArray[np.uint8]]:
    plain = np.stack([np.array(photograph(i, 224, 224)) for i in range(BATCH)])
    return [plain, 255 - plain, plain[:, ::-1].copy()]


@pytest.fixture
def own_cache(private_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, with the graphs that there are: an export takes seconds."""
    (tmp_path / "cache" / "graphs").mkdir(parents=True)
    for path in private_cache.glob("graphs/*.onnx"):
        shutil.copy(path, tmp_path / "cache" / "graphs")
    monkeypatch.setenv("SUBSTYLE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def load(name: str) -> Backbone:
    return registry.load(name, registry.LoadContext(224, BATCH, 0, None))


def options(precision: str = "fp32", dtype: str = "float16") -> CompileOptions:
    return CompileOptions(batch=BATCH, canvas=224, threads=1, precision=precision, dtype=dtype)


def compiled_on_samples(backbone: Backbone, options: CompileOptions) -> CompiledBackbone:
    return compile_source(LazyBackbone.of(backbone, canvas=224, batch=BATCH), GivenSamples(samples(), BATCH), options)


def test_auto_keeps_layers_in_float32_until_the_gate_passes(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, int]] = []
    real = FixedBatch.__call__

    def spoil(self: FixedBatch, canvas_BSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """An embedding that is right only with 5 or more layers in float32."""
        out = real(self, canvas_BSSC)
        return out if self.kept >= 5 else out[:, ::-1].copy()  # type: ignore[attr-defined]

    def graph(onnx: Callable[[], bytes], *, precision: str, float32_layers: int, **how: object) -> OpenVINOGraph:
        asked.append((precision, float32_layers))
        return OpenVINOGraph(onnx, precision="fp32", threads=1)

    def remember(self: FixedBatch, graph: OpenVINOGraph, batch: int) -> None:
        self.graph, self.batch = graph, batch
        self.kept = asked[-1][1] if asked[-1][0] == "bf16" else 99  # type: ignore[attr-defined]

    monkeypatch.setattr("substyle.engine.backbones.runtimes.openvino_builder.OpenVINOGraph", graph)
    monkeypatch.setattr(FixedBatch, "__init__", remember)
    monkeypatch.setattr(FixedBatch, "__call__", spoil)
    monkeypatch.setattr("substyle.engine.backbones.precision.cpu.has", lambda *features: True)
    compiled = compiled_on_samples(load("control:random:test_efficientnet"), options("auto"))
    assert compiled.runtime["precision"] == "bf16"
    assert compiled.runtime["float32_layers"] == 8
    assert "the first 8 of" in capsys.readouterr().err
    with pytest.raises(GateError, match=r"^control:random:test_efficientnet: bf16 .*≥ 0\.999\)"):
        compiled_on_samples(load("control:random:test_efficientnet"), options("bf16"))


def test_unknown_precision() -> None:
    with pytest.raises(ConfigError, match="auto, fp32, bf16, fp16"):
        options("int4")


def onnx_file(folder: Path, side: int = 32) -> tuple[Path, nn.Module]:
    torch.manual_seed(1)
    convolution, pooled = nn.Conv2d(3, 5, 3, 2), (side // 2 - 1) // 2
    weights = [onnx.numpy_helper.from_array(x.detach().numpy(), name) for name, x in convolution.named_parameters()]
    nodes = [
        onnx.helper.make_node("Conv", ["x", "weight", "bias"], ["convolved"], strides=[2, 2]),
        onnx.helper.make_node("Relu", ["convolved"], ["positive"]),
        onnx.helper.make_node("AveragePool", ["positive"], ["y"], kernel_shape=[pooled] * 2, strides=[pooled] * 2),
    ]
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", *shape])
        for name, shape in (("x", (3, side, side)), ("y", (5, 2, 2)))
    )
    graph = onnx.helper.make_graph(nodes, "network", [x], [y], weights)
    path = folder / "model.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path, nn.Sequential(convolution, nn.ReLU(), nn.AvgPool2d(pooled)).eval()


def test_an_onnx_file_whose_embeddings_depend_on_the_batch_is_refused(tmp_path: Path) -> None:
    path, _ = onnx_file(tmp_path)
    path.with_suffix(".json").write_text(json.dumps({"mean": [0.5] * 3, "std": [0.5] * 3}))
    model = onnx.load(str(path))
    model.graph.node[0].input[0] = "rounded"
    scaled = ["bytes", "scale", "zero"]
    model.graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", scaled, ["rounded"]))
    model.graph.node.insert(0, onnx.helper.make_node("DynamicQuantizeLinear", ["x"], scaled))
    onnx.save(model, str(path))
    with pytest.raises(ConfigError, match=r"model\.onnx, dynamically quantised.*must not depend on the batch"):
        load(f"onnx:{path}")


def test_onnx_file_with_its_preprocessing(tmp_path: Path) -> None:
    path, network = onnx_file(tmp_path)
    facts = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.4], "licence": "CC0"}
    (tmp_path / "model.json").write_text(json.dumps(facts))
    backbone = load(f"onnx:{path}")
    assert (backbone.spec.dim, backbone.spec.input_side, backbone.spec.licence) == (20, 32, "CC0")
    compiled = compiled_on_samples(backbone, options())
    x = torch.from_numpy(samples()[0]).permute(0, 3, 1, 2).float()
    x = torch.nn.functional.interpolate(x, (32, 32), mode="bicubic", antialias=True).clamp(0, 255) / 255
    x = (x - torch.tensor(facts["mean"]).view(3, 1, 1)) / torch.tensor(facts["std"]).view(3, 1, 1)
    with torch.inference_mode():
        expected = network(x).flatten(1).numpy()
    np.testing.assert_allclose(compiled.embed(samples()[0]), expected, rtol=1e-3, atol=1e-4)


def test_onnx_file_without_preprocessing_is_refused(tmp_path: Path) -> None:
    path, _ = onnx_file(tmp_path)
    facts = path.with_suffix(".json")
    with pytest.raises(ConfigError, match=r"model\.json") as caught:
        load(f"onnx:{path}")
    assert caught.value.field == f"preprocessing of {path.name}"
    facts.write_text('{"mean": [1, 2]}')
    with pytest.raises(ConfigError, match=r"model\.json") as caught:
        load(f"onnx:{path}")
    assert caught.value.field == f"preprocessing of {path.name}"
    with pytest.raises(ConfigError) as caught:
        load("onnx:/nothing/there.onnx")
    assert (caught.value.field, caught.value.given) == ("backbone onnx:/nothing/there.onnx", "/nothing/there.onnx")
    facts.write_text('{"mean": [0, 0, 0], "std": [1, 0, 1]}')
    with pytest.raises(ConfigError, match=r"std \(1\.0, 0\.0, 1\.0\)") as caught:
        load(f"onnx:{path}")
    assert caught.value.field == f"preprocessing of {path.name}"
    facts.write_text('{"mean": [0, 0, 0], "std": [1, 1, 1]}')
    path.write_bytes(b"no graph")
    with pytest.raises(ConfigError, match=str(path)) as caught:
        load(f"onnx:{path}")
    assert caught.value.field == f"backbone onnx:{path}"


def test_an_onnx_backbone_is_known_by_all_that_it_is_loaded_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graph, "_front", cache(onnx_graph._front))  # its export takes seconds
    path, _ = onnx_file(tmp_path)
    model, beside, data = onnx.load(str(path)), tmp_path / "model.json", tmp_path / "model.data"
    convolved = model.graph.node[0].output[0]
    model.graph.output.append(onnx.helper.make_tensor_value_info(convolved, onnx.TensorProto.FLOAT, ["n", 5, 15, 15]))
    names = [value.name for value in model.graph.output]
    onnx.save(model, str(path), save_as_external_data=True, location=data.name, size_threshold=0)

    def known(mean: float, output: str) -> dict[str, Any]:
        beside.write_text(json.dumps({"mean": [mean] * 3, "std": [0.5] * 3, "output": output}))
        return network_identity(load(f"onnx:{path}").spec.describe())

    first = known(0.1, names[0])
    assert known(0.1, names[0]) == first
    other = known(0.2, names[0])
    assert [key for key in first if other[key] != first[key]] == ["mean"]
    assert known(0.1, names[1])["weights"] != first["weights"]
    weights = onnx.numpy_helper.to_array(next(t for t in onnx.load(str(path)).graph.initializer if len(t.dims) == 4))
    data.write_bytes(data.read_bytes().replace(weights.tobytes(), (2 * weights).tobytes()))
    assert known(0.1, names[0])["weights"] != first["weights"]

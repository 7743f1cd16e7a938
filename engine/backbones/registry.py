"""Backbones by name: `timm:…`, `open_clip:…/…`, `onnx:…`, `package:…`, `control:…`, and families that plug-ins add."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from substyle.engine.backbones.spec import Backbone
from substyle.kernels.errors import ConfigError


@dataclass(frozen=True)
class LoadContext:
    """What a family may need to load a backbone.

    Attributes:
        canvas: canvas side S.
        batch: the batch that graphs are compiled for.
        seed: the study's seed.
        checkpoint: a local file with the weights, or None.
        calibration: gives canvases (B, S, S, 3) of real photographs, always the same ones for a store.
    """

    canvas: int
    batch: int
    seed: int
    checkpoint: Path | None
    calibration: Callable[[], NDArray[np.uint8]]


Loader = Callable[[str, str, LoadContext], Backbone]


@dataclass(frozen=True)
class Family:
    """A family of backbones: what follows its prefix, and how one is loaded (`loader(whole name, rest, context)`)."""

    prefix: str
    names: str
    about: str
    loader: Loader


def _timm(name: str, rest: str, context: LoadContext) -> Backbone:
    from substyle.engine.backbones.families import timm

    return timm.load(name, rest, canvas=context.canvas, checkpoint=context.checkpoint)


def _open_clip(name: str, rest: str, context: LoadContext) -> Backbone:
    from substyle.engine.backbones.families import open_clip

    return open_clip.load(name, rest, canvas=context.canvas, checkpoint=context.checkpoint)


def _onnx(name: str, rest: str, context: LoadContext) -> Backbone:
    from substyle.engine.backbones.families import onnx_file

    return onnx_file.load(name, rest, canvas=context.canvas, batch=context.batch)


def _package(name: str, rest: str, context: LoadContext) -> Backbone:
    from substyle.engine.backbones.families import package

    return package.load(name, rest, canvas=context.canvas)


def _control(name: str, rest: str, context: LoadContext) -> Backbone:
    if rest in ("pixels", "statistics"):
        from substyle.engine.backbones.families import controls

        return controls.load(name, rest, canvas=context.canvas)
    kind, _, model = rest.partition(":")
    if kind == "random" and model:
        from substyle.engine.backbones.families import timm

        return timm.load_random(
            name, model, canvas=context.canvas, calibration_BSSC=context.calibration(), seed=context.seed
        )
    raise ConfigError(f"backbone {name}", rest, "pixels, statistics, random:<timm model>")


FAMILIES: dict[str, Family] = {
    family.prefix: family
    for family in (
        Family("timm", "<model>", "any pretrained timm model, from its hub or checkpoint = path", _timm),
        Family("open_clip", "<arch>/<pretrained tag or path>", "image towers of OpenCLIP, projected", _open_clip),
        Family("onnx", "<path.onnx>", "an ONNX file with its preprocessing in a JSON file beside it", _onnx),
        Family("package", "efficientnet_lite0|1|2", "real weights that ship inside Python packages", _package),
        Family("control", "pixels|statistics|random:<timm model>", "what an untrained embedding knows", _control),
    )
}


def register_family(family: Family) -> None:
    """Make a family of backbones known under its prefix (for plug-ins). Raises ConfigError for a taken prefix."""
    if family.prefix in FAMILIES:
        raise ConfigError("backbone family", family.prefix, "a prefix that is not taken")
    FAMILIES[family.prefix] = family


def check_name(name: str) -> Family:
    """The family of a backbone name. Raises ConfigError naming the families there are."""
    prefix, colon, rest = name.partition(":")
    if not colon or not rest or prefix not in FAMILIES:
        allowed = ", ".join(f"{family.prefix}:{family.names}" for family in FAMILIES.values())
        raise ConfigError("backbone", name, allowed)
    return FAMILIES[prefix]


def load(name: str, context: LoadContext) -> Backbone:
    """Load a backbone by name. Raises ConfigError for a bad name, WeightsError for weights that cannot be had."""
    family = check_name(name)
    if context.checkpoint is not None and family.prefix not in ("timm", "open_clip"):
        raise ConfigError(f"{name}: checkpoint", str(context.checkpoint), "a timm: or open_clip: backbone")
    return family.loader(name, name.partition(":")[2], context)

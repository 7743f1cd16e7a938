"""The work of a study's networks: backbones by name, without their weights, and style generators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from substyle.engine.backbones.families import open_clip as open_clip_family
from substyle.engine.backbones.families import package, preset, taps
from substyle.engine.backbones.families import timm as timm_family
from substyle.engine.backbones.presets import PRESETS
from substyle.engine.backbones.readout import split
from substyle.engine.backbones.registry import check_name
from substyle.engine.estimate.work import BYTES, Work, of_network
from substyle.engine.style_graphs import Generator, Layer
from substyle.engine.styles import MULTISTYLE, arbitrary_generator, multistyle_generator
from substyle.kernels.errors import ConfigError
from substyle.pipelines.plugins import load_all
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.style import MULTISTYLE as MULTISTYLE_NETWORK

_STYLE_VECTOR = 100  # numbers that describe a style; which ones changes no size


@dataclass(frozen=True)
class NetworkFacts:
    """A backbone as a plan sees it: embedding width D, parameters, work."""

    dim: int
    parameters: int
    work: Work


def backbone(name: str, batch: int) -> NetworkFacts:
    """A backbone at its own input side.

    Raises:
        ConfigError: a bad name, or one of a family whose networks cannot be made without their weights.
    """
    family, rest = check_name(name).prefix, name.partition(":")[2]
    if rest in ("pixels", "statistics") and family == "control":
        from substyle.engine.backbones.families import controls

        spec = controls.load(name, rest, canvas=224).spec
        return NetworkFacts(spec.dim, 0, Work())
    try:
        with torch.device("meta"):
            network, side = _network(name, family, rest)
            x = torch.empty(batch, 3, side, side)
        network = network.eval()
        with torch.no_grad():
            dim = taps.require_vector(name, network(x[:1]))
    except RuntimeError as error:  # a network that looks at its numbers, of which there are none here
        allowed = f"one whose work can be counted without its weights ({error})"
        raise ConfigError(f"backbone {name}", rest, allowed) from error
    return NetworkFacts(dim, sum(p.numel() for p in network.parameters()), of_network(network, x))


def _network(name: str, family: str, rest: str) -> tuple[nn.Module, int]:
    model, readout = split(name, rest)
    known = PRESETS.get(f"{family}:{model}")
    if known is not None:
        return preset.read_at(name, known, preset.network(known).eval(), readout), known.side
    if family == "open_clip":
        architecture, _ = open_clip_family.require_model(name, model)
        tower = open_clip_family.tower(architecture).eval()
        size: Any = tower.image_size
        side = int(size if isinstance(size, int) else size[0])
        return open_clip_family.read_at(name, tower, readout, side)[0], side
    if family == "package":
        row = package.require_model(name, model)
        network, side = package.network(row), row.side
    elif family in ("control", "timm"):
        network, side = _timm(name, model.partition(":")[2] if family == "control" else model)
    else:
        allowed = "timm, open_clip, package, control or a preset, whose work can be counted"
        raise ConfigError(f"backbone {name}", family, allowed)
    return timm_family.read_at(name, network.eval(), readout, side)[0], side


def _timm(name: str, model: str) -> tuple[nn.Module, int]:
    timm_family.require_model(name, model)
    network = timm_family.create(model)
    return network, int(timm_family.data_config(network)["side"])


def styles(names: tuple[str, ...], canvas: int) -> Work:
    """The work of the style networks that these transformations need, for one photograph.

    Layers before the first normalisation are the same in all styles of a network and are counted once.
    """
    load_all()
    work = Work()
    wanted = [base.get(name) for name in names if base.get(name).made_by == "network"]
    of_multistyle = [t.name for t in wanted if t.network == MULTISTYLE_NETWORK]
    if of_multistyle:
        _add_generator(work, multistyle_generator([MULTISTYLE[n] for n in of_multistyle]), len(of_multistyle), canvas)
    if len(of_multistyle) < len(wanted):
        _add_generator(work, arbitrary_generator(np.zeros(_STYLE_VECTOR, np.float32)), 1, canvas)
    return work


def _add_generator(work: Work, generator: Generator, styles: int, side: int) -> None:
    """Convolutions of a generator: stride 1, 2, 2, the residual blocks at a quarter of the side, then twice doubled."""
    seen_styled = False

    def convolution(layer: Layer, into: int, out: int) -> None:
        nonlocal seen_styled
        outputs, inputs, height, width = layer.weight.shape
        flop = 2.0 * outputs * inputs * height * width * out * out
        moved = float(BYTES * (inputs * into * into + outputs * out * out + layer.weight.size))
        times = styles if seen_styled else 1
        work.products.extend([(flop, moved)] * times)
        seen_styled = seen_styled or layer.scale is not None

    half, quarter = side // 2, side // 4
    for layer, into, out in zip(generator.contract, (side, side, half), (side, half, quarter), strict=True):
        convolution(layer, into, out)
    for pair in generator.residual:
        for layer in pair:
            convolution(layer, quarter, quarter)
    for layer, into, out in zip(generator.expand, (quarter, half, side), (half, side, side), strict=True):
        convolution(layer, into, out)

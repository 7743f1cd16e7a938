"""Load presets with the loaders that they name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import nn

from substyle.engine.backbones import presets, weights
from substyle.engine.backbones.families import can, open_clip
from substyle.engine.backbones.families import timm as timm_family
from substyle.engine.backbones.family import Family, LoadContext, identify_checkpoint, register_family
from substyle.engine.backbones.presets import Preset
from substyle.engine.backbones.spec import WHOLE, Backbone, Readout, split
from substyle.engine.backbones.weights import WeightsError

# decoder and projection heads of masked autoencoders
MASKED = (*weights.HEADS, r"mask_token", r"decoder_?.*", r"(projection_head|projector|proj_head)\..*")


def network(preset: Preset) -> nn.Module:
    """Create the network with random weights: (B, 3, side, side) to (B, D)."""
    if preset.loader == presets.OPEN_CLIP:
        return open_clip.tower(preset.model.partition("/")[0])
    return timm_family.create(preset.model, preset.side if preset.side_given else None)


def read_at(name: str, preset: Preset, network: nn.Module, readout: Readout) -> nn.Module:
    """Apply a readout to the network. Raises ConfigError if the network does not support it."""
    apply = open_clip.read_at if preset.loader == presets.OPEN_CLIP else timm_family.read_at
    return apply(name, network, _merged(preset, readout), preset.side)[0]


def _merged(preset: Preset, readout: Readout) -> Readout:
    """A readout with the preset's in place of what it leaves open."""
    return readout.or_else(preset.readout) if readout.layer is None else readout


def _load(name: str, rest: str, context: LoadContext) -> Backbone:
    """Load a preset.

    Raises:
        ConfigError: the checkpoint does not exist, or the network does not support the readout.
        WeightsError: the weights are not available or do not fit.
    """
    size, readout = split(name, rest)
    preset, checkpoint = presets.preset(name.partition(":")[0], size), context.checkpoint
    if preset.needs_checkpoint and checkpoint is None:
        raise WeightsError(f"{name}: these weights are not on a hub; set {preset.weights}")
    backbone = _loaded(name, preset, _merged(preset, readout), context.canvas, checkpoint)
    spec = backbone.spec
    if readout.place == WHOLE:
        spec = dataclasses.replace(spec, pooling=preset.pooling)
    if preset.loader == presets.OPEN_CLIP and checkpoint is None:
        spec = dataclasses.replace(spec, licence=preset.licence)  # open_clip states none
    return dataclasses.replace(backbone, spec=spec)


def _loaded(name: str, preset: Preset, readout: Readout, canvas: int, checkpoint: Path | None) -> Backbone:
    if preset.loader == presets.OPEN_CLIP:
        return open_clip.load(name, preset.model, canvas=canvas, checkpoint=checkpoint, readout=readout)
    if preset.loader == presets.TIMM:
        return timm_family.load(
            *(name, preset.model),
            canvas=canvas,
            checkpoint=checkpoint,
            readout=readout,
            side=preset.side if preset.side_given else None,
            dropped=MASKED if preset.family == "mae" else weights.HEADS,
        )
    assert checkpoint is not None
    return timm_family.wrap(
        *(name, preset.architecture, can.load(name, preset.model, checkpoint)),
        canvas=canvas,
        weights=f"checkpoint {checkpoint.name}",
        config={"side": preset.side, "mean": preset.mean, "std": preset.std},
        readout=readout,
    )


def _check(name: str, rest: str) -> None:
    presets.preset(name.partition(":")[0], split(name, rest)[0])


for _family, _about in presets.ABOUT.items():
    register_family(
        Family(
            *(_family, "|".join(presets.sizes(_family)), _about),
            *(_load, identify_checkpoint),
            checkpoint=True,
            check=_check,
            position=9,
        )
    )

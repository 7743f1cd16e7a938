"""Load presets with the loaders that they name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import nn

from substyle.engine.backbones import presets, weights
from substyle.engine.backbones.families import timm as timm_family
from substyle.engine.backbones.presets import Preset
from substyle.engine.backbones.spec import WHOLE, Backbone, Readout
from substyle.engine.backbones.weights import WeightsError

# decoder and projection heads of masked autoencoders
MASKED = (*weights.HEADS, r"mask_token", r"decoder_?.*", r"(projection_head|projector|proj_head)\..*")


def load(
    name: str, preset: Preset, readout: Readout = WHOLE, *, canvas: int, checkpoint: Path | None = None
) -> Backbone:
    """Load a preset.

    Args:
        name: full name of the backbone.
        preset: its preset.
        readout: where to read the embedding.
        canvas: canvas side S in pixels.
        checkpoint: local weights; None for those of the hub.

    Raises:
        ConfigError: the checkpoint does not exist, or the network does not support the readout.
        WeightsError: the weights are not available or do not fit.
    """
    if preset.needs_checkpoint and checkpoint is None:
        raise WeightsError(f"{name}: these weights are not on a hub; set {preset.weights}")
    merged = readout.or_else(preset.readout) if readout.layer is None else readout
    backbone = _loaded(name, preset, merged, canvas, checkpoint)
    spec = backbone.spec
    if readout.place == WHOLE:
        spec = dataclasses.replace(spec, pooling=preset.pooling)
    if preset.loader == presets.OPEN_CLIP and checkpoint is None:
        spec = dataclasses.replace(spec, licence=preset.licence)  # open_clip states none
    return dataclasses.replace(backbone, spec=spec)


def network(preset: Preset) -> nn.Module:
    """Create the network with random weights: (B, 3, side, side) to (B, D).

    Raises ConfigError if its library is not installed.
    """
    if preset.loader == presets.OPEN_CLIP:
        from substyle.engine.backbones.families import open_clip

        return open_clip.tower(preset.model.partition("/")[0])
    if preset.loader == presets.ALIGN:
        from substyle.engine.backbones.families import align

        return align.Tower(align.make(align.require_transformers(preset.name)))
    if preset.loader == presets.SIMCLR:
        from substyle.engine.backbones.families import simclr

        return simclr.create(preset.model)
    return timm_family.create(preset.model, preset.side if preset.side_given else None)


def read_at(name: str, preset: Preset, network: nn.Module, readout: Readout) -> nn.Module:
    """Apply a readout to the network. Raises ConfigError if the network does not support it."""
    merged = readout.or_else(preset.readout) if readout.layer is None else readout
    if preset.loader == presets.OPEN_CLIP:
        from substyle.engine.backbones.families import open_clip

        return open_clip.read_at(name, network, merged, preset.side)[0]
    if preset.loader == presets.ALIGN:
        from substyle.engine.backbones.families import align

        merged = align.readable(name, merged)
    return timm_family.read_at(name, network, merged, preset.side)[0]


def _loaded(name: str, preset: Preset, readout: Readout, canvas: int, checkpoint: Path | None) -> Backbone:
    if preset.loader == presets.OPEN_CLIP:
        from substyle.engine.backbones.families import open_clip

        return open_clip.load(name, preset.model, canvas=canvas, checkpoint=checkpoint, readout=readout)
    if preset.loader == presets.ALIGN:
        from substyle.engine.backbones.families import align

        return align.load(name, preset, readout, canvas=canvas, checkpoint=checkpoint)
    if preset.loader == presets.SIMCLR:
        from substyle.engine.backbones.families import simclr

        assert checkpoint is not None
        return simclr.load(name, preset, readout, canvas=canvas, checkpoint=checkpoint)
    if preset.loader == presets.CAN:
        from substyle.engine.backbones.families import can

        assert checkpoint is not None
        return can.load(name, preset, readout, canvas=canvas, checkpoint=checkpoint)
    return timm_family.load(
        *(name, preset.model),
        canvas=canvas,
        checkpoint=checkpoint,
        readout=readout,
        side=preset.side if preset.side_given else None,
        dropped=MASKED if preset.family == "mae" else weights.HEADS,
    )

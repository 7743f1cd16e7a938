"""CAN, contrastive masked autoencoders with noise prediction (arXiv 2210.16870): its ViT encoder, in timm's ViT.

Its makers' code is JAX: Flax parameters as Scenic and big_vision write them to an ``.npz`` are taken, and PyTorch state
dicts of the reimplementations, whose encoder has timm's names at the top or behind ``encoder.``.
"""

from __future__ import annotations

from pathlib import Path

from substyle.engine.backbones import weights
from substyle.engine.backbones.families import timm as timm_family
from substyle.engine.backbones.presets import Preset
from substyle.engine.backbones.spec import WHOLE, Backbone, Readout
from substyle.engine.backbones.weights import State
from substyle.kernels.errors import ConfigError

# what reconstructs, contrasts and predicts the noise; a Flax tree also has the optimiser's state
DROPPED = (
    *weights.HEADS,
    r"mask_token",
    r"decoder_?.*",
    r"(projection_head|projector|proj_head|noise_[a-z]+|denoise[a-z_]*)([./].*|_\d+[./].*)?",
    r"(state|step|global_step|pre_logits|head|projection[a-z_]*|bottleneck)(/.*)?",
)
_STEM = "patch_embed.proj.weight"


def load(name: str, preset: Preset, readout: Readout = WHOLE, *, canvas: int, checkpoint: Path) -> Backbone:
    """A CAN encoder.

    Args:
        name: as the user writes it; preset: its row.
        readout: where else to read it.
        canvas: canvas side S in pixels.
        checkpoint: PyTorch, safetensors, or Flax parameters in an ``.npz``.

    Raises:
        ConfigError: no such file.
        WeightsError: keys that are missing, unexpected or of another shape, by name.
    """
    if not checkpoint.is_file():
        raise ConfigError(f"{name}: checkpoint", str(checkpoint), "a file that exists")
    network = timm_family.create(preset.model)
    state = weights.read_checkpoint(name, checkpoint)
    state = weights.flax_to_timm(state, network) if checkpoint.suffix == ".npz" else unwrapped(state)
    weights.fit(name, network, state, checkpoint.name, DROPPED)
    return timm_family.wrap(
        *(name, preset.architecture, network),
        canvas=canvas,
        weights=f"checkpoint {checkpoint.name}",
        config={"side": preset.side, "mean": preset.mean, "std": preset.std},
        readout=readout,
    )


def unwrapped(state: State) -> State:
    """A state with the encoder's names at the top; without exactly one encoder in it, as it is."""
    prefixes = [key.removesuffix(_STEM) for key in state if key.endswith(_STEM)]
    if len(prefixes) != 1:
        return dict(state)
    return {key.removeprefix(prefixes[0]): value for key, value in state.items()}

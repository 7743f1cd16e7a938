"""CAN, contrastive masked autoencoders with noise prediction (arXiv 2210.16870): the ViT encoder in timm's ViT.

Loads Flax parameters (``.npz``) of the original JAX code, as written by Scenic and big_vision, and PyTorch state dicts
of reimplementations with timm's names at the top or after ``encoder.``.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from substyle.engine.backbones import weights
from substyle.engine.backbones.families import timm as timm_family
from substyle.engine.backbones.weights import State

# decoder, projection and noise heads, and the optimiser's state in a Flax tree
DROPPED = (
    *weights.HEADS,
    r"mask_token",
    r"decoder_?.*",
    r"(projection_head|projector|proj_head|noise_[a-z]+|denoise[a-z_]*)([./].*|_\d+[./].*)?",
    r"(state|step|global_step|pre_logits|head|projection[a-z_]*|bottleneck)(/.*)?",
)
_STEM = "patch_embed.proj.weight"


def load(name: str, model: str, checkpoint: Path) -> nn.Module:
    """Load a CAN encoder.

    Args:
        checkpoint: PyTorch, safetensors, or Flax parameters in an ``.npz``.

    Raises WeightsError if keys are missing, unexpected or of another shape.
    """
    network = timm_family.create(model)
    state = weights.read_checkpoint(name, checkpoint)
    state = weights.flax_to_timm(state, network) if checkpoint.suffix == ".npz" else unwrapped(state)
    weights.fit(name, network, state, checkpoint.name, DROPPED)
    return network


def unwrapped(state: State) -> State:
    """Remove the prefix of the encoder's names; unless there is exactly one encoder, return the state unchanged."""
    prefixes = [key.removesuffix(_STEM) for key in state if key.endswith(_STEM)]
    if len(prefixes) != 1:
        return dict(state)
    return {key.removeprefix(prefixes[0]): value for key, value in state.items()}

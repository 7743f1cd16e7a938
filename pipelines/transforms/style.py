"""Coarse class *style*: neural style transfer at full strength, by networks that the engine compiles."""

from __future__ import annotations

from substyle.pipelines.transforms.base import Role, Transformation, register

MULTISTYLE, ARBITRARY = "multistyle", "arbitrary"  # names of the networks


def _register(name: str, role: Role, network: str) -> None:
    register(Transformation(name, "style", role, "network", version=2, network=network))


_register("style_starry", "train", MULTISTYLE)
_register("style_glass", "train", MULTISTYLE)
_register("style_expressionist", "train", MULTISTYLE)
_register("style_wave", "held_out", MULTISTYLE)
_register("style_fauvist", "held_out", MULTISTYLE)
_register("style_arbitrary", "held_out", ARBITRARY)  # another generator, not in the default suite

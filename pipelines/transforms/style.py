"""Coarse class *style*: neural style transfer at full strength, by networks that the engine compiles."""

from __future__ import annotations

from collections.abc import Sequence

from substyle.pipelines.transforms.base import REGISTRY, Role, Transformation, register

MULTISTYLE, ARBITRARY = "multistyle", "arbitrary"  # names of the networks


def _register(name: str, role: Role, network: str, version: int = 2) -> None:
    register(Transformation(name, "style", role, "network", version=version, network=network, generator=network))


_register("style_starry", "train", MULTISTYLE)
_register("style_glass", "train", MULTISTYLE)
_register("style_expressionist", "train", MULTISTYLE)
_register("style_wave", "held_out", MULTISTYLE)
_register("style_fauvist", "held_out", MULTISTYLE)
# another generator, not in the default suite
for _name in ("style_arbitrary", "style_tissue", "style_bricks", "style_gravel", "style_retina"):
    _register(_name, "held_out", ARBITRARY, version=3)


def by_generator(names: Sequence[str]) -> dict[str, list[int]]:
    """Indices of styles among ``names`` by their generator; empty with fewer than two generators."""
    found: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        made = REGISTRY.get(name.partition("@")[0])
        if made is not None and made.generator:
            found.setdefault(made.generator, []).append(index)
    return found if len(found) > 1 else {}

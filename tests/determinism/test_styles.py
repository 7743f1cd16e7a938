"""Stylised images do not depend on batch, order, threads, suite or other images, bit for bit.

Images of one colour are critical: instance normalisation divides rounding errors by almost zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.determinism.canvases import KINDS, Picture, parts, pictures, stack

from substyle.engine.devices import Precision
from substyle.engine.style_transfer.graphs import Generator, Layer
from substyle.engine.style_transfer.networks import ARBITRARY, MULTISTYLE, arbitrary_generator, networks_for
from substyle.pipelines.transforms.base import Network

pytest.importorskip("openvino")

SIDE = 64
ALL = tuple(MULTISTYLE)
SOME = [Picture(kind, seed) for seed in range(2) for kind in KINDS]


@dataclass(frozen=True)
class How:
    """How a network is compiled; only the precision may affect results."""

    names: tuple[str, ...] = ALL
    threads: int = 1
    precision: Precision = "bf16"


@lru_cache(maxsize=8)
def network(how: How) -> Network:
    made = networks_for(how.names, side=SIDE, threads=how.threads, precision=how.precision)
    (only,) = made.values()
    return only


def run(how: How, images: list[Picture], sizes: list[int]) -> dict[str, list[bytes]]:
    """Every style of every image, in batches of these sizes."""
    made: dict[str, list[bytes]] = {name: [] for name in how.names}
    canvas_BSSC = torch.from_numpy(stack(images, SIDE))
    for part in torch.split(canvas_BSSC, sizes):
        for name, pixels_BSSC in network(how)(part).items():
            made[name] += [pixels.tobytes() for pixels in pixels_BSSC.numpy()]
    return made


@lru_cache(maxsize=512)
def alone(names: tuple[str, ...], precision: Precision, picture: Picture) -> dict[str, bytes]:
    made = run(How(names, precision=precision), [picture], [1])
    return {name: pixels[0] for name, pixels in made.items()}


def check(how: How, images: list[Picture], sizes: list[int]) -> None:
    everything = tuple(ARBITRARY) if how.names[0] in ARBITRARY else ALL
    made = run(how, images, sizes)
    for name in how.names:
        for picture, pixels in zip(images, made[name], strict=True):
            assert pixels == alone(everything, how.precision, picture)[name], (name, picture)


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[Picture], list[int]]:
    images = draw(st.lists(pictures(), min_size=1, max_size=9, unique=True))
    return images, draw(parts(len(images), 9))


@pytest.mark.slow
@settings(max_examples=10, derandomize=True, deadline=None, database=None)
@given(case=batches())
def test_styles_in_any_company(case: tuple[list[Picture], list[int]]) -> None:
    check(How(), *case)


OTHERS = [
    How(threads=2),
    How(("style_wave",)),
    How(("style_fauvist", "style_glass"), threads=2),
    How(threads=4),
]


@pytest.mark.parametrize("how", OTHERS[:2])
def test_threads_and_part_of_the_suite_change_no_byte(how: How) -> None:
    check(how, SOME, [len(SOME)])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "other"), [("style_gravel", "style_retina"), ("style_wave", "style_glass")])
def test_a_style_alone_is_the_style_in_company(name: str, other: str) -> None:
    """OpenVINO merges equal layers of two styles, and may not fuse those of one otherwise."""
    picture = Picture("photograph", 0)
    assert run(How((name,)), [picture], [1])[name] == run(How((name, other)), [picture], [1])[name]


def test_weights_of_a_style_do_not_depend_on_other_styles() -> None:
    vector_GV = np.random.default_rng(0).normal(size=(len(ARBITRARY), 100)).astype(np.float32)
    together = layers(arbitrary_generator(vector_GV))
    for i in range(len(vector_GV)):
        for several, one in zip(together, layers(arbitrary_generator(vector_GV[i : i + 1])), strict=True):
            np.testing.assert_array_equal(several.of_style(i), one.of_style(0))


def layers(generator: Generator) -> list[Layer]:
    """Layers whose normalisation depends on the style."""
    found = *generator.contract, *chain(*generator.residual), *generator.expand
    return [layer for layer in found if layer.scale is not None]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("how", [*OTHERS, How(tuple(ARBITRARY)), How(("style_gravel",), threads=2)])
def test_styles_at_length(how: How, precision: Precision) -> None:
    @settings(max_examples=25, deadline=None, database=None)
    @given(case=batches())
    def in_any_company(case: tuple[list[Picture], list[int]]) -> None:
        check(How(how.names, how.threads, precision), *case)

    in_any_company()

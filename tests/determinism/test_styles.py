"""Stylised images do not depend on batch, order, threads, suite or other images, bit for bit.

Images of one colour are critical: instance normalisation divides rounding errors by almost zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.determinism.canvases import Picture, parts, pictures, stack

from substyle.engine.devices import Precision
from substyle.engine.style_transfer.networks import ARBITRARY, MULTISTYLE, networks_for
from substyle.pipelines.transforms.base import Network

pytest.importorskip("openvino")

SIDE = 64
ALL = tuple(MULTISTYLE)


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

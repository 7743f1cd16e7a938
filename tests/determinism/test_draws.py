"""Random draws depend only on (study seed, image key, transformation name) and have the declared distributions.

Statistics use fixed seeds and keys, so results are reproducible; fewer than one fair sequence in ten thousand would
exceed the bounds.
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from tests.determinism.canvases import KINDS, Picture, stack

from substyle.kernels import philox
from substyle.pipelines.transforms import base, overlay, overlay_assets
from substyle.pipelines.transforms.registry import load_all, suite
from substyle.pipelines.variants import VariantMaker

load_all()
DRAWING = tuple(name for name in suite("substance31") if base.get(name).parameters)
MANY = 20_000
LEAST_P = 1e-5
keys_of_any_kind = st.lists(
    st.text() | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape")), min_size=1, max_size=12
)


@cache
def image_keys(seed: int = 0, prefix: str = "train/n") -> NDArray[np.uint64]:
    """Keys of many images with names that differ in one or two digits."""
    return philox.image_keys(seed, [f"{prefix}{i % 10}/{i}.JPEG" for i in range(MANY)])


def plain(name: str) -> base.Transformation:
    """The transformation without ``prepare``, to get the declared parameters."""
    return replace(base.get(name), prepare=None, split_assets=False)


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[str], list[int], list[bool]]:
    """Strategy: image keys, a reordered subset, and which are test images."""
    keys = draw(keys_of_any_kind)
    order = draw(st.permutations(range(len(keys))))[: draw(st.integers(1, len(keys)))]
    return keys, order, draw(st.lists(st.booleans(), min_size=len(keys), max_size=len(keys)))


def check(seed: int, batch: tuple[list[str], list[int], list[bool]], side: int, names: tuple[str, ...]) -> None:
    keys, order, test = batch
    test_B = np.array(test)
    whole_B, some_B = philox.image_keys(seed, keys), philox.image_keys(seed, [keys[i] for i in order])
    assert np.array_equal(whole_B[order], some_B)
    for name in names:
        whole = base.get(name).draw(whole_B, side, test_B)
        some = base.get(name).draw(some_B, side, test_B[order])
        for argument, values in whole.items():
            assert base.feed(values)[order].tobytes() == base.feed(some[argument]).tobytes(), (name, argument)


@settings(max_examples=20, derandomize=True, deadline=None, database=None)
@given(seed=st.integers(), batch=batches(), name=st.sampled_from(DRAWING))
def test_arguments_do_not_depend_on_the_batch(
    seed: int, batch: tuple[list[str], list[int], list[bool]], name: str
) -> None:
    check(seed, batch, 64, (name,))


@pytest.mark.slow
@settings(max_examples=300, deadline=None, database=None)
@given(seed=st.integers(), batch=batches(), side=st.sampled_from((33, 64, 224)))
def test_arguments_at_length(seed: int, batch: tuple[list[str], list[int], list[bool]], side: int) -> None:
    check(seed, batch, side, DRAWING)


def test_global_random_states_are_neither_read_nor_changed() -> None:
    names = ("gaussian_noise", "shot_noise", "elastic", "text_overlay", "motion_blur", "swirl", "dot_halftone")
    make = VariantMaker(names, side=64, seed=0, batch=4, threads=1)
    images = [Picture(kind, 0) for kind in KINDS[:4]]
    canvas = torch.from_numpy(stack(images, 64))
    made = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        made.append([v.pixels_BSSC.numpy().tobytes() for v in make(canvas, [picture.key for picture in images])])
        assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert made[0] == made[1]


@pytest.mark.parametrize("name", DRAWING)
def test_parameters_are_distributed_as_declared(name: str) -> None:
    drawn = plain(name).draw(image_keys(), base.CANVAS)
    for parameter in base.get(name).parameters:
        values = drawn[parameter.name]
        scale = base.CANVAS if parameter.unit == "S" else 1
        if isinstance(parameter, base.Choice):
            table = np.asarray(parameter.values, np.float32).reshape(len(parameter.values), -1) * np.float32(scale)
            counts = [(values.reshape(MANY, -1) == row).all(axis=1).sum() for row in table]
            assert sum(counts) == MANY
            if len(counts) > 1:
                assert stats.chisquare(counts).pvalue > LEAST_P, parameter.name
            continue
        low, high = np.float32(parameter.low * scale), np.float32(parameter.high * scale)
        for column in values.reshape(MANY, -1).T:
            size = np.abs(column) if parameter.signed else column
            assert low <= size.min()
            assert size.max() <= high
            assert stats.kstest(size, stats.uniform(low, high - low).cdf).pvalue > LEAST_P, parameter.name
            if parameter.signed:
                assert stats.binomtest(int((column < 0).sum()), MANY).pvalue > LEAST_P


def test_draws_are_independent() -> None:
    """Of each other, other transformations, neighbouring keys, another seed and other names."""

    def uniforms(keys: NDArray[np.uint64]) -> NDArray[np.float64]:
        counts = {name: sum(p.draws for p in base.get(name).parameters) for name in DRAWING}
        return np.concatenate([philox.uniforms(keys, name, count) for name, count in counts.items()], axis=1)

    some = MANY // 4
    first, second, third = (uniforms(keys[:some]) for keys in (image_keys(), image_keys(1), image_keys(0, "val/n")))
    everything = np.concatenate([first, np.roll(first, 1, axis=0), second, third], axis=1)
    correlation = np.corrcoef(everything, rowvar=False)
    np.fill_diagonal(correlation, 0)
    # the expected maximum over several hundred thousand pairs of columns is about 4.9 standard errors
    assert np.abs(correlation).max() < 6 / np.sqrt(some)
    assert len(np.unique(first, axis=0)) == some


def test_seeds_keys_and_names_make_different_numbers() -> None:
    keys = philox.image_keys(0, ["a", "b", "A", "a ", "", "1:a"])
    others = [philox.image_keys(seed, ["a"])[0] for seed in (1, -1, 10, 2**64)]
    assert len({int(key) for key in (*keys, *others)}) == 10
    rows = {
        (name, int(key)): philox.words(keys[i : i + 1], name, 4).tobytes()
        for i, key in enumerate(keys)
        for name in DRAWING
    }
    assert len(set(rows.values())) == len(rows)
    noise = philox.words(keys, "swirl", 4, stream=philox.NOISE)
    assert not np.array_equal(noise, philox.words(keys, "swirl", 4))


def test_pages_of_overlays_are_equally_likely() -> None:
    u_B = plain("icon_overlay").draw(image_keys(), 64)["page"]
    for pages, test in (
        (overlay_assets.icons, False),
        (overlay_assets.icons, True),
        (overlay_assets.words, False),
        (overlay_assets.words, True),
    ):
        picked = overlay._pick(pages(64), u_B, np.full(MANY, test))
        allowed = pages(64).choices(test=test)
        counts = np.bincount(picked, minlength=len(pages(64).pages_NPP))[allowed]
        assert counts.sum() == MANY
        assert stats.chisquare(counts).pvalue > LEAST_P
    assert stats.chisquare(np.bincount(overlay._pick(overlay_assets.lattices(64), u_B, None))).pvalue > LEAST_P


def test_pixel_noise_is_uniform_and_keyed() -> None:
    size = 224 * 224 * 3
    keys = philox.image_keys(0, ["a", "b"])

    def bits(key: np.uint64, name: str) -> NDArray[np.float64]:
        out = np.empty(size, np.uint16)
        philox.bits16(key, name, out)
        assert stats.chisquare(np.bincount(out >> 6, minlength=1024)).pvalue > LEAST_P
        return out.astype(np.float64)

    rows = [bits(key, name) for key in keys for name in ("gaussian_noise", "impulse_noise", "shot_noise", "elastic")]
    shifted = [np.roll(rows[0], lag) for lag in (1, 2, 3, 8, 224 * 3)]  # next channel, pixel, block and row
    correlation = np.corrcoef(np.stack([*rows, *shifted]))
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 5 / np.sqrt(size)

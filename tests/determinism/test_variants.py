"""Variants do not depend on batch, order, threads, suite, process or other images, bit for bit.

Each example shuffles 1 to 9 images into random batches, for a random suite and number of threads, and compares every
variant with that of the image alone on one thread.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.determinism.canvases import Picture, parts, pictures, stack

from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import load_all, suite
from substyle.pipelines.variants import Variant, VariantMaker

load_all()
SEED = 11
OWN = tuple(name for name in suite("substance31") if base.get(name).made_by != "network")
_rng = np.random.default_rng(0)
SUITES = (OWN, *((name,) for name in OWN), *(tuple(_rng.permutation(OWN)[:size].tolist()) for size in (2, 5, 9, 20)))


@dataclass(frozen=True)
class Case:
    side: int
    images: list[Picture]
    sizes: list[int]
    batch: int
    threads: int
    names: tuple[str, ...]


@st.composite
def cases(draw: st.DrawFn, sides: tuple[int, ...], suites: tuple[tuple[str, ...], ...], largest: int = 9) -> Case:
    images = draw(st.lists(pictures(), min_size=1, max_size=largest, unique=True))
    batch = draw(st.sampled_from((5, largest)))
    return Case(
        draw(st.sampled_from(sides)),
        images,
        draw(parts(len(images), batch)),
        batch,
        draw(st.sampled_from((1, 2, 4))),
        draw(st.sampled_from(suites)),
    )


@lru_cache(maxsize=48)
def maker(names: tuple[str, ...], side: int, batch: int, threads: int) -> VariantMaker:
    return VariantMaker(names, side=side, seed=SEED, batch=batch, threads=threads)


def made(variant_maker: VariantMaker, images: list[Picture], side: int) -> list[Variant]:
    canvas_BSSC = torch.from_numpy(stack(images, side))
    test_B = np.array([picture.test for picture in images])
    return list(variant_maker(canvas_BSSC, [picture.key for picture in images], test_B))


@lru_cache(maxsize=512)
def alone(picture: Picture, side: int) -> dict[str, tuple[bytes, bool]]:
    """Every variant of one image in a batch of one, and whether it is distinct."""
    torch.set_num_threads(1)
    variants = made(maker(OWN, side, 1, 1), [picture], side)
    return {v.name: (v.pixels_BSSC.numpy().tobytes(), bool(v.distinct_B[0])) for v in variants}


def check(case: Case) -> None:
    expected = [alone(picture, case.side) for picture in case.images]
    torch.set_num_threads(case.threads)
    start = 0
    for size in case.sizes:
        some = case.images[start : start + size]
        variants = made(maker(case.names, case.side, case.batch, case.threads), some, case.side)
        assert tuple(v.name for v in variants) == case.names
        for variant in variants:
            for i, picture in enumerate(some):
                pixels, distinct = expected[start + i][variant.name]
                assert variant.pixels_BSSC[i].numpy().tobytes() == pixels, (variant.name, picture)
                assert bool(variant.distinct_B[i]) == distinct, (variant.name, picture)
        start += size
    assert start == len(case.images)


@settings(max_examples=10, derandomize=True, deadline=None, database=None)
@given(case=cases((64, 97), (OWN,)))
def test_all_variants_in_any_company(case: Case) -> None:
    check(case)


@settings(max_examples=20, derandomize=True, deadline=None, database=None)
@given(case=cases((64,), SUITES))
def test_a_part_of_the_suite_in_any_company(case: Case) -> None:
    check(case)


# --- in another process -----------------------------------------------------------------------------------------------


SCRIPT = "import json; from tests.determinism import test_variants; print(json.dumps(test_variants.digests(1)))"


def digests(threads: int) -> dict[str, str]:
    """Of the pixels of each transformation that is no network."""
    load_all()
    names = [*suite("substance31"), *(name for name in suite("styles48") if base.get(name).made_by == "kernel")]
    names = [name for name in names if base.get(name).made_by != "network"]
    rng = np.random.default_rng(8)
    canvas = rng.integers(0, 256, (5, 8, 8, 3), np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    canvas[-1] = 77
    made = VariantMaker(tuple(names), side=64, seed=3, batch=5, threads=threads)
    variants = made(torch.from_numpy(canvas), [f"ß/{i}.jpg" for i in range(5)], np.arange(5) % 2 == 0)
    return {v.name: hashlib.sha256(v.pixels_BSSC.numpy().tobytes()).hexdigest() for v in variants}


@pytest.mark.slow
def test_another_process_makes_the_same_variants() -> None:
    torch.set_num_threads(2)
    here = digests(2)
    assert len(set(here.values())) == len(here) == 26 + 40
    environment = os.environ | {"PYTHONHASHSEED": "4242", "OMP_NUM_THREADS": "1"}
    command, root = [sys.executable, "-c", SCRIPT], Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == here

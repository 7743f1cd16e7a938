"""The variant maker: independence of the batch, outputs, and rejected arguments."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from substyle.errors import ConfigError, SubstyleError
from substyle.pipelines import dali
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import suite
from substyle.pipelines.variants import VariantMaker, distinct, load_all, load_plugin

load_all()
SIDE = 64
OWN = tuple(name for name in suite("substance31") if base.get(name).made_by != "network")


def images(count: int, side: int = SIDE) -> torch.Tensor:
    """Smooth colours with grain."""
    rng = np.random.default_rng(count)
    y, x = np.mgrid[0:side, 0:side] / side
    phase = rng.uniform(0, 6, (count, 1, 1, 3))
    waves = 127 + 60 * np.sin(9 * x[..., None] + phase) + 50 * np.cos(8 * y[..., None] - phase)
    return torch.from_numpy(np.clip(waves + rng.normal(0, 5, waves.shape), 0, 255).astype(np.uint8))


def maker(names: tuple[str, ...] = OWN, *, batch: int = 16, threads: int = 2, seed: int = 3) -> VariantMaker:
    return VariantMaker(names, side=SIDE, seed=seed, batch=batch, threads=threads)


def stacked(m: VariantMaker, canvas: torch.Tensor, keys: list[str], test_B: np.ndarray | None = None) -> torch.Tensor:
    return torch.stack([v.pixels_BSSC for v in m(canvas, keys, test_B)])


def test_a_smaller_suite_makes_the_same_pixels() -> None:
    canvas, keys = images(4), list("abcd")
    whole = dict(zip(OWN, stacked(maker(), canvas, keys), strict=True))
    for name in ("motion_blur", "text_overlay", "swirl", "gaussian_noise"):
        (variant,) = maker((name,))(canvas, keys)
        assert torch.equal(variant.pixels_BSSC, whole[name])


def test_distinct_is_one_grey_level_on_average() -> None:
    a = torch.full((4, 5, 5, 3), 100, dtype=torch.uint8)
    b = a.clone()
    b[1] += 1
    b[2] -= 1
    b[2, 0, 0, 0] = 100
    b[3, :2] = 0
    assert distinct(a, b).tolist() == [False, True, False, True]


def test_a_missing_network_is_named() -> None:
    with pytest.raises(ConfigError, match=r"multistyle.* style_glass") as caught:
        VariantMaker(("identity", "style_glass"), side=SIDE, seed=0, batch=4, threads=1, networks={})
    assert caught.value.field == "networks"


def test_an_empty_batch() -> None:
    assert list(maker()(images(2)[:0], [])) == []


PLUGIN = """
import torch
from substyle.pipelines.transforms.base import Choice, Uniform, dali, kernel

@kernel("{0}_solarize", kind="tone", role="train", parameters=[Choice("threshold", (64, 128), unit="level")])
def solarize(canvas_BSSC, args, keys_B):
    threshold = torch.from_numpy(args["threshold"]).view(-1, 1, 1, 1)
    return torch.where(canvas_BSSC < threshold, canvas_BSSC, 255 - canvas_BSSC)

@dali("{0}_negative", kind="tone", role="train", parameters=[Uniform("unused", 0, 1)])
def negative(canvas, args, side):
    from nvidia.dali import types

    return canvas ^ types.Constant(255).uint8()

@dali("{0}_wide", kind="tone", role="train")
def wide(canvas, args, side):
    return canvas ^ 255

@dali("{0}_lost", kind="tone", role="train", parameters=[Uniform("amount", 0, 1)])
def lost(canvas, args, side):
    return canvas * args["ammount"]

@kernel("{0}_wrong", kind="tone", role="train")
def wrong(canvas_BSSC, args, keys_B):
    return canvas_BSSC.float()
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("plugin") / "mine.py"
    file.write_text(PLUGIN.format("mine"))
    load_plugin(file)
    load_plugin(file)  # once for each path
    return "mine"


def test_a_plugin_adds_transformations(plugin: str) -> None:
    canvas = images(2)
    names = suite(f"{plugin}_solarize,{plugin}_negative")
    made = {v.name: v.pixels_BSSC for v in maker(names)(canvas, ["a", "b"])}
    assert torch.equal(made[f"{plugin}_negative"], 255 - canvas)
    assert (made[f"{plugin}_solarize"] <= 191).all()


def test_a_plugin_that_asks_for_an_unknown_argument_is_named(plugin: str) -> None:
    with pytest.raises(ConfigError, match=f"{plugin}_lost: argument.*amount"):
        maker((f"{plugin}_lost",))


@pytest.mark.parametrize(("name", "made"), [("wrong", "float32"), ("wide", "int32")])
def test_a_plugin_that_makes_no_pixels_is_named(plugin: str, name: str, made: str) -> None:
    with pytest.raises(SubstyleError, match=rf"{plugin}_{name}.* torch\.{made}"):
        list(maker((f"{plugin}_{name}",))(images(1), ["a"]))


def test_arguments_of_types_that_dali_has_not() -> None:
    with pytest.raises(ConfigError, match="complex64"):
        dali.dali_type(np.zeros(1, np.complex64))

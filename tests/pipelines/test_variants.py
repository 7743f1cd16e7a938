"""The variant maker: independence of the batch, graphs for a GPU, transformations of plug-ins, and the gallery."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import operators
from benchmarks.gpu_check import tolerances
from PIL import Image
from tests.pipelines.conftest import encode, photographs, scene, variants

from substyle.errors import ConfigError, ImageError, SubstyleError
from substyle.pipelines import dali
from substyle.pipelines import variants as variants_module
from substyle.pipelines.transforms import base, color
from substyle.pipelines.transforms.registry import suite
from substyle.pipelines.variants import VariantMaker, distinct, load_all, load_plugin

load_all()
SIDE = 64
OWN = tuple(name for name in suite("substance31") if base.get(name).made_by != "network")


def test_a_smaller_suite_makes_the_same_pixels() -> None:
    canvas_BSSC = photographs(SIDE, 4)
    whole = variants(OWN, canvas_BSSC)
    for name in ("motion_blur", "text_overlay", "swirl", "gaussian_noise"):
        assert torch.equal(variants([name], canvas_BSSC)[name], whole[name])
    assert not variants(OWN, canvas_BSSC[:0])


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
    canvas = photographs(SIDE, 2)
    made = variants(suite(f"{plugin}_solarize,{plugin}_negative"), canvas)
    assert torch.equal(made[f"{plugin}_negative"], 255 - canvas)
    assert (made[f"{plugin}_solarize"] <= 191).all()


def test_a_plugin_that_asks_for_an_unknown_argument_is_named(plugin: str) -> None:
    with pytest.raises(ConfigError, match=f"{plugin}_lost: argument.*amount"):
        variants([f"{plugin}_lost"], photographs(SIDE, 1))


@pytest.mark.parametrize(("name", "made"), [("wrong", "float32"), ("wide", "int32")])
def test_a_plugin_that_makes_no_pixels_is_named(plugin: str, name: str, made: str) -> None:
    with pytest.raises(SubstyleError, match=rf"{plugin}_{name}.* torch\.{made}"):
        variants([f"{plugin}_{name}"], photographs(SIDE, 1))


def test_arguments_of_types_that_dali_has_not() -> None:
    with pytest.raises(ConfigError, match="complex64"):
        dali.dali_type(np.zeros(1, np.complex64))


# --- graphs for a GPU -------------------------------------------------------------------------------------------------


def test_the_table_of_operators_is_that_of_the_page() -> None:
    text = operators.PAGE.read_text()
    assert operators.page(text) == text


def test_a_graph_for_a_gpu_has_the_pixels_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU's definitions give on the CPU, within the bounds of the table."""
    names = ("hue_shift", "saturate", "low_contrast", "zoom_blur", "jpeg")
    canvas_BSSC = torch.from_numpy(np.stack([scene(97, 97, seed) for seed in range(4)]))
    on_cpu, plain = variants(names, canvas_BSSC), base.Transformation.implementation
    monkeypatch.setattr(VariantMaker, "on_gpu", property(lambda maker: True))
    monkeypatch.setattr(base.Transformation, "implementation", lambda own, gpu: plain(own, gpu=True))
    monkeypatch.setattr(color, "is_on_gpu", lambda canvas: True)
    on_gpu = variants(names, canvas_BSSC)
    for name in names:
        good, text = tolerances.within(on_gpu[name], on_cpu[name], tolerances.VARIANTS[name])
        assert good, f"{name}: {text}"
    assert torch.equal(on_gpu["jpeg"], on_cpu["jpeg"])
    assert torch.equal(on_gpu["low_contrast"], on_cpu["low_contrast"])
    assert not torch.equal(on_gpu["zoom_blur"], on_cpu["zoom_blur"])  # another implementation


# --- the gallery ------------------------------------------------------------------------------------------------------


def test_gallery_holds_every_variant(tmp_path: Path) -> None:
    names = ("identity", "gaussian_blur", "motion_blur", "jpeg", "grayscale")
    made = variants_module.variants_of(encode(scene(80, 120), "PNG"), names, side=48)
    assert tuple(made) == names
    file = tmp_path / "variants_module.png"
    variants_module.draw(made, {"jpeg": "JPEG"}, file, columns=1)
    sheet = np.asarray(Image.open(file))
    windows = np.lib.stride_tricks.sliding_window_view(sheet, (48, 48, 3))[:, variants_module.LABEL, 0]
    for name, image in made.items():
        assert any(np.array_equal(window, image) for window in windows), name


def test_an_image_that_cannot_be_decoded() -> None:
    with pytest.raises(ImageError, match=r"^p\.jpg: "):
        variants_module.variants_of(b"hello", ("identity",), key="p.jpg")

"""Styles of one's own pictures: which pixels they make, in any company, and that they are those of packaged ones."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from substyle.engine.style_transfer.networks import ARBITRARY, DeviceStyles, StyleNetwork, generator_for
from substyle.errors import ConfigError
from substyle.pipelines.packaged_photographs import canvases, paths
from substyle.pipelines.transforms import base, registry
from substyle.pipelines.transforms.registry import load_all, load_file, load_suite
from substyle.pipelines.transforms.style import SIDE, decode_picture

pytest.importorskip("openvino")

CANVAS = 64
FILE = """
transformations = [
    { name = "wall", of = "style_arbitrary", picture = "brick.png" },
    { name = "again", of = "style_retina", picture = "copy.png" },
    { pictures = "paintings", of = "style_bricks" },
]
"""
NAMES = ("wall", "again", "style_chelsea", "style_coffee")


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The styles `NAMES`."""
    load_all()
    known = dict(base.REGISTRY)
    monkeypatch.setattr(registry, "_loaded", [])
    content = {path.stem: path.read_bytes() for path in paths()}
    (tmp_path / "paintings").mkdir()
    files = {"brick.png": "brick", "copy.png": "brick", "paintings/chelsea.png": "chelsea"}
    for name, photograph in {**files, "paintings/coffee.png": "coffee"}.items():
        (tmp_path / name).write_bytes(content[photograph])
    (tmp_path / "own.toml").write_text(FILE)
    assert load_suite(tmp_path / "own.toml") == NAMES
    yield
    base.REGISTRY.clear()
    base.REGISTRY.update(known)
    load_file.cache_clear()


def photographs() -> torch.Tensor:
    return torch.from_numpy(canvases(3, CANVAS)[0])


def in_openvino(*names: str) -> dict[str, torch.Tensor]:
    return StyleNetwork(names, side=CANVAS, threads=1)(photographs())


def in_torch(*names: str) -> dict[str, torch.Tensor]:
    how = {"device": torch.device("cpu"), "piece": 3, "mode": "off"}
    return DeviceStyles(generator_for(names), names, side=CANVAS, precision="fp32", **how)(photographs())  # type: ignore[arg-type]


@pytest.mark.parametrize("made_by", [in_openvino, in_torch])
def test_a_style_is_that_of_its_picture(made_by: Callable[..., dict[str, torch.Tensor]]) -> None:
    made = made_by("wall", "style_bricks", "again", "style_chelsea")
    assert torch.equal(made["wall"], made["style_bricks"])
    assert torch.equal(made["wall"], made["again"])
    for one, other in ((made["wall"], photographs()), (made["style_chelsea"], made["wall"])):
        assert ((one.float() - other.float()).abs().mean((1, 2, 3)) > 8).all()


@pytest.mark.parametrize("file", [file for file, _ in ARBITRARY.values() if file])
def test_packaged_pictures_are_decoded_as_ever(file: str) -> None:
    content = (resources.files("skimage") / "data" / file).read_bytes()
    with Image.open(io.BytesIO(content)) as opened:
        square = ImageOps.fit(opened.convert("RGB"), (SIDE, SIDE), Image.Resampling.BICUBIC)
    assert np.array_equal(decode_picture(content).pixels_SSC, np.asarray(square))


def test_styles_without_a_picture_are_refused() -> None:
    base.register(base.Transformation("other", "style", "train", "network", network="arbitrary"))
    with pytest.raises(ConfigError, match="style_retina and styles with a picture"):
        generator_for(["wall", "other"])

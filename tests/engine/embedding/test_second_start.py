"""A second start reads no weights, makes no variants, runs no gate, unless something changed that decides them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tests.conftest import jpeg, photograph

from substyle.engine import cache
from substyle.engine.backbones import registry
from substyle.engine.backbones.compile import CompiledBackbone
from substyle.engine.backbones.gate import PrecisionSearch
from substyle.engine.backbones.registry import Family, LoadContext
from substyle.engine.backbones.spec import Backbone, BackboneSpec
from substyle.engine.config import BackboneChoice, EmbedConfig, Settings
from substyle.engine.embedding.prepare import PixelPipeline, Samples, prepare_backbones
from substyle.kernels.errors import ConfigError
from substyle.pipelines.sources import FolderSource
from substyle.pipelines.transforms import base

CONFIG = EmbedConfig(batch=4, threads=1, precision="fp32")
SETTINGS = Settings(0, 64, ("identity", "grayscale", "gaussian_noise"))


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SUBSTYLE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(5):
        (folder / f"{i}.jpg").write_bytes(jpeg(photograph(i)))
    return folder


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done and not found in the cache: ``load``, ``variants``, ``gate``."""
    done: list[str] = []
    load, search, variants = registry.load, PrecisionSearch._search, Samples.variants

    def note(what: str, real: Callable[..., object]) -> Callable[..., object]:
        def noted(*arguments: object) -> object:
            if what not in done:
                done.append(what)
            return real(*arguments)

        return noted

    monkeypatch.setattr(registry, "load", note("load", load))
    monkeypatch.setattr(PrecisionSearch, "_search", note("gate", search))
    monkeypatch.setattr(Samples, "variants", note("variants", variants))
    return done


def graph(weight: float, side: int) -> bytes:
    """(4, S, S, 3) uint8 to (4, 3 S): means over columns, scaled. Written by hand: an export takes seconds."""
    nodes = [
        helper.make_node("Cast", ["canvas"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=0),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Mul", ["flat", "weight"], ["embedding"]),
    ]
    inputs = [helper.make_tensor_value_info("canvas", TensorProto.UINT8, [4, side, side, 3])]
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [4, 3 * side])]
    constants = [
        numpy_helper.from_array(np.array([2], np.int64), "axes"),
        numpy_helper.from_array(np.array(weight, np.float32), "weight"),
    ]
    made = helper.make_graph(nodes, "g", inputs, outputs, constants)
    return bytes(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString())


def tiny(name: str, rest: str, context: LoadContext) -> Backbone:
    """A backbone whose one weight is in a file."""
    assert context.checkpoint is not None
    text, side = context.checkpoint.read_text(), context.canvas
    rgb = (0.5, 0.5, 0.5)
    digest = hashlib.sha256(text.encode()).hexdigest()
    spec = BackboneSpec(name, "rows", 3 * side, side, rgb, rgb, "rows", "file", digest)
    return Backbone(spec, graph=graph(float(text), side))


@pytest.fixture(autouse=True)
def family(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def identify(name: str, rest: str, context: LoadContext) -> dict[str, object] | None:
        return registry.checkpoint_identity(context.checkpoint)

    (tmp_path / "weight").write_text("1.5")
    # a prefix that may have a checkpoint
    monkeypatch.setitem(registry.FAMILIES, "timm", Family("timm", "rows", "rows", tiny, identify, checkpoint=True))


def prepare(images: Path, settings: Settings = SETTINGS, config: EmbedConfig = CONFIG) -> CompiledBackbone:
    records = {record.key: record for record in FolderSource(images).records}
    samples = Samples(PixelPipeline(settings, config), records, list(records))
    (compiled,) = prepare_backbones([BackboneChoice("timm:rows", images.parent / "weight")], samples, quiet=True)
    return compiled


def test_nothing_is_done_twice(images: Path, work: list[str]) -> None:
    first = prepare(images)
    assert sorted(work) == ["gate", "load", "variants"]
    work.clear()
    second = prepare(images)
    assert work == []
    assert (second.spec, second.gate, second.runtime) == (first.spec, first.gate, first.runtime)
    assert second.rate == first.rate
    pixels = np.stack([np.array(photograph(i, 64, 64)) for i in range(3)])
    np.testing.assert_array_equal(second.embed(pixels), first.embed(pixels))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"canvas": 96},
        {"orientation": "apply"},
        {"transformations": ("identity", "grayscale", "impulse_noise")},
        {"transformations": ("identity", "grayscale")},
    ],
)
def test_changed_settings_are_looked_at_anew(images: Path, work: list[str], change: dict[str, object]) -> None:
    prepare(images)
    work.clear()
    prepare(images, settings=dataclasses.replace(SETTINGS, **change))  # type: ignore[arg-type]
    assert "variants" in work
    if change.get("orientation") != "apply":  # there these photographs give the same pixels, and so the same gate
        assert "gate" in work


def test_style_precision_is_looked_at_anew(images: Path, work: list[str]) -> None:
    styled = dataclasses.replace(SETTINGS, transformations=("identity", "style_wave"))
    prepare(images, settings=styled)
    work.clear()
    prepare(images, settings=styled)
    assert work == []
    prepare(images, settings=dataclasses.replace(styled, style_precision="fp32"))
    assert {"gate", "variants"} <= set(work)


@pytest.mark.parametrize("change", [{"precision": "auto"}, {"dtype": "float32"}])
def test_another_precision_or_type_runs_the_gate(images: Path, work: list[str], change: dict[str, str]) -> None:
    prepare(images)
    work.clear()
    prepare(images, config=dataclasses.replace(CONFIG, **change))  # type: ignore[arg-type]
    assert "gate" in work


def test_one_changed_photograph_is_enough(images: Path, work: list[str]) -> None:
    prepare(images)
    work.clear()
    (images / "3.jpg").write_bytes(jpeg(photograph(77)))
    prepare(images)
    assert {"gate", "variants"} <= set(work)


def test_a_photograph_that_is_gone_is_enough(images: Path, work: list[str]) -> None:
    prepare(images)
    work.clear()
    (images / "3.jpg").unlink()
    prepare(images)
    assert "gate" in work


@pytest.mark.parametrize("what", ["definition", "code", "versions", "device"])
def test_what_computes_is_part_of_the_keys(
    images: Path, work: list[str], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(images)
    work.clear()
    if what == "definition":
        changed = dataclasses.replace(base.get("grayscale"), version=99)
        monkeypatch.setitem(base.REGISTRY, "grayscale", changed)
    elif what == "code":
        monkeypatch.setattr(cache, "code_hash", lambda *patterns: "changed")
    elif what == "versions":
        monkeypatch.setattr(cache, "versions", lambda *names: dict.fromkeys(names, "9"))
    else:
        monkeypatch.setattr(cache, "device", lambda: "another")
    prepare(images)
    assert "variants" in work
    assert ("gate" in work) == (what != "definition")  # the same pixels need no second gate


def test_a_changed_checkpoint_of_the_same_size_is_loaded(images: Path, work: list[str]) -> None:
    path = images.parent / "weight"
    first = prepare(images)
    work.clear()
    path.write_text("1.5")  # the same again, at another time
    assert prepare(images).spec == first.spec
    assert work == []
    before = path.stat()
    path.write_text("2.5")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = prepare(images)
    assert {"gate", "load"} <= set(work)
    assert second.spec.weights_hash != first.spec.weights_hash
    pixels = np.stack([np.array(photograph(i, 64, 64)) for i in range(3)])
    np.testing.assert_allclose(second.embed(pixels), first.embed(pixels) * (2.5 / 1.5), rtol=1e-5)


def test_a_family_without_identity_is_loaded_each_time(
    images: Path, work: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.FAMILIES, "timm", Family("timm", "rows", "rows", tiny, checkpoint=True))
    first = prepare(images)
    work.clear()
    assert prepare(images).spec == first.spec
    assert work == ["load"]
    (images.parent / "weight").write_text("7.5")
    assert prepare(images).spec.weights_hash != first.spec.weights_hash
    assert "gate" in work


def test_transformations_of_plugins_are_made_each_time(
    images: Path, work: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = iter((10, 10, 10, 10, 60, 60))  # for the batches of 4 and 1 of three starts

    def darker(canvas_BSSC: torch.Tensor, args: object, keys_B: object) -> torch.Tensor:
        return canvas_BSSC.clamp_max(255 - next(levels))

    made = base.Transformation("darker", "tone", "train", "kernel", function=darker)
    monkeypatch.setitem(base.REGISTRY, "darker", made)
    settings = dataclasses.replace(SETTINGS, transformations=("identity", "darker"))
    prepare(images, settings=settings)
    work.clear()
    prepare(images, settings=settings)
    assert work == ["variants"]
    prepare(images, settings=settings)
    assert "gate" in work


@pytest.mark.parametrize("how", ["cut", "flipped", "empty", "gone"])
@pytest.mark.parametrize("kind", ["samples", "sources", "gates", "rates", "openvino"])
def test_damaged_entries_are_made_anew(
    images: Path, own: Path, kind: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = prepare(images)
    (path,) = (own / kind).iterdir()
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]
        path.write_bytes({"cut": data[:-1], "flipped": flipped, "empty": b""}[how])
    capsys.readouterr()
    second = prepare(images)
    said = capsys.readouterr().err
    assert ("checksum mismatch" in said) == (how != "gone")
    assert (second.spec, second.gate, second.runtime) == (first.spec, first.gate, first.runtime)
    pixels = np.stack([np.array(photograph(i, 64, 64)) for i in range(3)])
    np.testing.assert_array_equal(second.embed(pixels), first.embed(pixels))


def test_style_networks_are_not_made_before_they_are_needed(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    styled = dataclasses.replace(SETTINGS, transformations=("identity", "style_wave"))
    prepare(images, settings=styled)
    monkeypatch.setattr(PixelPipeline, "_make", lambda *arguments: pytest.fail("made for nothing"))
    prepare(images, settings=styled)


def test_quantisation_sees_other_photographs_in_all_transformations(images: Path) -> None:
    for i in range(5, 40):
        (images / f"{i}.jpg").write_bytes(jpeg(photograph(i)))
    (images / "35.jpg").write_bytes(b"no image")
    records = {record.key: record for record in FolderSource(images).records}
    keys = [f"{i}.jpg" for i in range(40)]
    samples = Samples(PixelPipeline(SETTINGS, CONFIG), records, keys)
    further = samples.further()
    assert [batch.shape for batch in further] == [(4, 64, 64, 3)] * 3
    # 32 to 39 but for 35: two groups of four; the transformations take them in turns
    canvases = Samples(PixelPipeline(SETTINGS, CONFIG), records, keys[32:]).canvas()
    gate = {canvas.tobytes() for canvas in samples.canvas()}
    assert len(canvases) == 7
    assert not gate & {canvas.tobytes() for canvas in canvases}
    identity, noise, grey = further  # of the first group identity and noise, of the second grayscale
    np.testing.assert_array_equal(identity, canvases[:4])
    assert 0 < np.abs(noise.astype(int) - identity).mean() < 120
    assert (grey[..., 0] == grey[..., 1]).all()
    assert abs(grey[3].mean() - canvases[0].mean()) < 30  # the second group is filled up from the front
    with pytest.raises(ConfigError, match="32") as caught:
        Samples(PixelPipeline(SETTINGS, CONFIG), records, keys[:32]).further()
    assert caught.value.field == "precision"

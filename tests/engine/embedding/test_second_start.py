"""A second start reads no weights, makes no variants, runs no gate, unless something changed that decides them."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.conftest import jpeg, photograph

from substyle.engine.backbones import registry
from substyle.engine.backbones.compile import CompiledBackbone
from substyle.engine.backbones.gate import GateError, GateResult, PrecisionGate, RejectedError
from substyle.engine.backbones.registry import Family, LoadContext
from substyle.engine.backbones.runtimes.base import PrecisionPolicy
from substyle.engine.backbones.runtimes.openvino import FixedBatch, OpenVINOGraph
from substyle.engine.backbones.runtimes.openvino_builder import OpenVINOBuilder
from substyle.engine.backbones.spec import Backbone, BackboneSpec
from substyle.engine.config import BackboneChoice, BackbonePrecision, EmbedConfig, Settings
from substyle.engine.embedding.prepare import OwnSamples, PackagedSamples, PixelPipeline, Samples, prepare_backbones
from substyle.pipelines import packaged_photographs
from substyle.pipelines.sources import FolderSource

CONFIG = EmbedConfig(batch=4, threads=1, precision="bf16")
SETTINGS = Settings(0, 64, ("identity", "grayscale", "gaussian_noise"))


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SUBSTYLE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fill(root: Path) -> Path:
    """A weight, and beside it a folder of photographs, which is returned."""
    (root / "weight").write_text("1.5")
    folder = root / "images"
    folder.mkdir()
    for i in range(5):
        (folder / f"{i}.jpg").write_bytes(jpeg(photograph(i)))
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return fill(tmp_path)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done and not found in the cache: ``load``, ``variants``, ``gate``, ``spot``."""
    done: list[str] = []

    def note(what: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: object) -> object:
            if what not in done:
                done.append(what)
            return real(*arguments)

        return noted

    monkeypatch.setattr(registry, "load", note("load", registry.load))
    monkeypatch.setattr(PrecisionGate, "_embed", note("gate", PrecisionGate._embed))
    monkeypatch.setattr(PrecisionGate, "_spotted", note("spot", PrecisionGate._spotted))
    monkeypatch.setattr(Samples, "pictures", note("variants", Samples.pictures))
    return done


def graph(weight: float, side: int) -> bytes:
    """(4, S, S, 3) uint8 to (4, 3 S): means over columns, scaled. Written by hand: an export takes seconds."""
    nodes = [
        helper.make_node("Cast", ["canvas"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=0),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["embedding"]),
    ]
    inputs = [helper.make_tensor_value_info("canvas", TensorProto.UINT8, [4, side, side, 3])]
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [4, 3 * side])]
    constants = [
        numpy_helper.from_array(np.array([2], np.int64), "axes"),
        numpy_helper.from_array(weight * np.eye(3 * side, dtype=np.float32), "weight"),
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


def identify(name: str, rest: str, context: LoadContext) -> dict[str, object] | None:
    return registry.checkpoint_identity(context.checkpoint)


tiny.__module__ = "substyle.engine.of_a_test"  # what code of others loads is loaded each time
# a prefix that may have a checkpoint
FAMILY = Family("timm", "rows", "rows", tiny, identify, checkpoint=True)


@pytest.fixture(autouse=True)
def family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.FAMILIES, "timm", FAMILY)


def prepare(images: Path, settings: Settings = SETTINGS, config: EmbedConfig = CONFIG) -> CompiledBackbone:
    records = {record.key: record for record in FolderSource(images).records}
    samples = OwnSamples(PixelPipeline(settings, config), records, list(records), 4)
    (compiled,) = prepare_backbones([BackboneChoice("timm:rows", images.parent / "weight")], samples, quiet=True)
    return compiled


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CompiledBackbone]:
    """The cache after a first start, and what it compiled."""
    root = tmp_path_factory.mktemp("started")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUBSTYLE_CACHE", str(root / "cache"))
        patch.setitem(registry.FAMILIES, "timm", FAMILY)
        return root / "cache", prepare(fill(root))


@pytest.fixture
def first(started: tuple[Path, CompiledBackbone], own: Path) -> CompiledBackbone:
    """What a first start on the same photographs compiled; the cache is as it left it."""
    shutil.copytree(started[0], own)
    return started[1]


def test_nothing_is_done_twice(images: Path, work: list[str]) -> None:
    first = prepare(images)
    assert sorted(work) == ["gate", "load", "spot", "variants"]
    work.clear()
    second = prepare(images)
    assert work == []
    assert (second.spec, second.gates, second.runtime) == (first.spec, first.gates, first.runtime)
    assert second.rate == first.rate
    pixels = np.stack([np.array(photograph(i, 64, 64)) for i in range(3)])
    np.testing.assert_array_equal(second.embed(pixels), first.embed(pixels))


@pytest.mark.parametrize("names", [("identity", "grayscale", "impulse_noise"), ("identity", "grayscale")])
def test_a_suite_of_what_has_been_compared_costs_nothing(
    images: Path, first: CompiledBackbone, work: list[str], names: tuple[str, ...]
) -> None:
    """Among these is what every gate compares."""
    found = prepare(images, settings=dataclasses.replace(SETTINGS, transformations=names))
    assert work == []
    assert found.gates == first.gates


def test_quantisation_sees_other_photographs_in_all_transformations() -> None:
    samples = PackagedSamples(PixelPipeline(SETTINGS, CONFIG))
    further = samples.extra_samples()
    assert [batch.shape for batch in further] == [(4, 64, 64, 3)] * 3
    canvases, _ = packaged_photographs.canvases(64, 64)
    np.testing.assert_array_equal(samples.decoded[0], canvases[:32])
    identity, grey, noise = further  # of the first, second and third group of four after the gate's
    np.testing.assert_array_equal(identity, canvases[32:36])
    assert (grey[..., 0] == grey[..., 1]).all()
    assert 0 < np.abs(noise.astype(int) - canvases[40:44]).mean() < 120


@pytest.mark.parametrize("full", [False, True])
def test_where_own_photographs_fail_the_precision_is_searched_for_on_them(
    images: Path, full: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """bf16 passes on packaged photographs, and not on these."""

    def refuse(real: Callable[..., Any]) -> Callable[..., Any]:
        def check(gate: PrecisionGate, policy: PrecisionPolicy, *given: object) -> list[GateResult]:
            if policy.precision == "bf16" and isinstance(gate.samples, OwnSamples):
                raise RejectedError("bf16 disagrees")
            return real(gate, policy, *given)  # type: ignore[no-any-return]

        return check

    for name in ("compare", "spot"):
        monkeypatch.setattr(PrecisionGate, name, refuse(getattr(PrecisionGate, name)))
    monkeypatch.setattr("substyle.engine.backbones.precision.cpu.has", lambda *features: True)
    config = dataclasses.replace(CONFIG, precision="auto", gate="full" if full else "auto")
    for _ in range(2):
        compiled = prepare(images, config=config)
        assert compiled.runtime["precision"] == "fp32"
        assert compiled.gates is not None
        assert "spot" not in compiled.gates[0]
        assert compiled.gates[0]["images"] == 4
        assert ("trying others" in capsys.readouterr().err) == (not full)
    with pytest.raises(GateError):
        prepare(images, config=dataclasses.replace(config, precision="bf16"))


def test_the_result_tells_the_spot_check(images: Path, first: CompiledBackbone) -> None:
    compiled = prepare(images)
    assert compiled.gates is not None
    assert (compiled.gates[0]["images"], compiled.gates[0]["rows"]) == (16, 24)
    assert compiled.gates[0]["reference"] == "float32"
    assert (compiled.gates[0]["spot"]["images"], compiled.gates[0]["spot"]["rows"]) == (4, 16)
    exact = prepare(images, config=dataclasses.replace(CONFIG, precision="fp32"))
    assert exact.gates is not None
    assert (exact.gates[0]["images"], exact.gates[0]["rows"], exact.gates[0]["reference"]) == (
        16,
        24,
        "the same graph in float32",
    )
    assert "spot" not in exact.gates[0]


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp32"])
def test_a_wrong_float32_is_no_reference(
    images: Path, precision: BackbonePrecision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled float32 that disagrees with torch is refused, also where another precision agrees with it."""
    wrong = FixedBatch(OpenVINOGraph(graph(1.5, 64), precision="fp32", threads=1), 4)
    monkeypatch.setattr(OpenVINOBuilder, "reference", lambda builder: lambda canvas: wrong(canvas)[:, ::-1])
    with pytest.raises(GateError):
        prepare(images, config=dataclasses.replace(CONFIG, precision=precision))


def test_a_store_continues_with_its_policy(images: Path, work: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another processor has other precisions to choose from."""
    config = dataclasses.replace(CONFIG, precision="auto")
    pipeline = PixelPipeline(SETTINGS, config)
    choice = BackboneChoice("timm:rows", images.parent / "weight")

    def found(folder: str, policies: dict[str, PrecisionPolicy] | None = None) -> dict[str, object]:
        monkeypatch.setenv("SUBSTYLE_CACHE", str(images.parent / folder))
        records = {record.key: record for record in FolderSource(images).records}
        samples = OwnSamples(pipeline, records, list(records), 4, policies)
        (compiled,) = prepare_backbones([choice], samples, quiet=True)
        return compiled.runtime

    monkeypatch.setattr("substyle.engine.backbones.precision.cpu.has", lambda *features: True)
    first = found("one")
    assert first["precision"] == "bf16"
    monkeypatch.setattr("substyle.engine.backbones.precision.cpu.has", lambda *features: False)
    assert found("two")["precision"] == "fp32"
    stored = {"timm:rows": PrecisionPolicy.of(first)}
    assert found("three", stored) == first  # tried first
    assert found("two", stored) == first  # instead of the verdict in the cache
    work.clear()
    assert found("one", stored) == first
    assert work == []  # the verdict of the first store, which was searched for
    # a policy that fails the gate is no reason to give up
    compare = PrecisionGate.compare

    def refused(gate: PrecisionGate, policy: PrecisionPolicy) -> list[GateResult]:
        if policy == stored["timm:rows"]:
            raise RejectedError("too far off")
        return compare(gate, policy)

    monkeypatch.setattr(PrecisionGate, "compare", refused)
    assert found("four", stored)["precision"] == "fp32"

"""Several depths of one network in one go: the same bits, each canvas computed once, or no sharing at all."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from tests.conftest import photograph

from substyle.engine.backbones import multi_output
from substyle.engine.backbones.compile import CompiledBackbone, CompileOptions, compile_source
from substyle.engine.backbones.families import timm as timm_family
from substyle.engine.backbones.multi_output import OutputMember, share
from substyle.engine.backbones.registry import LazyBackbone
from substyle.engine.backbones.runtimes.base import GivenSamples
from substyle.engine.backbones.runtimes.openvino import OpenVINOGraph
from substyle.engine.backbones.spec import WHOLE, Backbone, Readout

BATCH, CANVAS = 4, 96
DEPTHS = [Readout(layer=0), Readout(layer=-1, pool="avg"), WHOLE]


def batch(number: int, count: int = BATCH) -> NDArray[np.uint8]:
    return np.stack([np.array(photograph(number * BATCH + i, CANVAS, CANVAS)) for i in range(count)])


SAMPLES = GivenSamples([batch(0), 255 - batch(0), batch(1)], BATCH)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the graphs of all depths: exporting them takes most of a test's time."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUBSTYLE_CACHE", str(folder))
        depths()
    return folder


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, exported: Path) -> None:
    monkeypatch.setenv("SUBSTYLE_CACHE", str(shutil.copytree(exported, tmp_path / "cache")))


def backbone(readout: Readout, seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    network = timm.create_model("test_vit", num_classes=0)
    return timm_family.wrap("x", "test_vit", network, canvas=CANVAS, weights="random", readout=readout)


def compiled(backbones: Sequence[Backbone], precision: str = "fp32") -> list[CompiledBackbone]:
    options = CompileOptions(batch=BATCH, canvas=CANVAS, threads=1, precision=precision)
    return [compile_source(LazyBackbone.of(each), SAMPLES, options) for each in backbones]


def depths(precision: str = "fp32") -> list[CompiledBackbone]:
    return compiled([backbone(readout) for readout in DEPTHS], precision)


class Counted:
    """Counts the pieces that graphs compute."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pieces = 0
        start = OpenVINOGraph.start

        def counting(graph: OpenVINOGraph, inputs: Sequence[NDArray[np.uint8]]) -> object:
            self.pieces += 1
            return start(graph, inputs)

        monkeypatch.setattr(OpenVINOGraph, "start", counting)


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_depths_share_and_keep_their_bits(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    apart = depths(precision)
    joint = share(apart, SAMPLES)
    if precision == "fp32":  # elsewhere depths may need other mixtures, and processors may round otherwise
        assert all(isinstance(one.embed, OutputMember) for one in joint)
    assert [one.describe() for one in joint] == [one.describe() for one in apart]
    counted = Counted(monkeypatch)
    for count in (1, BATCH, 2 * BATCH + 1):
        canvas = torch.from_numpy(batch(2, count))
        expected = [one.embed(canvas.numpy()) for one in apart]
        before = counted.pieces
        started = [one.start(canvas) for one in joint]
        if all(isinstance(one.embed, OutputMember) for one in joint):
            assert counted.pieces - before == -(-count // BATCH), "computed once for all"
        for one, there in zip(reversed(started), reversed(expected), strict=True):
            np.testing.assert_array_equal(one.result(), there)
        for one, there in zip(joint, expected, strict=True):
            np.testing.assert_array_equal(one.embed(canvas.numpy()), there)


def test_a_canvas_that_is_given_again_is_computed_again() -> None:
    apart = depths()
    first, _, last = share(apart, SAMPLES)
    canvas = torch.from_numpy(batch(2))
    np.testing.assert_array_equal(first.start(canvas).result(), apart[0].embed(batch(2)))
    canvas.copy_(torch.from_numpy(batch(3)))
    np.testing.assert_array_equal(first.start(canvas).result(), apart[0].embed(batch(3)))
    np.testing.assert_array_equal(last.start(canvas).result(), apart[2].embed(batch(3)))


def test_what_only_one_asked_for_is_forgotten_with_its_canvas() -> None:
    first, *_ = share(depths(), SAMPLES)
    assert isinstance(first.embed, OutputMember)
    for number in range(3):
        first.start(torch.from_numpy(batch(number))).result()
    assert len(first.embed.joint._begun) == 0


def test_networks_of_other_weights_stay_apart() -> None:
    apart = compiled([backbone(DEPTHS[0]), backbone(DEPTHS[1], seed=1)])
    assert [one.embed for one in share(apart, SAMPLES)] == [one.embed for one in apart]
    assert share([], SAMPLES) == []
    assert [one.embed for one in share(apart[:1], SAMPLES)] == [apart[0].embed]


def test_other_bits_are_not_taken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    apart = depths()
    merge = multi_output.merge
    monkeypatch.setattr(multi_output, "merge", lambda models: merge([models[1], models[0], models[2]]))
    assert [one.embed for one in share(apart, SAMPLES)] == [one.embed for one in apart]
    assert ", ".join(one.spec.name for one in apart) in capsys.readouterr().err


def test_two_names_of_one_depth_stay_apart() -> None:
    apart = compiled([backbone(Readout(layer=1, pool="avg")), backbone(Readout(layer=1, pool="avg"))])
    canvas = torch.from_numpy(batch(2))
    for one, other in zip(share(apart, SAMPLES), apart, strict=True):
        np.testing.assert_array_equal(one.start(canvas).result(), other.embed(batch(2)))


def test_bits_are_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    apart = depths()
    share(apart, SAMPLES)
    monkeypatch.setattr(multi_output, "_same_bits", lambda *arguments: pytest.fail("compared again"))
    monkeypatch.setattr(multi_output, "merge", lambda *arguments: pytest.fail("merged again"))
    assert all(isinstance(one.embed, OutputMember) for one in share(apart, SAMPLES))


def test_what_is_not_in_the_cache_stays_apart_until_it_is(tmp_path: Path) -> None:
    apart = depths()
    graphs, away = tmp_path / "cache" / "graphs", tmp_path / "away"
    graphs.rename(away)
    assert [one.embed for one in share(apart, SAMPLES)] == [one.embed for one in apart]
    away.rename(graphs)
    assert all(isinstance(one.embed, OutputMember) for one in share(apart, SAMPLES))

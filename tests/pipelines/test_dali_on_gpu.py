"""The DALI graph for a GPU, tested without one: devices are checked at definition, but building it needs a driver.

Streams and memory are tested with a mocked pipeline that records its calls.
"""

from __future__ import annotations

import gc
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import operators
from benchmarks.gpu_check import tolerances
from nvidia.dali import backend
from tests.pipelines.conftest import scene

from substyle.kernels import philox
from substyle.kernels.dispatch import BorrowedMemory
from substyle.pipelines import dali
from substyle.pipelines.dali import Graph
from substyle.pipelines.transforms import base, color, overlay, overlay_assets
from substyle.pipelines.transforms.registry import suite
from substyle.pipelines.variants import VariantMaker, load_all

load_all()
GPU = torch.device("cuda", 0)
SUITE = [base.get(name) for name in suite("substance31")]
BY_DALI = [t for t in SUITE if t.by_dali(gpu=True)]


def test_dali_makes_most_variants_on_both_devices() -> None:
    for gpu in (False, True):
        assert sum(t.by_dali(gpu=gpu) for t in SUITE) == 16
    assert {t.name for t in SUITE if t.on_gpu} == {"jpeg", "zoom_blur"}


@pytest.mark.parametrize("transformation", BY_DALI, ids=lambda t: t.name)
def test_a_graph_for_a_gpu_has_gpu_operators_and_arguments_of_samples(transformation: base.Transformation) -> None:
    """Against DALI's registry. Schemas are checked by DALI as the graph is defined, which needs no GPU."""
    made = operators.nodes(transformation, GPU)
    for node in made:
        schema, spec = node.source._op.schema, node.source.spec
        for i in range(spec.NumRegularInput(), spec.NumInput()):
            assert spec.InputDevice(i) == "cpu", schema.Name()
        if node.source.outputs[0].device == "gpu" and node.source.inputs:
            assert schema.Name() in backend.RegisteredGPUOps()
            assert "gpu" in [str(kind).lower().rpartition(".")[2] for kind in schema.GetSupportedBackends()]
            assert {spec.InputDevice(i) for i in range(spec.NumRegularInput())} == {"gpu"}, schema.Name()
    sources = {node.source.name: node.source.outputs[0].device for node in made if not node.source.inputs}
    pages = [f"{transformation.name}.page"] if transformation.kind == "overlay" else []
    assert {name for name, device in sources.items() if device == "gpu"} == {"canvas", *pages}


def test_the_table_of_operators_is_that_of_the_page() -> None:
    text = operators.PAGE.read_text()
    assert operators.page(text) == text


def test_all_variants_of_a_batch_are_cheap_by_count() -> None:
    """At most 2 % of the time of a ViT-B/16 (17.6 GFLOP a picture) at 45 % of an H100's dense bfloat16 products."""
    found = list(operators.counts())
    assert len(found) == 25
    backbone_ms = 1e3 * 31 * operators.BATCH * 2 * 17.6e9 / (0.45 * 989e12)
    assert max(count.ms for count in found) < 5
    assert operators.around(found) + sum(count.ms for count in found) < 0.02 * backbone_ms


@pytest.mark.parametrize("name", ["gaussian_blur", "motion_blur", "defocus_blur"])
def test_trimmed_windows_filter_as_whole_ones(name: str) -> None:
    """Fed as a GPU is fed, to DALI on a CPU, which accepts windows of different sizes as well."""
    canvas_BSSC = torch.from_numpy(np.stack([scene(224, 224, seed) for seed in range(4)]))
    drawn = base.get(name).draw(philox.image_keys(1, list("abcd")), 224)
    graph = Graph([base.get(name)], side=224, batch=4, threads=1)
    whole = graph(canvas_BSSC, {name: drawn})[name]
    for argument in graph.inputs[name]:
        windows = base.feed(drawn[argument], GPU)
        assert isinstance(windows, list)
        graph.pipeline.feed_input(f"{name}.{argument}", windows)
    graph.pipeline.feed_input("canvas", canvas_BSSC.numpy())
    trimmed = dali._tensor(graph.pipeline.run()[0])
    good, text = tolerances.within(trimmed, whole, tolerances.VARIANTS[name])
    assert good, text


@pytest.mark.parametrize("side", [64, 97])
def test_a_graph_for_a_gpu_has_the_pixels_of_the_cpu(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU's definitions give on the CPU, within the bounds of the table."""
    names = ("hue_shift", "saturate", "low_contrast", "zoom_blur", "jpeg")
    canvas_BSSC = torch.from_numpy(np.stack([scene(side, side, seed) for seed in range(4)]))

    def made() -> dict[str, torch.Tensor]:
        maker = VariantMaker(names, side=side, seed=1, batch=4, threads=1)
        return {variant.name: variant.pixels_BSSC.clone() for variant in maker(canvas_BSSC, list("abcd"))}

    on_cpu, plain = made(), base.Transformation.implementation
    monkeypatch.setattr(VariantMaker, "on_gpu", property(lambda maker: True))
    monkeypatch.setattr(base.Transformation, "implementation", lambda own, gpu: plain(own, gpu=True))
    monkeypatch.setattr(color, "is_on_gpu", lambda canvas: True)
    on_gpu = made()
    for name in names:
        good, text = tolerances.within(on_gpu[name], on_cpu[name], tolerances.VARIANTS[name])
        assert good, f"{name}: {text}"
    assert torch.equal(on_gpu["jpeg"], on_cpu["jpeg"])
    assert torch.equal(on_gpu["low_contrast"], on_cpu["low_contrast"])
    assert not torch.equal(on_gpu["zoom_blur"], on_cpu["zoom_blur"])  # another implementation


class Output:
    """A tensor list; ``poison`` overwrites its memory, as a library may after its release."""

    def __init__(self, said: list[Any], pixels: torch.Tensor) -> None:
        self.said, self.pixels = said, pixels

    def as_tensor(self) -> torch.Tensor:
        self.said.append("tensor")
        return self.pixels

    def poison(self) -> None:
        self.pixels.fill_(0xAB)


class Pipeline:
    def __init__(self, said: list[Any]) -> None:
        self.said = said
        self.made: list[Output] = []

    def feed_input(self, name: str, data: Any, **how: Any) -> None:  # noqa: ANN401
        self.said.append(("feed", name, type(data), how))
        if name == "canvas":
            self.canvas = data

    def run(self, stream: Any) -> tuple[Output, ...]:  # noqa: ANN401
        self.said.append(("run", stream))
        self.made = [Output(self.said, self.canvas + 1)]
        return tuple(self.made)


class Event:
    def record(self, stream: Any) -> None:  # noqa: ANN401
        self.stream = stream

    def query(self) -> bool:
        return False

    def synchronize(self) -> None:
        pass


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> tuple[Graph, Pipeline, list[Any]]:
    said: list[Any] = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"torch's stream on {device}")
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    made = Graph.__new__(Graph)
    pipeline = Pipeline(said)
    inputs = dali.Inputs("jpeg", {"quality": np.zeros(1, np.int32)}, "gpu")
    inputs["quality"] = object()
    made.device, made.pipeline, made.inputs, made._held = GPU, pipeline, {"jpeg": inputs}, BorrowedMemory()
    return made, pipeline, said


@pytest.mark.parametrize(("device", "number"), [("cuda:0", 0), ("cuda:1", 1), ("cpu", None)])
def test_pipelines_belong_to_their_device(monkeypatch: pytest.MonkeyPatch, device: str, number: int | None) -> None:
    """Decoders and graphs of variants are created on the GPU that is given, not on the current one."""
    asked: list[int | None] = []
    monkeypatch.setattr("nvidia.dali.pipeline.Pipeline", lambda **how: asked.append(how["device_id"]))
    dali.new_pipeline(8, 1, torch.device(device))
    assert asked == [number]


def test_the_order_of_torch_s_stream(stand_in: tuple[Graph, Pipeline, list[Any]]) -> None:
    """The graph runs in the order of torch's stream, and outputs are held until they have been copied."""
    made, pipeline, said = stand_in
    canvas = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    pixels = made(canvas, {"jpeg": {"quality": np.array([7, 9], np.int32)}})["jpeg"]
    stream = "torch's stream on cuda:0"
    assert said == [
        ("feed", "canvas", torch.Tensor, {"cuda_stream": stream}),
        ("feed", "jpeg.quality", np.ndarray, {}),
        ("run", stream),
        "tensor",
    ]
    assert len(made._held) == 1
    event, held = made._held._waiting[0]
    assert event.stream == stream
    assert held == (tuple(pipeline.made),)
    pipeline.made[0].poison()
    assert torch.equal(pixels, canvas + 1)  # a copy


def test_pages_are_gathered_where_the_canvas_is(
    stand_in: tuple[Graph, Pipeline, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All pages stay on the device; only their numbers go there, and each image's page is fed on the stream."""
    made, _, said = stand_in
    pages_NPP = overlay_assets.icons(64).pages_NPP
    monkeypatch.setattr(overlay_assets, "on_device", lambda build, side, device: torch.from_numpy(pages_NPP))
    monkeypatch.setattr(overlay, "upload", lambda values, device: torch.from_numpy(values))
    page_B = np.array([3, 0])
    inputs = dali.Inputs("jpeg", {"page": overlay.Pages(overlay_assets.icons, 64, page_B)}, "gpu")
    inputs["page"] = object()
    made.inputs = {"jpeg": inputs}
    fed: list[torch.Tensor] = []
    feed = made.pipeline.feed_input
    monkeypatch.setattr(
        made.pipeline, "feed_input", lambda name, data, **how: (fed.append(data), feed(name, data, **how))
    )
    made(torch.zeros(2, 4, 4, 3, dtype=torch.uint8), {"jpeg": inputs.example})
    assert said[1] == ("feed", "jpeg.page", torch.Tensor, {"cuda_stream": "torch's stream on cuda:0"})
    assert np.array_equal(fed[1], base.feed(inputs.example["page"]))
    assert np.array_equal(fed[1][..., 0], pages_NPP[page_B])


def test_nothing_is_dropped_before_it_is_read(stand_in: tuple[Graph, Pipeline, list[Any]]) -> None:
    """The host is ahead of the device: outputs of DALI live until their event completes."""
    made, _, _ = stand_in
    for _ in range(3):
        made(torch.zeros(1, 4, 4, 3, dtype=torch.uint8), {"jpeg": {"quality": np.array([7], np.int32)}})
    gc.collect()
    assert len(made._held) == 3


def pictures(seed: int, device: torch.device) -> torch.Tensor:
    values = np.random.default_rng(seed).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    return torch.from_numpy(values).to(device)


def poisoned(names: tuple[str, ...], device: str, delay: int) -> None:
    """Variants do not change when later white batches recycle buffers."""
    maker = VariantMaker(names, side=64, seed=0, batch=4, threads=2, device=device)
    first = {v.name: v.pixels_BSSC.cpu() for v in maker(pictures(0, maker.device), list("abcd"))}
    if delay:
        torch.cuda._sleep(delay)  # type: ignore[no-untyped-call]
    again = {v.name: v.pixels_BSSC for v in maker(pictures(0, maker.device), list("abcd"))}
    for _ in range(6):
        for _ in maker(torch.full((4, 64, 64, 3), 255, dtype=torch.uint8, device=maker.device), list("efgh")):
            pass
    for name, pixels in again.items():
        assert torch.equal(pixels.cpu(), first[name]), name


OWN = tuple(t.name for t in SUITE if t.made_by != "network")


def test_outputs_are_never_overwritten() -> None:
    poisoned(OWN, "cpu", 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_outputs_are_never_overwritten_on_a_gpu() -> None:
    poisoned(OWN, "cuda", 200_000_000)  # cycles, 0.1 s: the host queues everything meanwhile

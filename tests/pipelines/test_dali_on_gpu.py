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

from substyle.kernels.dispatch import BorrowedMemory
from substyle.pipelines import dali
from substyle.pipelines.dali import Graph
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import suite
from substyle.pipelines.variants import VariantMaker, load_all

load_all()
GPU = torch.device("cuda", 0)
SUITE = [base.get(name) for name in suite("substance31")]
BY_DALI = [t for t in SUITE if t.made_by == "dali" and t.on_gpu is None]
# DALI has GPU operators for these, too, but kernels are faster; it cannot compute low_contrast on a GPU
BY_KERNEL = [t for t in SUITE if t.on_gpu is not None and t.name != "low_contrast"]


def operators(transformation: base.Transformation, device: torch.device) -> list[Any]:
    """Operator instances of a transformation, including its inputs."""
    pipeline = dali.new_pipeline(4, 1, device)
    dali.define_variants(pipeline, [transformation], 224, device)
    found: dict[int, Any] = {}

    def visit(node: Any) -> None:  # noqa: ANN401
        if id(node.source) not in found:
            found[id(node.source)] = node.source
            for given in node.source.inputs:
                visit(given)

    for output in pipeline._graph_out:
        assert output.device == ("gpu" if device.type == "cuda" else "cpu")
        visit(output)
    return list(found.values())


@pytest.mark.parametrize("transformation", [*BY_DALI, *BY_KERNEL], ids=lambda t: t.name)
def test_arguments_stay_on_the_cpu_and_inputs_are_on_the_gpu(transformation: base.Transformation) -> None:
    made = operators(transformation, GPU)
    for operator in made:
        spec = operator.spec
        for i in range(spec.NumInput()):
            name, device = spec.InputName(i), spec.InputDevice(i)
            argument = i >= spec.NumRegularInput()
            assert device == ("cpu" if argument else "gpu"), (operator.name, name)
    sources = [o for o in made if "ExternalSource" in type(o._op).__name__ or not o.inputs]
    assert {o.outputs[0].device for o in sources if o.name != "canvas"} <= {"cpu"}
    (canvas,) = [o for o in sources if o.name == "canvas"]
    assert canvas.outputs[0].device == "gpu"


@pytest.mark.parametrize("transformation", [*BY_DALI, *BY_KERNEL], ids=lambda t: t.name)
def test_the_operators_are_those_of_the_cpu(transformation: base.Transformation) -> None:
    """The same operators, in the same order, with the same arguments."""

    def told(device: torch.device) -> list[tuple[str, list[str]]]:
        return [(type(o._op).__name__, [given.name for given in o.inputs]) for o in operators(transformation, device)]

    assert told(GPU) == told(torch.device("cpu"))


def test_what_dali_cannot_make_on_a_gpu_is_made_by_a_kernel() -> None:
    with pytest.raises(ValueError, match="Named arguments must be on CPU"):
        operators(base.get("low_contrast"), GPU)
    assert base.get("low_contrast").on_gpu is not None


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
    inputs = dali.Inputs("jpeg", {"quality": np.zeros(1, np.int32)})
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

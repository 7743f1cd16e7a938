"""Decoding for a GPU, tested without one: graph definition, memory, orientation and copies."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.pipelines.conftest import encode, scene
from tests.pipelines.test_dali_on_gpu import Event

from substyle.kernels.dispatch import CPU, BorrowedMemory
from substyle.pipelines import dali, decode, image_header
from substyle.pipelines.dali import DaliDecoder, RefusedError
from substyle.pipelines.decode import Decoder

GPU = torch.device("cuda", 0)


def defined(device: torch.device) -> tuple[Any, ...]:
    pipeline = dali.new_pipeline(4, 1, device)
    dali.define_decode(pipeline, 64, device)
    outputs: tuple[Any, ...] = pipeline._graph_out
    return outputs


def test_only_canvases_stay_on_the_device() -> None:
    assert [node.device for node in defined(GPU)] == ["gpu", "cpu", "cpu"]
    assert [node.device for node in defined(CPU)] == ["cpu", "cpu", "cpu"]


def test_files_are_given_by_the_host_and_decoded_there_and_on_the_device() -> None:
    for device, decoded, resized in ((GPU, "mixed", "gpu"), (CPU, "cpu", "cpu")):
        resize = defined(device)[0].source
        image = resize.inputs[0].source
        assert (image._op.device, resize._op.device) == (decoded, resized)
        assert image.inputs[0].device == "cpu"
        assert [node.device for node in resize.inputs[1:]] == ["cpu", "cpu"]  # start and end of the part


def test_the_hardware_engine_gets_images_by_their_files_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default it gets the first 65 % of a batch."""
    from nvidia.dali import fn

    given: list[dict[str, Any]] = []
    real = fn.decoders.image
    monkeypatch.setattr(fn.decoders, "image", lambda blob, **how: given.append(how) or real(blob, **how))
    defined(GPU)
    defined(CPU)
    assert [how.get("hw_decoder_load") for how in given] == [1.0, None]


class Pipeline:
    def __init__(self, refuses: bool = False) -> None:
        self.refuses, self.given = refuses, {}
        self.canvas = torch.full((1, 4, 4, 3), 7, dtype=torch.uint8)

    def run(self, *stream: Any, **given: Any) -> tuple[Any, ...]:  # noqa: ANN401
        assert not stream  # the host waits for DALI only
        if self.refuses:
            raise RuntimeError("nvJPEG: not supported")
        arrays = (self.canvas, np.array([[9, 8, 3]]), np.array([[1, 2, 3]], np.uint8))
        return tuple(SimpleNamespace(as_tensor=lambda array=array: array) for array in arrays)


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> DaliDecoder:
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"torch's stream on {device}")
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    made = DaliDecoder.__new__(DaliDecoder)
    made.device, made.pipeline, made._held, made._builder = GPU, Pipeline(), BorrowedMemory(), None
    return made


def test_canvases_are_copied_into_memory_of_torch_s(decoder: DaliDecoder) -> None:
    made = decoder([b"file"], [(0, 0)], [(4, 4)])
    event, (outputs,) = decoder._held._waiting[0]
    assert event.stream == "torch's stream on cuda:0"
    assert len(outputs) == 3
    decoder.pipeline.canvas.fill_(0xAB)  # as DALI may after its memory is released
    assert made.canvas_BSSC.unique().tolist() == [7]
    assert made.size_B2.tolist() == [[9, 8]]
    assert made.last_BC.tolist() == [[1, 2, 3]]


def test_refused_groups_take_graphs_that_are_built_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five failures in a row, of which the caller's thread builds no graph; what follows is decoded as before."""
    built: list[str] = []
    real = DaliDecoder._build

    def build(self: DaliDecoder) -> Any:  # noqa: ANN401
        built.append(threading.current_thread().name)
        return real(self)

    monkeypatch.setattr(DaliDecoder, "_build", build)
    made, plain = DaliDecoder(32, 2, 1, spares=2), DaliDecoder(32, 2, 1)
    assert len(made.spares) == 2
    good = encode(scene(48, 40), "JPEG")
    for _ in range(5):
        with pytest.raises(RefusedError):
            made([good, b"no image"], [(0, 0)] * 2, [(48, 40)] * 2)
    assert len(made.spares) == 2
    found, expected = (each([good], [(0, 0)], [(48, 40)]).canvas_BSSC for each in (made, plain))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for spare in made.spares:
        spare.result()
    assert [name.startswith("dali-build") for name in built].count(False) == 2  # the first of each decoder
    assert len(built) == 1 + 2 + 5 + 1


def test_a_group_that_is_refused_leaves_a_new_graph(decoder: DaliDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    new = Pipeline()
    monkeypatch.setattr(DaliDecoder, "_build", lambda self: new)
    decoder.pipeline = Pipeline(refuses=True)
    with pytest.raises(RefusedError, match="nvJPEG"):
        decoder([b"file"], [(0, 0)], [(4, 4)])
    assert decoder.pipeline is new
    assert not len(decoder._held)


@pytest.mark.parametrize("tag", range(1, 9))
def test_tensors_are_turned_as_arrays_are(tag: int) -> None:
    picture = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    turned = image_header.turn(torch.from_numpy(picture), tag)
    np.testing.assert_array_equal(turned.numpy(), image_header.turn(picture, tag))


@pytest.mark.parametrize("tags", [[1, 6, 1, 3, 8], [1, 1, 1], [5, 7], []])
def test_both_ways_of_copying(tags: list[int]) -> None:
    """Some canvases are rejected and indices are permuted; rejected entries stay unchanged."""
    count = len(tags) + 3
    source = torch.from_numpy(np.random.default_rng(0).integers(1, 256, (count, 6, 6, 3), dtype=np.uint8))
    accepted: list[Any] = [
        (i + 1, SimpleNamespace(index=count - 1 - i, head=SimpleNamespace(orientation=tag)))
        for i, tag in enumerate(tags)
    ]
    made = [torch.zeros_like(source) for _ in range(2)]
    decode._copy_one_by_one(accepted, source, made[0])
    decode._copy_at_once(accepted, source, made[1])
    assert torch.equal(*made)
    assert made[0].flatten(1).any(1).tolist() == [False] * 3 + [True] * len(tags)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_as_on_the_cpu() -> None:
    """JPEG in three samplings, PNG, rotated images, images for Pillow and quarantined ones."""
    blobs = [encode(scene(90, 120, i), "JPEG", quality=95, subsampling=i) for i in range(3)]
    blobs += [encode(scene(120, 90), "PNG"), encode(scene(60, 60), "GIF"), blobs[0][:900], b"no image"]
    on_cpu, on_gpu = (Decoder(64, 8, 2, device=device)(blobs) for device in ("cpu", "cuda"))
    assert on_gpu.canvas_BSSC.is_cuda
    assert on_gpu.reasons == on_cpu.reasons
    np.testing.assert_array_equal(on_gpu.size_B2, on_cpu.size_B2)
    difference = (on_gpu.canvas_BSSC.cpu().int() - on_cpu.canvas_BSSC.int()).abs().float()
    assert difference.flatten(1).mean(1).max() < 1
    assert not difference[3:].max() > 1
    assert not on_gpu.canvas_BSSC[5:].any()

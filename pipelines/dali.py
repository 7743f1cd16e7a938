"""DALI graphs: encoded images to canvases, and canvases to variants, on a CPU or a GPU.

On a GPU the canvas goes in and variants come out without the host: it is read, and they are returned, in the order of
torch's current stream, and nobody waits. DALI's memory is no memory of torch's: what comes out is copied into some that
is (bytes read and written once, a hundredth of what making it takes), and DALI's is held until that copy has ended.
"""

from __future__ import annotations

import atexit
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels import philox
from substyle.kernels.dispatch import CPU, BorrowedMemory
from substyle.kernels.errors import ConfigError, SubstyleError
from substyle.pipelines.transforms import base

_OPEN: WeakSet[Any] = WeakSet()


@atexit.register
def _close() -> None:
    """Drop pipelines before the interpreter clears modules, which DALI's destructor needs."""
    for each in _OPEN:
        each.pipeline = None


class Graph:
    """A graph of transformations; their parameters come as per-sample arguments.

    Args:
        transformations: those that DALI makes.
        side: canvas side S in pixels.
        batch: largest number of images in one run.
        threads: CPU threads.
        device: where it runs.
    """

    def __init__(
        self,
        transformations: Sequence[base.Transformation],
        *,
        side: int,
        batch: int,
        threads: int,
        device: torch.device = CPU,
    ) -> None:
        self.device = device
        self.pipeline = new_pipeline(batch, threads, device)
        self.inputs = define_variants(self.pipeline, transformations, side, device)
        self.pipeline.build()
        self._held = BorrowedMemory()
        _OPEN.add(self)

    def __call__(
        self, canvas_BSSC: torch.Tensor, drawn: Mapping[str, Mapping[str, NDArray[Any]]]
    ) -> dict[str, torch.Tensor]:
        """Variants by name, each a (B, S, S, 3) uint8 tensor with memory of its own, on the canvas's device."""
        feed: dict[str, Any] = {}
        for name, inputs in self.inputs.items():
            feed |= {f"{name}.{argument}": drawn[name][argument] for argument in inputs}
        if self.device.type == "cpu":
            outputs = self.pipeline.run(canvas=canvas_BSSC.numpy(), **feed)
            return dict(zip(self.inputs, map(_tensor, outputs), strict=True))
        stream = torch.cuda.current_stream(self.device)
        with torch.cuda.device(self.device):
            self.pipeline.feed_input("canvas", canvas_BSSC, cuda_stream=stream)
            for name, array in feed.items():
                self.pipeline.feed_input(name, array)
            outputs = self.pipeline.run(stream)
            made = dict(zip(self.inputs, (_tensor(output).clone() for output in outputs), strict=True))
            self._held.until(stream, outputs)
        return made


def new_pipeline(batch: int, threads: int, device: torch.device) -> Any:  # noqa: ANN401 - DALI ships no types
    """An empty pipeline for a device.

    Only the dynamic executor gives every run new output memory, which tensors may then keep, and returns outputs in the
    order of a stream.
    """
    from nvidia.dali.pipeline import Pipeline

    number = device.index if device.type == "cuda" else None
    return Pipeline(batch_size=batch, num_threads=threads, device_id=number, prefetch_queue_depth=1, exec_dynamic=True)


def define_variants(
    pipeline: Any,  # noqa: ANN401 - DALI ships no types
    transformations: Sequence[base.Transformation],
    side: int,
    device: torch.device,
) -> dict[str, Inputs]:
    """Fill a pipeline: its input ``canvas``, an output for each transformation; gives their inputs by name."""
    from nvidia.dali import fn, types

    backend = "gpu" if device.type == "cuda" else "cpu"
    example = philox.image_keys(0, ["example"])
    made: dict[str, Inputs] = {}
    with pipeline:
        canvas = fn.external_source(name="canvas", device=backend, dtype=types.UINT8, ndim=3, layout="HWC")
        outputs = []
        for transformation in transformations:
            inputs = Inputs(transformation.name, transformation.draw(example, side))
            if transformation.function is None:
                raise SubstyleError(f"{transformation.name} is made by {transformation.made_by} but has no function")
            outputs.append(transformation.function(canvas, inputs, side))
            made[transformation.name] = inputs
        pipeline.set_outputs(*outputs)
    return made


class Inputs(dict[str, Any]):
    """Nodes of a transformation's arguments, made when its function asks for them: DALI drops unused ones.

    All are on the CPU; :func:`.transforms.base.beside` moves those that are an operator's positional inputs.
    """

    def __init__(self, name: str, example: Mapping[str, NDArray[Any]]) -> None:
        super().__init__()
        self.name, self.example = name, example

    def __missing__(self, argument: str) -> Any:  # noqa: ANN401 - DALI ships no types
        from nvidia.dali import fn

        if argument not in self.example:
            raise ConfigError(f"{self.name}: argument", argument, ", ".join(self.example) or "none")
        array = self.example[argument]
        name = f"{self.name}.{argument}"
        self[argument] = fn.external_source(name=name, dtype=dali_type(array), ndim=array.ndim - 1)
        return self[argument]


def dali_type(array: NDArray[Any]) -> Any:  # noqa: ANN401 - DALI ships no types
    """DALI's name of an array's type. Raises ConfigError naming those that arguments may have."""
    from nvidia.dali import types

    known = {np.dtype(types.to_numpy_type(t)): t for t in (types.FLOAT, types.INT32, types.INT16, types.UINT8)}
    if array.dtype not in known:
        raise ConfigError("argument of a DALI transformation", array.dtype.name, ", ".join(str(d) for d in known))
    return known[array.dtype]


def _tensor(output: Any) -> torch.Tensor:  # noqa: ANN401 - DALI ships no types
    return torch.utils.dlpack.from_dlpack(output.as_tensor())


# The DALI graph that decodes, crops and resizes a group of images in one run, on a CPU or on a GPU.
#
# On a GPU nvJPEG decodes JPEG files, part of the work on the card's own JPEG engine where it has one; other kinds are
# decoded on the CPU and copied. Its pictures are not those of libjpeg, which a CPU and Pillow decode with: its inverse
# transform is in floating point (a level or two on single pixels), and unless it is asked for libjpeg's smooth chroma
# upsampling it repeats chroma (tens of levels along coloured edges). It is asked here. What it fills missing blocks
# with is not documented: the test on a grey last pixel, after which a JPEG is looked at for missing data, rests on
# libjpeg's grey. Resizing is the same in formula, in float32 on both.


class RefusedError(SubstyleError):
    """DALI could not decode one of the images it was given; it does not say which."""


@dataclass(frozen=True)
class DaliDecoded:
    """What comes out of one run, for B images.

    Attributes:
        canvas_BSSC: (B, S, S, 3) uint8 on the decoder's device, as stored; on a CPU valid until the next run.
        size_B2: (B, 2) int64, height and width of the decoded pictures in px, on the host.
        last_BC: (B, 3) uint8, the last pixel of each decoded picture, on the host.
    """

    canvas_BSSC: torch.Tensor
    size_B2: NDArray[np.int64]
    last_BC: NDArray[np.uint8]


class DaliDecoder:
    """Decodes parts of images to S x S.

    Args:
        side: S in pixels.
        batch: largest number of images in one run.
        threads: CPU threads.
        device: where the canvases are made.
    """

    def __init__(self, side: int, batch: int, threads: int, device: torch.device = CPU) -> None:
        self.side, self.batch, self.threads, self.device = side, batch, threads, device
        self.pipeline = self._build()
        self._held = BorrowedMemory()
        _OPEN.add(self)

    def __call__(
        self, blobs: Sequence[bytes], start: Sequence[tuple[float, float]], end: Sequence[tuple[float, float]]
    ) -> DaliDecoded:
        """Decode and resize the part of every image from ``start`` (top, left) to ``end`` (bottom, right), stored px.

        On a GPU the host waits for DALI, whose sizes and last pixels it needs, but for nothing that torch has queued:
        so DALI is not given torch's stream, and the canvases, which are complete, may be read on any.

        Raises:
            RefusedError: one of the images cannot be decoded.
        """
        try:
            outputs = self.pipeline.run(
                blob=[np.frombuffer(blob, np.uint8) for blob in blobs],
                start=np.array(start, np.float32),
                end=np.array(end, np.float32),
            )
        except RuntimeError as error:
            self.pipeline = self._build()  # a graph that has failed once cannot run again; on a CPU this takes 2 ms
            raise RefusedError(str(error)) from error
        canvas, shape, last = (output.as_tensor() for output in outputs)
        return DaliDecoded(self._own(canvas, outputs), np.asarray(shape)[:, :2], np.asarray(last))

    def _own(self, canvas: Any, outputs: Any) -> torch.Tensor:  # noqa: ANN401 - DALI ships no types
        """The canvases as a tensor; on a GPU in memory of torch's, and DALI's is held until it has been copied."""
        if self.device.type == "cpu":
            return torch.utils.dlpack.from_dlpack(canvas)
        with torch.cuda.device(self.device):
            canvas_BSSC = torch.utils.dlpack.from_dlpack(canvas).clone()
            self._held.until(torch.cuda.current_stream(self.device), outputs)
        return canvas_BSSC

    def _build(self) -> Any:  # noqa: ANN401 - DALI ships no types
        pipeline = new_pipeline(self.batch, self.threads, self.device)
        define_decode(pipeline, self.side, self.device)
        pipeline.build()
        return pipeline


def define_decode(pipeline: Any, side: int, device: torch.device) -> None:  # noqa: ANN401 - DALI ships no types
    """Fill a pipeline: inputs ``blob``, ``start`` and ``end``; outputs canvas, and on the host shape and last pixel."""
    from nvidia.dali import fn, types

    on_gpu = device.type == "cuda"
    with pipeline:
        blob = fn.external_source(name="blob", dtype=types.UINT8, ndim=1)
        start = fn.external_source(name="start", dtype=types.FLOAT, ndim=1)
        end = fn.external_source(name="end", dtype=types.FLOAT, ndim=1)
        # With the smooth chroma upsampling DALI gives Pillow's pixels exactly on a CPU.
        image = fn.decoders.image(
            blob,
            device="mixed" if on_gpu else "cpu",
            output_type=types.RGB,
            adjust_orientation=False,
            jpeg_fancy_upsampling=True,
        )
        canvas = fn.resize(
            image,
            size=[side, side],
            roi_start=start,
            roi_end=end,
            interp_type=types.INTERP_CUBIC,
            antialias=True,
            subpixel_scale=False,
        )
        last = image[-1, -1]
        pipeline.set_outputs(canvas, image.shape(), last.cpu() if on_gpu else last)

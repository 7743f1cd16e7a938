"""DALI graphs: encoded images to canvases, and canvases to variants, on a CPU or a GPU.

On a GPU, graphs of variants run in the order of torch's current stream without synchronisation. Outputs are copied to
memory owned by torch, and DALI's memory is held until the copy ends.
"""

from __future__ import annotations

import atexit
import re
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.errors import ConfigError, SubstyleError
from substyle.kernels import philox
from substyle.kernels.dispatch import CPU, BorrowedMemory
from substyle.pipelines.transforms import base

_OPEN: WeakSet[Any] = WeakSet()
# messages of a device or memory that fails, which says nothing of the images
_EXHAUSTED = re.compile("out of memory|bad_alloc|ALLOCATOR_FAILURE|cudaError|CUDA_ERROR|CUDA runtime|CUDA driver")
_SPARES = 2  # a batch of 256 with 1 % of damaged files fails two to three times


@atexit.register
def _close() -> None:
    """Drop pipelines before the interpreter clears modules, which DALI's destructor needs."""
    for each in _OPEN:
        each.pipeline = None
        if isinstance(each, DaliDecoder):
            each.spares.clear()


class Graph:
    """A graph of transformations; parameters are per-sample arguments.

    Args:
        transformations: transformations made by DALI.
        side: canvas side S in pixels.
        batch: maximum number of images per run.
        threads: CPU threads.
        device: device of the graph.
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
        self, canvas_BSSC: torch.Tensor, drawn: Mapping[str, Mapping[str, base.Argument]]
    ) -> dict[str, torch.Tensor]:
        """Compute the variants, each a new (B, S, S, 3) uint8 tensor on the canvas's device, by name."""
        feed: dict[str, Any] = {}
        for name, inputs in self.inputs.items():
            feed |= {f"{name}.{argument}": base.feed(drawn[name][argument], self.device) for argument in inputs}
        if self.device.type == "cpu":
            outputs = self.pipeline.run(canvas=canvas_BSSC.numpy(), **feed)
            return dict(zip(self.inputs, map(_tensor, outputs), strict=True))
        stream = torch.cuda.current_stream(self.device)
        with torch.cuda.device(self.device):
            for name, data in {"canvas": canvas_BSSC, **feed}.items():
                on_stream = {"cuda_stream": stream} if isinstance(data, torch.Tensor) else {}
                self.pipeline.feed_input(name, data, **on_stream)
            outputs = self.pipeline.run(stream)
            made = dict(zip(self.inputs, (_tensor(output).clone() for output in outputs), strict=True))
            self._held.until(stream, outputs)
        return made


def new_pipeline(batch: int, threads: int, device: torch.device) -> Any:  # noqa: ANN401 - DALI ships no types
    """Create an empty pipeline for a device.

    It needs the dynamic executor: only that allocates new output memory for every run and returns outputs in the order
    of a stream.
    """
    from nvidia.dali.pipeline import Pipeline

    number = device.index if device.type == "cuda" else None
    return Pipeline(batch_size=batch, num_threads=threads, device_id=number, prefetch_queue_depth=1, exec_dynamic=True)


def release_memory() -> None:
    """Free what DALI's memory pools hold for pipelines that are gone."""
    from nvidia.dali import backend

    backend.ReleaseUnusedMemory()  # type: ignore[attr-defined]


def define_variants(
    pipeline: Any,  # noqa: ANN401 - DALI ships no types
    transformations: Sequence[base.Transformation],
    side: int,
    device: torch.device,
) -> dict[str, Inputs]:
    """Define a pipeline with the input ``canvas`` and one output per transformation; returns their inputs by name."""
    from nvidia.dali import fn, types

    backend = "gpu" if device.type == "cuda" else "cpu"
    example = philox.image_keys(0, ["example"])
    made: dict[str, Inputs] = {}
    with pipeline:
        canvas = fn.external_source(
            name="canvas", device=backend, dtype=types.UINT8, ndim=3, layout="HWC", no_copy=backend == "cpu"
        )
        outputs = []
        for transformation in transformations:
            inputs = Inputs(transformation.name, transformation.draw(example, side), backend)
            outputs.append(transformation.implementation(gpu=backend == "gpu")(canvas, inputs, side))
            made[transformation.name] = inputs
        pipeline.set_outputs(*outputs)
    return made


class Inputs(dict[str, Any]):
    """Nodes of a transformation's arguments, created on access: DALI drops unused inputs.

    They are on the CPU, but for what is fed on the canvas's device. :func:`.transforms.base.beside` moves positional
    inputs of operators there.
    """

    def __init__(self, name: str, example: Mapping[str, base.Argument], backend: str) -> None:
        super().__init__()
        self.name, self.example, self.backend = name, example, backend

    def __missing__(self, argument: str) -> Any:  # noqa: ANN401 - DALI ships no types
        from nvidia.dali import fn

        if argument not in self.example:
            raise ConfigError(f"{self.name}: argument", argument, ", ".join(self.example) or "none")
        array, name = base.feed(self.example[argument]), f"{self.name}.{argument}"
        device = self.backend if getattr(self.example[argument], "on_device", False) else "cpu"
        self[argument] = fn.external_source(
            name=name, dtype=dali_type(array), ndim=array.ndim - 1, device=device, no_copy=self.backend == "cpu"
        )
        return self[argument]


def dali_type(array: NDArray[Any]) -> Any:  # noqa: ANN401 - DALI ships no types
    """DALI's type for an array. Raises ConfigError for an unsupported dtype."""
    from nvidia.dali import types

    known = {np.dtype(types.to_numpy_type(t)): t for t in (types.FLOAT, types.INT32, types.INT16, types.UINT8)}
    if array.dtype not in known:
        raise ConfigError("argument of a DALI transformation", array.dtype.name, ", ".join(str(d) for d in known))
    return known[array.dtype]


def _tensor(output: Any) -> torch.Tensor:  # noqa: ANN401 - DALI ships no types
    return torch.utils.dlpack.from_dlpack(output.as_tensor())


# On a GPU, nvJPEG decodes JPEG files, partly on the hardware JPEG engine if there is one; other formats are decoded on
# the CPU and copied. Its pixels differ from those of libjpeg, which DALI on a CPU and Pillow use: the inverse DCT is in
# floating point (one or two levels at single pixels). Without libjpeg's smooth chroma upsampling, which is enabled
# here, they differ by tens of levels along coloured edges. Its filling of missing blocks is undocumented: the test for
# a grey last pixel relies on libjpeg's grey. Resizing uses the same formula in float32 on both.


class RefusedError(SubstyleError):
    """DALI could not decode one of the images.

    Args:
        message: DALI's.
        index: index of the image, None if the message does not have it.
        exhausted: whether memory or the device failed rather than an image.
    """

    def __init__(self, message: str, index: int | None = None, *, exhausted: bool = False) -> None:
        super().__init__(message)
        self.index, self.exhausted = index, exhausted


@dataclass(frozen=True)
class DaliDecoded:
    """Result of one run, for B images.

    Attributes:
        canvas_BSSC: (B, S, S, 3) uint8 on the decoder's device, as stored; on a CPU valid until the next run.
        size_B2: (B, 2) int64, height and width of the decoded images in px, on the host.
        last_BC: (B, 3) uint8, the last pixel of each decoded image, on the host.
    """

    canvas_BSSC: torch.Tensor
    size_B2: NDArray[np.int64]
    last_BC: NDArray[np.uint8]


class DaliDecoder:
    """Decode images and resize a part of each to S x S.

    Args:
        side: S in pixels.
        batch: maximum number of images per run.
        threads: CPU threads.
        device: device of the canvases.
        spares: number of pipelines that are built in the background to replace one that has failed.
    """

    def __init__(
        self, side: int, batch: int, threads: int, device: torch.device = CPU, *, spares: int | None = None
    ) -> None:
        self.side, self.batch, self.threads, self.device = side, batch, threads, device
        self.pipeline = self._build()
        if spares is None:  # on a CPU, building takes 2 ms
            spares = _SPARES if device.type == "cuda" else 0
        self._builder = ThreadPoolExecutor(1, "dali-build") if spares else None
        self.spares: deque[Future[Any]] = deque()
        if self._builder is not None:
            self.spares.extend(self._builder.submit(self._build) for _ in range(spares))
        self._held = BorrowedMemory()
        _OPEN.add(self)

    def __call__(
        self, blobs: Sequence[bytes], start: Sequence[tuple[float, float]], end: Sequence[tuple[float, float]]
    ) -> DaliDecoded:
        """Decode images and resize the part from ``start`` (top, left) to ``end`` (bottom, right) of each, stored px.

        On a GPU, the host waits for DALI, because it needs the sizes and last pixels, but not for torch's stream. The
        canvases are complete on return and may be read on any stream.

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
            self.pipeline = self._replacement()  # a failed pipeline cannot run again
            found, exhausted = re.search(r"[Ss]ample #(\d+)", str(error)), bool(_EXHAUSTED.search(str(error)))
            index = int(found[1]) if found and not exhausted else None
            raise RefusedError(str(error), index, exhausted=exhausted) from error
        canvas, shape, last = (output.as_tensor() for output in outputs)
        return DaliDecoded(self._own(canvas, outputs), np.asarray(shape)[:, :2], np.asarray(last))

    def _own(self, canvas: Any, outputs: Any) -> torch.Tensor:  # noqa: ANN401 - DALI ships no types
        """The canvases as a tensor; on a GPU a copy in torch's memory, with DALI's held until it has been read."""
        if self.device.type == "cpu":
            return torch.utils.dlpack.from_dlpack(canvas)
        with torch.cuda.device(self.device):
            canvas_BSSC = torch.utils.dlpack.from_dlpack(canvas).clone()
            self._held.until(torch.cuda.current_stream(self.device), outputs)
        return canvas_BSSC

    def _replacement(self) -> Any:  # noqa: ANN401 - DALI ships no types
        if self._builder is None:
            return self._build()
        self.spares.append(self._builder.submit(self._build))
        return self.spares.popleft().result()

    def _build(self) -> Any:  # noqa: ANN401 - DALI ships no types
        pipeline = new_pipeline(self.batch, self.threads, self.device)
        define_decode(pipeline, self.side, self.device)
        pipeline.build()
        return pipeline


def define_decode(pipeline: Any, side: int, device: torch.device) -> None:  # noqa: ANN401 - DALI ships no types
    """Define a pipeline with inputs ``blob``, ``start``, ``end`` and outputs canvas, shape and last pixel (on host)."""
    from nvidia.dali import fn, types

    on_gpu = device.type == "cuda"
    with pipeline:
        blob = fn.external_source(name="blob", dtype=types.UINT8, ndim=1, no_copy=not on_gpu)
        start = fn.external_source(name="start", dtype=types.FLOAT, ndim=1)
        end = fn.external_source(name="end", dtype=types.FLOAT, ndim=1)
        # With smooth chroma upsampling, DALI on a CPU gives exactly Pillow's pixels. By default, the hardware engine
        # gets the first 65 % of the images that it supports, and CUDA, whose pixels may differ, the rest; with 1, all.
        image = fn.decoders.image(
            blob,
            device="mixed" if on_gpu else "cpu",
            output_type=types.RGB,
            adjust_orientation=False,
            jpeg_fancy_upsampling=True,
            hw_decoder_load=1.0 if on_gpu else None,
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

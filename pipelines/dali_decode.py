"""The DALI graph that decodes, crops and resizes a group of images in one run, on a CPU or on a GPU.

On a GPU nvJPEG decodes JPEG files, part of the work on the card's own JPEG engine where it has one; other kinds are
decoded on the CPU and copied. Its pictures are not those of libjpeg, which a CPU and Pillow decode with: its inverse
transform is in floating point (a level or two on single pixels), and unless it is asked for libjpeg's smooth chroma
upsampling it repeats chroma (tens of levels along coloured edges). It is asked here. What it fills missing blocks with
is not documented: the test on a grey last pixel, after which a JPEG is looked at for missing data, rests on libjpeg's
grey. Resizing is the same in formula, in float32 on both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels.device import CPU
from substyle.kernels.errors import SubstyleError
from substyle.kernels.lifetime import Held
from substyle.pipelines.graph import new_pipeline


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
        self._held = Held()

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
        define(pipeline, self.side, self.device)
        pipeline.build()
        return pipeline


def define(pipeline: Any, side: int, device: torch.device) -> None:  # noqa: ANN401 - DALI ships no types
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
